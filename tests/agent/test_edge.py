"""The voice that is trained here, at a tiny size, in a session: an interruption leaves what was heard, and a reply is said whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from agent.build import build_parts
from agent.chat import Chat
from agent.edge import EdgeVoiceConfig, tiny_voice
from agent.profiles import Profile, load_profile
from agent.read_along import read_along
from agent.thinker import Thinker
from agent.voice_sample import shipped_sample
from decoders.edge_voice import EdgeVoice
from duplex.errors import ConfigError
from duplex.events import ResponseEnded, Trouble
from tests.agent import conversations
from tests.agent.conversations import Line, converse

LONG = "Once upon a time there was a little girl. She lived in a small house by the wood, and she had a red coat. " * 3


class Letters:
    """An LLM of one letter a token, as the scripted thinker has it."""

    hidden_size = 1

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor(tokens, dtype=torch.float32)[:, None] / 100


@pytest.fixture
def voice(monkeypatch: pytest.MonkeyPatch) -> EdgeVoice:
    voice = tiny_voice(EdgeVoiceConfig(), cast(Any, Letters()))
    monkeypatch.setattr(conversations, "ToneVoice", lambda _: voice)
    return voice


def own(folder: Path) -> Profile:
    file = folder / "own.yaml"
    file.write_text("description: tiny\noutput: projector\nencoder: whisper\ndecoder: vits\nweights: []\n")
    return load_profile(file)


def test_a_reply_is_heard_whole(voice: EdgeVoice) -> None:
    done = converse([Line("Hello, how are you?")], ["I am fine. How are you, my friend?"])
    ended = done.of(ResponseEnded)[0]
    assert ended.reason == "completed" and ended.heard == ended.text == "I am fine. How are you, my friend?"
    assert done.of(Trouble) == []
    assert len(done.user.tracks()[1]) > 24_000


def test_an_interruption_leaves_what_was_heard(voice: EdgeVoice) -> None:
    done = converse([Line("Tell me a story."), Line("No, stop it now.", 1.5, "speaking", 2.0)], [LONG, "All right."])
    cut = done.of(ResponseEnded)[0]
    assert cut.reason == "interrupted"
    assert 10 < len(cut.heard) < len(LONG) / 2 and LONG.startswith(cut.heard)


def test_the_profile_builds_it_and_a_text_is_read_along(tmp_path: Path) -> None:
    parts = build_parts(own(tmp_path))
    assert isinstance(parts.voice, EdgeVoice)
    chat = cast(Chat, parts.thinker)
    thinker: Thinker = chat.thinker
    tokens, hidden = read_along(chat, "You are a voice.", "Hello there.")
    assert chat.decode(tokens) == "Hello there." and hidden.shape == (len(tokens), thinker.hidden_size)
    again, states = read_along(chat, "You are a voice.", "Hello there.", "What?")
    assert again == tokens and not np.allclose(states, hidden)
    state = parts.voice.open()
    sound = [*parts.voice.push(state, tokens, hidden), *parts.voice.finish(state)]
    assert sum(len(chunk.samples) for chunk in sound) > 0


def test_settings_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="passage_phones"):
        EdgeVoiceConfig(passage_phones=0)
    profile = own(tmp_path)
    with pytest.raises(ConfigError, match="temperature"):
        build_parts(load_profile(tmp_path / "own.yaml", ["voice.draw.temperature=9"]))
    with pytest.raises(ConfigError, match="cannot be cloned"):
        build_parts(profile, voice=shipped_sample())
