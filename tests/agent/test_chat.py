"""Speech that the LLM hears itself: vectors in the place of words, read while they are spoken, and words again once the turn is over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent.build import build_parts
from agent.chat import Chat
from agent.chat_template import Message, render_chat
from agent.history import History
from agent.profiles import load_profile
from agent.scripted_user import Say
from agent.thinker import Thinker
from apps.bench_clips import clips
from apps.bench_talks import talk
from duplex.events import UserTranscript
from encoders.ears import HeardVectors

TEXT = "What is it?"


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(Thinker.tiny(0))


def heard(chat: Chat, text: str, first_key: int = -1) -> HeardVectors:
    """The text's own embeddings, one a letter."""
    keys = tuple(first_key - place for place in range(len(text)))
    return HeardVectors(keys, tuple(text), chat.thinker.embed(chat.encode(text)).numpy())


def read(chat: Chat, message: Message) -> tuple[torch.Tensor, list[int]]:
    context = chat.open()
    for _ in chat.sync_steps(context, chat.render("Be kind.", [message])):
        pass
    return chat.thinker.logits(context).clone(), context.keys


def test_embeddings_that_were_heard_are_read_as_the_words_are(chat: Chat) -> None:
    written, keys = read(chat, Message("user", TEXT))
    spoken, heard_keys = read(chat, Message("user", TEXT, heard(chat, TEXT)))
    assert torch.allclose(written, spoken, atol=1e-4)
    assert len(heard_keys) == len(keys) and all(a == b for a, b in zip(keys, heard_keys, strict=True) if b >= 0)
    assert [key for key in heard_keys if key < 0] == list(range(-1, -1 - len(TEXT), -1))
    other = heard(chat, TEXT)
    other = HeardVectors(other.keys, other.pieces, other.vectors[::-1].copy())
    assert not torch.allclose(read(chat, Message("user", TEXT, other))[0], written, atol=1e-2)


def test_what_was_read_while_it_was_spoken_is_not_read_again(chat: Chat) -> None:
    context = chat.open()
    part, whole = "What is", TEXT
    speech = heard(chat, whole)
    for _ in chat.sync_steps(
        context, chat.render("Be kind.", [Message("user", part, heard(chat, part))], open_assistant=False, open_last=True)
    ):
        pass
    already = context.fed
    keys = chat.render("Be kind.", [Message("user", whole, speech)])
    steps = list(chat.sync_steps(context, keys))
    assert context.keys == keys and len(keys) - already < 32 and len(steps) == 1
    assert torch.allclose(chat.thinker.logits(context), read(chat, Message("user", whole, speech))[0], atol=1e-4)


def test_keys_whose_vectors_are_lost_are_refused(chat: Chat) -> None:
    keys = list(chat.render("Be kind.", [Message("user", TEXT, heard(chat, TEXT))]))
    with pytest.raises(ValueError, match="negative key"):
        list(chat.sync_steps(chat.open(), keys))


def test_a_message_is_read_as_text_up_to_its_speech(chat: Chat) -> None:
    history = History()
    history.add("user", "Well.")
    (message,) = history.with_user(TEXT, heard(chat, TEXT))
    assert message.text == f"Well. {TEXT}" and message.written == "Well. "
    vocabulary = chat.thinker.vocabulary
    keys = render_chat(vocabulary, "", [message], open_assistant=False)
    assert bytes(key for key in keys if 0 <= key < 256).decode().count("Well. ") == 1
    assert sum(key < 0 for key in keys) == len(TEXT)
    assert [m.speech for m in history.messages] == [None]


def test_a_sentence_left_open_lacks_its_marks(chat: Chat) -> None:
    opened = Message("user", TEXT, heard(chat, TEXT)).open_ended()
    assert opened.text == "What is it" and opened.speech is not None
    assert "".join(opened.speech.pieces) == "What is it" and len(opened.speech.vectors) == 10
    assert Message("user", TEXT).open_ended() == Message("user", "What is it")


def test_words_that_are_not_the_speech_are_read_as_text(chat: Chat) -> None:
    (message,) = History().with_user("Something else", heard(chat, TEXT))
    assert message.speech is None


def test_a_conversation_is_held_by_ear(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = load_profile("tiny", ["input=projector", "encoder=whisper"])
    parts = build_parts(profile)
    seen: list[list[int]] = []
    plain = Chat.sync_steps

    def noting(self, context, keys):
        seen.append(list(keys))
        return plain(self, context, keys)

    monkeypatch.setattr(Chat, "sync_steps", noting)
    done = talk(profile, parts, [Say(clips("questions")[0].samples())], paced=False, patience_s=2.0)
    finals = [e.text for e in done.of(UserTranscript) if e.final]
    spoken = [[key for key in keys if key < 0] for keys in seen if any(key < 0 for key in keys)]
    assert finals and finals[0] and len(spoken) > 1
    shared = np.intersect1d(spoken[0], spoken[-1])
    assert len(shared) > 0  # what was read early is what was answered
