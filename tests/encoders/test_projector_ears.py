"""Ears made of the projector: any chunking, any moment of asking, nothing heard twice, bounded memory."""

import numpy as np
import pytest
import torch

from encoders.projector_ears import ProjectorEars, ProjectorEarsConfig
from tests.encoders.babble import babble, hear


def embed(ids):
    return 0.02 * torch.randn(256, 24, generator=torch.Generator().manual_seed(7))[list(ids)]


def decode(ids):
    return bytes(ids).decode()


@pytest.fixture(scope="module")
def ears():
    return ProjectorEars.tiny(embed, decode, 3)


def listened(ears, audio, every, chunk=320):
    """Asked every so many samples, as a session asks."""
    state, asked = ears.open(), 0
    ears.begin_turn(state, 0)
    for at in range(0, len(audio), chunk):
        ears.feed(state, audio[at : at + chunk])
        if at - asked >= every:
            asked = at
            window = ears.window(state)
            ears.settle(state, window, ears.transcribe(window))
    return state


@pytest.mark.parametrize("chunk", [97, 1000, 48_000])
def test_any_chunking_gives_the_same_words(ears, chunk):
    audio = babble(3)
    one, other = (ears.transcribe(ears.window(hear(ears, audio, size))) for size in (len(audio), chunk))
    assert one.text == other.text != ""
    assert np.allclose(one.speech.vectors, other.speech.vectors, atol=1e-4)


@pytest.mark.parametrize("every", [3200, 9600, 20_000])
def test_it_does_not_matter_when_the_words_are_asked_for(ears, every):
    audio = babble(18, 5)
    at_once = ears.transcribe(ears.window(hear(ears, audio, 320)))
    now_and_then = ears.transcribe(ears.window(listened(ears, audio, every)))
    assert now_and_then.text == at_once.text
    assert np.allclose(now_and_then.speech.vectors, at_once.speech.vectors, atol=1e-4)


def test_what_is_final_keeps_its_keys_and_is_not_heard_again(ears):
    audio = babble(6, 2)
    state = listened(ears, audio[:64_000], 9600)
    first = ears.transcribe(ears.window(state))
    ears.settle(state, ears.window(state), first)
    ears.feed(state, audio[64_000:])
    window = ears.window(state)
    second = ears.transcribe(window)
    final = len(first.taken.said)
    assert final and second.speech.keys[:final] == first.speech.keys[:final]
    assert len(window.frames) < 100 * 2 + 33
    assert len(set(second.speech.keys)) == len(second.speech.keys) and max(second.speech.keys) < 0


@pytest.mark.parametrize(("seed", "says"), [(1, "Yeah"), (5, "Yeah"), (0, "no"), (7, "no")])
def test_how_likely_the_first_word_shows_listening_comes_with_the_first_token(seed, says):
    listens = ProjectorEars.tiny(embed, lambda ids: "Yeah" if decode(ids) < "n" else " no", seed)
    never = ProjectorEars.tiny(embed, lambda ids: " no", seed)
    audio = babble(4)
    heard = listens.transcribe(listens.window(hear(listens, audio, 320)))
    assert heard.text.startswith(says)
    assert 0 < heard.listening <= 1 and (heard.listening > 0.5) == (says == "Yeah")
    assert never.transcribe(never.window(hear(never, audio, 320))).listening is None
    assert listens.transcribe(listens.window(listened(listens, audio, 9600))).listening == pytest.approx(heard.listening, abs=1e-4)


def test_the_pieces_are_the_words(ears):
    heard = ears.transcribe(ears.window(hear(ears, babble(4), 320)))
    assert "".join(heard.speech.pieces).strip() == heard.text
    assert heard.speech.vectors.shape == (len(heard.speech.keys), 24)
    trimmed = heard.speech.without_end(heard.text)
    assert trimmed.keys == () and trimmed.vectors.shape == (0, 24)


def test_a_new_turn_forgets_the_old_one_and_an_old_window_settles_nothing(ears):
    audio = babble(4, 9)
    state = hear(ears, audio, 320)
    window = ears.window(state)
    old = ears.transcribe(window)
    ears.begin_turn(state, len(audio))
    ears.settle(state, window, old)
    assert state.taken is None
    empty = ears.transcribe(ears.window(state))
    assert (empty.text, empty.no_speech, empty.speech) == ("", 1.0, None)


def test_long_turns_go_on_and_memory_is_bounded(ears):
    audio = np.tile(babble(5, 1), 9)
    at_first, later = (listened(ears, some, 9600) for some in (audio[:100_000], audio))

    def kept(state):
        stream = state.taken.stream
        return [x.numel() for pair in stream.past for x in pair] + [x.numel() for x in (*stream.tails, stream.near, stream.stem)]

    assert kept(at_first) == kept(later) and later.taken.stream.chunks > 130
    assert len(ears.window(later).frames) < 150


def test_vectors_can_be_moved_to_the_embeddings():
    heard, snapped = (ProjectorEars.tiny(embed, decode, 3, ProjectorEarsConfig(snap=snap)) for snap in (0.0, 1.0))
    one, other = (ears.transcribe(ears.window(hear(ears, babble(3), 320))) for ears in (heard, snapped))
    assert one.text == other.text
    expected = embed([ord(piece) for piece in other.speech.pieces]).numpy()
    assert np.allclose(other.speech.vectors, expected, atol=1e-5)
    assert not np.allclose(one.speech.vectors, expected, atol=1e-3)


@pytest.mark.parametrize("wrong", [{"keep_s": 40}, {"end_silence_s": 3}, {"end_silence_s": 0.2}, {"snap": 2}])
def test_wrong_settings_say_what_to_change(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ProjectorEarsConfig(**wrong)


def test_in_bfloat16_it_hears_nearly_the_same():
    exact, light = (ProjectorEars.tiny(embed, decode, 3) for _ in range(2))
    light.compute_in_bfloat16()
    assert light.net.out.weight.dtype == light.head.table.dtype == torch.bfloat16
    one, other = (ears.transcribe(ears.window(listened(ears, babble(4, 4), 9600))) for ears in (exact, light))
    assert one.speech.vectors.dtype == other.speech.vectors.dtype == np.float32
    assert one.text[:2] == other.text[:2] != ""
    first, near = one.speech.vectors[:2], other.speech.vectors[:2]
    assert 0 < np.abs(first - near).max() < 0.1 * np.abs(first).max()
