"""The spectrogram is Whisper's, and the stream gives what the whole gives, however it is fed."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from encoders import mel


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(samples) * 0.1).astype(np.float32)


def streamed(audio: np.ndarray, cuts: list[int]) -> np.ndarray:
    state = mel.MelState()
    parts = [mel.feed(state, piece) for piece in np.split(audio, sorted(cuts))]
    return np.concatenate((*parts, mel.tail(state)))


def test_filter_bank_is_whispers():
    assert np.allclose(mel.filter_bank(), WhisperFeatureExtractor().mel_filters, atol=1e-8)


def test_equals_the_librarys_features():
    audio = noise(48_000)
    library = WhisperFeatureExtractor()(audio, sampling_rate=16_000, return_tensors="np").input_features[0].T[:300]
    assert np.abs(mel.normalise(mel.log_mel(audio)) - library).max() < 1e-4


@settings(deadline=None, max_examples=40)
@given(length=st.integers(0, 4000), data=st.data())
def test_any_chunking_gives_the_offline_result(length, data):
    audio = noise(length)
    cuts = data.draw(st.lists(st.integers(0, length), max_size=8))
    whole = mel.log_mel(audio)
    assert whole.shape == (-(-length // 160), 80)
    assert np.abs(streamed(audio, cuts) - whole).max(initial=0.0) < 1e-5


def test_future_input_never_changes_past_frames():
    one, other = noise(8000), noise(8000, seed=1)
    other[:5000] = one[:5000]
    a, b = mel.feed(mel.MelState(), one[:5000]), mel.feed(mel.MelState(), other)
    assert len(a) == 31  # frame 30 ends with sample 4999
    assert np.abs(a - b[: len(a)]).max() < 1e-5
    assert np.abs(mel.feed(mel.MelState(), one)[len(a) + 3 :] - b[len(a) + 3 :]).max() > 0.1


def test_tail_leaves_the_stream_alone():
    audio = noise(3210)
    state = mel.MelState()
    before = mel.feed(state, audio[:1605])
    mel.tail(state)
    after = mel.feed(state, audio[1605:])
    assert np.abs(np.concatenate((before, after, mel.tail(state))) - mel.log_mel(audio)).max() < 1e-5


def test_state_does_not_grow():
    state = mel.MelState()
    for _ in range(50):
        mel.feed(state, noise(320))
        assert len(state.rest) < 400


def test_level_makes_quiet_and_loud_alike_but_not_hiss():
    frames = mel.log_mel(noise(16_000))
    assert np.abs(mel.level(frames) - mel.level(frames - 1.2)).max() < 1e-5  # 12 dB less
    silence = mel.level(mel.log_mel(np.zeros(16_000, np.float32)))
    assert np.allclose(silence, mel.SILENCE)
    hiss = mel.log_mel(noise(16_000) * 1e-4)  # -100 dBFS
    assert mel.level(hiss).max() < mel.level(frames).max() - 0.5


def test_a_frame_costs_well_below_a_third_of_a_millisecond():
    state, frame = mel.MelState(), noise(320)
    mel.feed(state, noise(3200))
    costs = []
    for _ in range(200):
        start = time.thread_time()
        mel.feed(state, frame)
        costs.append(time.thread_time() - start)
    assert sorted(costs)[20] < 0.3e-3  # a low percentile: other processes share the machine


@pytest.mark.parametrize("length", [0, 1, 159, 160, 200, 201, 400])
def test_short_input(length):
    assert mel.log_mel(noise(length)).shape == (-(-length // 160), 80)
