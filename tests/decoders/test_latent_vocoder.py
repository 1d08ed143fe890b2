"""The small voice from codes to sound: when it begins, that pieces are the whole, and that replies are strangers to each other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoders.flow_checkpoint import tiny
from decoders.flow_graph import GraphFlow
from decoders.flow_judging import join_step
from decoders.latent_vocoder import LatentVocoder
from decoders.token2wav import VOICE_STEPS, PreparedVoice, Sound, Token2Wav, Token2WavState
from duplex.resample import LiveResampler
from tests.decoders.test_flow_voice import SMALL
from tests.decoders.test_hifigan_stream import CHANNELS, GAN, whole

CODE = 4 * 256 * 24_000 / 22_050  # samples


@cache
def machine() -> Token2Wav:
    flow = tiny(0, dataclasses.replace(SMALL, mel=CHANNELS, steps=2))
    return Token2Wav(flow, LatentVocoder(GAN, torch.full((CHANNELS,), 0.3), torch.full((CHANNELS,), 0.7)), VOICE_STEPS)


@cache
def prepared() -> PreparedVoice:
    return PreparedVoice(machine().flow.open(torch.arange(0), torch.zeros(0, CHANNELS), None), 0)


def fresh() -> Token2WavState:
    return machine().open(prepared())


def speech(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 4375, length).tolist()


def samples(sounds: Iterable[Sound]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(sound.samples for sound in sounds)])


def run(state: Token2WavState, pieces: Iterable[Sequence[int]]) -> list[Sound]:
    sounds = [sound for piece in pieces for sound in machine().push(state, piece)]
    return sounds + list(machine().finish(state))


def test_first_sound_comes_after_seven_codes() -> None:
    state = fresh()
    heard = [len(samples(machine().push(state, [code]))) for code in speech(22)]
    assert [index + 1 for index, count in enumerate(heard) if count] == [7, 12, 17, 22]
    assert heard[6] / 24_000 == pytest.approx(0.107, abs=0.001)
    assert heard[11] == pytest.approx(5 * CODE, abs=2)


@settings(max_examples=10, deadline=None)
@given(length=st.integers(1, 40), cuts=st.lists(st.integers(0, 40), max_size=6).map(sorted))
def test_any_split_of_the_codes_gives_the_same_sound(length: int, cuts: list[int]) -> None:
    codes = speech(length)
    edges = [0, *(cut for cut in cuts if cut <= length), length]
    one = run(fresh(), [codes])
    other = run(fresh(), [codes[a:b] for a, b in itertools.pairwise(edges)])
    assert len(samples(one)) == round(length * CODE) and one[-1].codes_until == other[-1].codes_until == length
    assert np.array_equal(samples(one), samples(other))


@pytest.mark.parametrize("most", [5, 15])
def test_streaming_is_offline(most: int) -> None:
    codes = speech(43)
    steps = dataclasses.replace(VOICE_STEPS, max_hop_codes=most, growth=3)
    made = Token2Wav(machine().flow, machine().vocoder, steps)
    frames = made.flow.step(made.flow.open(torch.arange(0), torch.zeros(0, CHANNELS), None), torch.tensor(codes), True)
    rate = LiveResampler(22_050, 24_000)
    offline = np.concatenate((rate.push(whole(frames.numpy() * 0.7 + 0.3)), rate.flush()))
    state = made.open(prepared())
    streamed = samples([*(sound for code in codes for sound in made.push(state, [code])), *made.finish(state)])
    assert np.abs(offline).max() > 0.02
    assert streamed.shape == offline.shape and np.allclose(streamed, offline, atol=1e-4)


def test_the_flow_as_a_graph_makes_the_same_sound() -> None:
    codes = speech(33)
    made = Token2Wav(GraphFlow(machine().flow), machine().vocoder, VOICE_STEPS)  # type: ignore[arg-type]
    state = made.open(PreparedVoice(made.flow.open(torch.arange(0), torch.zeros(0, CHANNELS), None), 0))
    parts = [sound for code in codes for sound in made.push(state, [code])]
    assert np.allclose(samples([*parts, *made.finish(state)]), samples(run(fresh(), [codes])), atol=1e-4)


def test_ten_interleaved_replies_are_each_alone() -> None:
    codes = [speech(8 + 4 * index, index) for index in range(10)]
    alone = [samples(run(fresh(), [one])) for one in codes]
    states, heard = [fresh() for _ in codes], [[] for _ in codes]  # type: ignore[var-annotated]
    for place in range(max(map(len, codes))):
        for index, state in enumerate(states):
            if place < len(codes[index]):
                heard[index] += machine().push(state, codes[index][place : place + 1])
    for index, state in enumerate(states):
        heard[index] += machine().finish(state)
        assert np.array_equal(samples(heard[index]), alone[index])


@pytest.mark.parametrize("steps", range(5))
def test_a_cancelled_reply_leaves_no_trace(steps: int) -> None:
    alone = samples(run(fresh(), [speech(24)]))
    list(itertools.islice(machine().push(fresh(), speech(40, 9)), steps))
    assert np.array_equal(samples(run(fresh(), [speech(24)])), alone)


def test_codes_until_follows_the_sound() -> None:
    count = 0
    for sound in run(fresh(), [speech(31)]):
        count += len(sound.samples)
        assert sound.codes_until == (31 if count == round(31 * CODE) else int(count / CODE))


def test_chunks_of_the_flow_join_as_the_offline_pass_does() -> None:
    made = machine()
    codes = torch.tensor(speech(200))
    state = made.flow.open(torch.arange(0), torch.zeros(0, CHANNELS), None)
    streamed = torch.cat([made.flow.step(state, piece, False) for piece in codes.split(5)], dim=1)
    offline = made.flow.step(made.flow.open(torch.arange(0), torch.zeros(0, CHANNELS), None), codes, True)
    joins = join_step(streamed.T, 20), join_step(offline.T[: streamed.shape[1]], 20)
    assert joins[0] == pytest.approx(joins[1], rel=1e-3)


def test_statistics_of_another_voice_are_told() -> None:
    with pytest.raises(ValueError, match="this voice has 6 latent channels"):
        LatentVocoder(GAN, torch.zeros(5), torch.ones(5))
