"""The agent's own voice with random weights: words where the pointer puts them, the same sound however the text came."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from decoders.edge_voice import EdgeSoundConfig, EdgeVoice
from decoders.flow_checkpoint import tiny
from decoders.flow_voice import VOICE
from decoders.phonemes import PhonemeTable
from decoders.pointer_lm import PointerLM, PointerLMConfig
from decoders.pointer_lm_streaming import PointerDecoder, PointerDrawConfig
from decoders.pointer_speech import PointerSpeech
from decoders.reading import TextReader
from decoders.tiny_voice import tiny_phonemes, tiny_table
from decoders.token2wav import Token2Wav, Token2WavConfig
from decoders.voice import Speech

TEXT = "Hello there, my old friend. It is a very fine day for a walk in the park, is it not? Yes! Let us go then, you and I."
WORDS = {index: word for index, word in enumerate(TEXT.replace(" ", "\n ").split("\n"))}
SMALL = dataclasses.replace(
    VOICE,
    window=7,
    steps=1,
    encoder=dataclasses.replace(VOICE.encoder, width=16, heads=2, feed_forward=16),
    estimator=dataclasses.replace(VOICE.estimator, channels=16, heads=2, head_width=8),
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    hold_frames: int = 3
    frame_samples: int = 280


class Vocoder:
    """A frame's sum, held for its length; 3 frames late."""

    config = Sizes()

    def open(self, seed: int | None) -> list[Tensor]:
        return []

    def step(self, state: list[Tensor], mel: Tensor, final: bool) -> Tensor:
        state.append(mel)
        frames = torch.cat(state, dim=1)
        count = frames.shape[1] if final else max(frames.shape[1] - self.config.hold_frames, 0)
        state[:] = [frames[:, count:]]
        return (0.01 * frames[:, :count].sum(0)).repeat_interleave(self.config.frame_samples)


@pytest.fixture(scope="module")
def voice() -> EdgeVoice:
    torch.manual_seed(0)
    net = PointerLM(PointerLMConfig(width=32, layers=2, heads=2, mlp=64, head_width=16, llm_width=8))
    with torch.no_grad():
        net.chain.heads[-1].outer.bias[1] += 6.0  # nearly always one phone a code
        net.projector.linear.weight.normal_(std=0.3)
    decoder = PointerDecoder(net, PointerDrawConfig(longest_phone_s=0.3))
    table = PhonemeTable(tiny_table())
    marks = [table.phones(mark)[0] for mark in ",.!?"]
    reader = TextReader(tiny_phonemes, table, lambda tokens: "".join(WORDS[token] for token in tokens))
    embeddings = torch.randn(len(WORDS), 8)
    wav = Token2Wav(tiny(0, SMALL), Vocoder(), Token2WavConfig(first_audio_ms=40.0, hop_codes=5, max_hop_codes=20))
    return EdgeVoice(
        PointerSpeech(decoder, marks, least_phones=20),
        reader,
        lambda tokens: embeddings[list(tokens)],
        wav,
        EdgeSoundConfig(hidden_states=True),
    )


def say(voice: EdgeVoice, sizes: Sequence[int], seed: int = 0, hidden: bool = True) -> list[Speech]:
    state, chunks, at = voice.open(seed), [], 0
    states = np.random.default_rng(0).normal(size=(len(WORDS), 8)).astype(np.float32)
    for size in sizes:
        tokens = list(range(at, at + size))
        chunks += voice.push(state, tokens, states[at : at + size] if hidden else None)
        at += size
    assert at == len(WORDS)
    return [*chunks, *voice.finish(state)]


def joined(chunks: Sequence[Speech]) -> tuple[np.ndarray, list[tuple[str, int]]]:
    words, at = [], 0
    for chunk in chunks:
        words += [(word.text, at + word.end) for word in chunk.words]
        assert all(0 <= word.end <= len(chunk.samples) for word in chunk.words)
        at += len(chunk.samples)
    return np.concatenate([chunk.samples for chunk in chunks]), words


