"""The bridge voice, whole: text kept, sound exact, early and repeatable, any stop survivable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoders.bridge_voice import BridgeConfig, BridgeVoice
from decoders.voice import Speech, Voice
from duplex.audio import AGENT_RATE_HZ

TEXT = "Sure, here it is: Dr. Smith paid $3.50. That was **cheap**, I think! 你好 Bye."


def detokenize(tokens: Sequence[int]) -> str:
    """One byte a token."""
    return bytes(tokens).decode("utf-8", errors="replace")


@pytest.fixture(scope="module")
def voice() -> BridgeVoice:
    return BridgeVoice.tiny(detokenize)


def speak(voice: BridgeVoice, text: str, group: int = 5, seed: int = 0) -> list[Speech]:
    state, tokens, speech = voice.open(seed), list(text.encode()), []
    for at in range(0, len(tokens), group):
        speech += voice.push(state, tokens[at : at + group])
    return speech + list(voice.finish(state))


def samples(speech: list[Speech]) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in speech])


def test_it_is_a_voice(voice: BridgeVoice) -> None:
    typed: Voice = voice
    assert typed.open() is not typed.open()


def test_words_join_to_the_text_and_end_inside_their_chunk(voice: BridgeVoice) -> None:
    speech = speak(voice, TEXT)
    assert "".join(word.text for chunk in speech for word in chunk.words) == TEXT
    for chunk in speech:
        ends = [word.end for word in chunk.words]
        assert ends == sorted(ends) and all(0 <= end <= len(chunk.samples) for end in ends)
        assert chunk.samples.dtype == np.float32 and np.abs(chunk.samples).max(initial=0.0) <= 1.0


def test_grouping_of_tokens_does_not_change_a_sample(voice: BridgeVoice) -> None:
    assert np.array_equal(samples(speak(voice, TEXT, group=1)), samples(speak(voice, TEXT, group=1000)))


def test_seed_decides(voice: BridgeVoice) -> None:
    assert np.array_equal(samples(speak(voice, TEXT, seed=3)), samples(speak(voice, TEXT, seed=3)))
    assert len(samples(speak(voice, TEXT, seed=3))) != len(samples(speak(voice, TEXT, seed=4)))


def test_chunk_size_does_not_change_the_sound() -> None:
    small = BridgeVoice.tiny(detokenize, BridgeConfig(first_chunk_frames=4, chunk_frames=9))
    large = BridgeVoice.tiny(detokenize, BridgeConfig(first_chunk_frames=1000, chunk_frames=1000))
    a, b = samples(speak(small, TEXT)), samples(speak(large, TEXT))
    assert len(a) == len(b) and np.abs(a - b).max() <= 1e-4


def test_sound_starts_when_the_first_clause_is_complete_with_a_small_chunk(voice: BridgeVoice) -> None:
    state = voice.open()
    assert list(voice.push(state, b"The answer is yes.")) == []
    first = next(iter(voice.push(state, b" And")))
    assert 0 < len(first.samples) <= (BridgeConfig().first_chunk_frames + 3) * 256 * AGENT_RATE_HZ / 22050


def test_chunks_are_bounded(voice: BridgeVoice) -> None:
    most = max(len(chunk.samples) for chunk in speak(voice, "word " * 60 + "9" * 200))
    assert most <= 2.0 * AGENT_RATE_HZ


def test_pause_stands_between_clauses_and_not_before_the_first(voice: BridgeVoice) -> None:
    state = voice.open()
    first = list(voice.say(state, "One two three."))
    second = next(iter(voice.say(state, "Four.")))
    quiet = round(0.3 * AGENT_RATE_HZ)
    assert np.any(first[0].samples[:200]) and not np.any(second.samples[:quiet]) and np.any(second.samples[quiet : quiet + 400])


def test_clause_edges_are_faded(voice: BridgeVoice) -> None:
    sound = samples(list(voice.say(voice.open(), "One two three.")))
    assert max(abs(sound[0]), abs(sound[-1])) < 0.01


def test_text_that_makes_no_sound_is_still_told(voice: BridgeVoice) -> None:
    speech = speak(voice, "😀 你好")
    assert "".join(word.text for chunk in speech for word in chunk.words) == "😀 你好"
    assert len(samples(speech)) == 0


def test_nothing_in_nothing_out(voice: BridgeVoice) -> None:
    state = voice.open()
    assert list(voice.push(state, [])) == [] and list(voice.finish(state)) == []


def test_abandoned_response_does_not_disturb_the_next(voice: BridgeVoice) -> None:
    state = voice.open()
    next(iter(voice.push(state, list(b"The answer is yes. And so"))))
    assert np.array_equal(samples(speak(voice, TEXT)), samples(speak(BridgeVoice.tiny(detokenize), TEXT)))


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=80), st.integers(1, 9))
def test_any_text_survives(text: str, group: int) -> None:
    speech = speak(BridgeVoice.tiny(detokenize), text.encode(errors="replace").decode(), group)
    assert "".join(word.text for chunk in speech for word in chunk.words) == text


@pytest.mark.parametrize("bad", [{"first_chunk_frames": 1}, {"gain_db": 90}, {"fade_ms": -1}, {"pause_scale": 9}])
def test_configuration_is_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        BridgeConfig(**bad)  # type: ignore[arg-type]


@pytest.mark.weights
def test_real_voice_speaks_at_the_level_and_pace_of_speech(edge_weights: dict[str, Path]) -> None:
    voice = BridgeVoice.load(edge_weights["vits-joe-split"], edge_weights["vits-joe-config"], detokenize)
    text = "The capital of France is Paris. It lies on the river Seine, and about two million people live there."
    speech = speak(voice, text)
    sound = samples(speech)
    level = 20 * np.log10(np.sqrt(np.mean(np.square(sound[np.abs(sound) > 0.003]))))
    assert -23.0 <= level <= -17.0
    assert 4.5 <= len(sound) / AGENT_RATE_HZ <= 8.5
    assert len(speech[0].samples) < 0.3 * AGENT_RATE_HZ
