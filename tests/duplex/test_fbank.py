"""Kaldi's filter bank: the reference's numbers, and a stream that is the whole clip bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.fbank import FbankConfig, FbankState, fbank, feed
from tests.reference_weights import load_reference

REFERENCE = Path(__file__).parent / "reference"
HAMMING = FbankConfig(window="hamming", scale=32768.0, shrink_short=True)


def noise(n: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * 0.1).astype(np.float32)


def same_but_for_rounding(found, wanted):
    """The reference's own float32 FFT is up to 2.4e-4 (a thousandth of a dB) from the same sums in float64, ours up to 1.6e-4."""
    difference = np.abs(found - wanted)
    assert difference.max() < 3e-4 and difference.mean() < 1e-5


@pytest.mark.parametrize("case", [1, 3])
def test_hamming_agrees_with_the_reference(case):
    tensors, _ = load_reference(REFERENCE / "fbank_hamming.safetensors")
    wanted = tensors[f"cases/{case}/fbank"].numpy()
    found = fbank(tensors[f"cases/{case}/wav"].numpy(), HAMMING)
    assert found.shape == wanted.shape and found.dtype == np.float32
    same_but_for_rounding(found, wanted)


def test_povey_agrees_with_the_reference_of_the_speaker_encoder():
    tensors, _ = load_reference(REFERENCE / "fbank_povey.safetensors")
    found = fbank(tensors["wav16k"][0].numpy())
    found -= found.mean(axis=0)  # the reference has the mean over time taken off
    same_but_for_rounding(found, tensors["campplus_fbank"].numpy())


@given(st.lists(st.integers(0, 900), min_size=1, max_size=12), st.integers(0, 3))
def test_any_chunking_gives_the_frames_of_the_whole(sizes, seed):
    audio = noise(sum(sizes), seed)
    config = FbankConfig(window="hamming", scale=32768.0)
    state, made, at = FbankState(), [], 0
    for size in sizes:
        made.append(feed(state, audio[at : at + size], config))
        at += size
        assert len(state.rest) < config.frame_samples + config.hop_samples
    assert np.array_equal(np.concatenate(made), fbank(audio, config))
    assert (state.fed, state.made) == (len(audio), sum(map(len, made)))


def test_later_input_changes_no_earlier_frame():
    a, b = noise(4000), noise(4000)
    b[2000:] = 0.5
    assert np.array_equal(fbank(a)[:11], fbank(b)[:11])  # frame 10 ends with sample 2000
    assert not np.array_equal(fbank(a)[11], fbank(b)[11])


def test_a_short_clip_makes_one_shorter_frame_if_asked():
    assert [fbank(noise(n), HAMMING).shape for n in (0, 1, 256, 257, 399, 400)] == [(0, 80)] * 3 + [(1, 80)] * 3
    assert fbank(noise(399)).shape == (0, 80)


def test_silence_is_the_log_of_the_smallest_float_step():
    assert np.allclose(fbank(np.zeros(800, np.float32)), np.log(np.finfo(np.float32).eps))


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="one channel"):
        fbank(np.zeros((2, 800), np.float32))
    for wrong in ({"window": "hann"}, {"scale": 0}, {"bands": 0}, {"low_hz": 9000}, {"hop_ms": 30}):
        with pytest.raises(ValueError):
            FbankConfig(**wrong)