def test_all_words_end_in_order_within_the_sound(voice: EdgeVoice) -> None:
    samples, words = joined(say(voice, [len(WORDS)]))
    assert "".join(text for text, _ in words) == TEXT
    ends = [end for _, end in words]
    assert ends == sorted(ends) and ends[-1] <= len(samples)
    assert len(set(ends)) > len(ends) * 0.6
    assert np.abs(samples).max() <= 1.0 and samples.dtype == np.float32
    spoken = [len(text.strip(" ,.!?")) for text, _ in words[:-1]]
    lasted = np.diff([0, *ends[:-1]])
    assert np.corrcoef(spoken, lasted)[0, 1] > 0.8  # longer words last longer


def test_any_grouping_gives_the_same_sound_and_words(voice: EdgeVoice) -> None:
    whole, words = joined(say(voice, [len(WORDS)]))
    for sizes in ([1] * len(WORDS), [5] * (len(WORDS) // 5) + [len(WORDS) % 5]):
        samples, other = joined(say(voice, sizes))
        np.testing.assert_allclose(samples, whole, atol=1e-5)
        assert [text for text, _ in other] == [text for text, _ in words]
        assert [end for _, end in other][:-2] == [end for _, end in words][:-2]


def test_hidden_states_and_seeds_are_heard(voice: EdgeVoice) -> None:
    whole, _ = joined(say(voice, [len(WORDS)]))
    for how in ({"seed": 1}, {"hidden": False}):
        other, _ = joined(say(voice, [len(WORDS)], **how))
        assert len(other) != len(whole) or np.abs(other - whole).max() > 1e-3


def test_hidden_states_can_be_left_out(voice: EdgeVoice) -> None:
    plain = copy.copy(voice)
    plain.config = EdgeSoundConfig()
    alone, _ = joined(say(voice, [len(WORDS)], hidden=False))
    np.testing.assert_array_equal(joined(say(plain, [len(WORDS)]))[0], alone)


def test_sound_begins_before_the_sentence_is_written(voice: EdgeVoice) -> None:
    state, tokens = voice.open(), 0
    while state.given == 0:
        for _ in voice.push(state, [tokens]):
            pass
        tokens += 1
    assert tokens <= 6


def test_steps_are_small_and_may_be_left_at_any_time(voice: EdgeVoice) -> None:
    state = voice.open()
    steps: Iterator[Speech] = voice.push(state, list(range(len(WORDS))))
    codes = []
    for _ in range(10):
        before = state.speech.codes
        next(steps)
        codes.append(state.speech.codes - before)
    assert max(codes) <= 5
    del steps
    rest, words = joined([*voice.finish(state)])
    assert len(rest) and "".join(text for text, _ in words).endswith("you and I.")


def test_two_replies_do_not_touch_each_other(voice: EdgeVoice) -> None:
    alone, _ = joined(say(voice, [len(WORDS)]))
    first, second, out = voice.open(), voice.open(5), []
    states = np.random.default_rng(0).normal(size=(len(WORDS), 8)).astype(np.float32)
    for token in range(len(WORDS)):
        out += voice.push(first, [token], states[token : token + 1])
        list(voice.push(second, [token], states[token : token + 1]))
    beside, _ = joined([*out, *voice.finish(first)])
    np.testing.assert_allclose(beside, alone, atol=1e-5)


def test_nothing_to_say(voice: EdgeVoice) -> None:
    state = voice.open()
    assert list(voice.push(state, [])) == [] and list(voice.finish(state)) == []


def test_there_is_one_speaker(voice: EdgeVoice) -> None:
    with pytest.raises(ValueError, match="cannot be changed"):
        voice.open(0, object())


def test_settings_are_checked() -> None:
    for wrong in ({"codes_per_step": 0}, {"gain_db": 99.0}, {"fade_ms": -1.0}, {"lead_ms": -1.0}):
        with pytest.raises(ValueError):
            EdgeSoundConfig(**wrong)
