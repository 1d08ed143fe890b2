"""Streaming resampling equals offline resampling, whatever the chunks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duplex.resample import LiveResampler, Resampler, resample

RATES = [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000]


@settings(max_examples=60, deadline=None)
@given(
    rate_in=st.sampled_from(RATES),
    rate_out=st.sampled_from(RATES),
    length=st.integers(0, 6_000),
    cuts=st.lists(st.integers(0, 6_000), max_size=12),
    seed=st.integers(0, 99),
)
def test_any_chunking_equals_offline(rate_in: int, rate_out: int, length: int, cuts: list[int], seed: int) -> None:
    signal = np.random.default_rng(seed).uniform(-1, 1, length).astype(np.float32)
    whole = resample(signal, rate_in, rate_out)
    streamer = Resampler(rate_in, rate_out)
    edges = [0, *sorted(min(cut, length) for cut in cuts), length]
    parts = [streamer.push(signal[a:b]) for a, b in itertools.pairwise(edges)]
    streamed = np.concatenate([*parts, streamer.flush()])
    assert streamed.dtype == np.float32
    assert len(streamed) == len(whole)
    np.testing.assert_allclose(streamed, whole, atol=1e-6)
    assert abs(len(whole) - length * rate_out / rate_in) <= 1


@pytest.mark.parametrize("rate_in", RATES)
@pytest.mark.parametrize("live", [False, True])
def test_a_tone_keeps_its_pitch_level_and_place(rate_in: int, live: bool) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(rate_in // 2) / rate_in).astype(np.float32)
    out = LiveResampler(rate_in, 16_000).push(tone) if live else resample(tone, rate_in, 16_000)
    time_out = np.arange(len(out)) / 16_000
    middle = slice(800, len(out) - 800)
    np.testing.assert_allclose(out[middle], np.sin(2 * np.pi * 440 * time_out)[middle], atol=2e-3)


def test_what_lies_above_the_new_band_is_gone() -> None:
    tone = np.sin(2 * np.pi * 11_000 * np.arange(24_000) / 48_000).astype(np.float32)
    assert np.abs(resample(tone, 48_000, 16_000)[800:-800]).max() < 1e-3


def test_equal_rates_pass_through_without_sharing_memory() -> None:
    resampler = Resampler(16_000, 16_000)
    signal = np.arange(10, dtype=np.float32)
    out = resampler.push(signal)
    signal[:] = 0
    assert list(out) == list(range(10))
    assert resampler.delay_s == 0
    assert len(resampler.flush()) == 0


@settings(max_examples=60, deadline=None)
@given(
    rate_in=st.sampled_from(RATES),
    rate_out=st.sampled_from(RATES),
    length=st.integers(0, 4_000),
    cuts=st.lists(st.integers(0, 4_000), max_size=12),
)
def test_live_any_chunking_equals_one_push(rate_in: int, rate_out: int, length: int, cuts: list[int]) -> None:
    signal = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)
    whole_stream, chunked = LiveResampler(rate_in, rate_out), LiveResampler(rate_in, rate_out)
    whole = np.concatenate([whole_stream.push(signal), whole_stream.flush()])
    edges = [0, *sorted(min(cut, length) for cut in cuts), length]
    parts = [chunked.push(signal[a:b]) for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(np.concatenate([*parts, chunked.flush()]), whole, atol=1e-6)
    assert len(whole) == round(length * rate_out / rate_in)


@pytest.mark.parametrize("rate_out", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("rate_in", [8_000, 16_000, 24_000, 44_100, 48_000])
def test_live_agrees_with_soxr_on_speech_band_noise(rate_in: int, rate_out: int) -> None:
    narrow = resample(np.random.default_rng(3).normal(0, 0.2, 3_000).astype(np.float32), 6_000, rate_in)
    live = LiveResampler(rate_in, rate_out)
    ours = np.concatenate([live.push(narrow), live.flush()])
    theirs = resample(narrow, rate_in, rate_out)
    middle = slice(1_500, min(len(ours), len(theirs)) - 1_500)
    error = ours[middle] - theirs[middle]
    assert 10 * np.log10(np.mean(theirs[middle] ** 2) / (np.mean(error**2) + 1e-20)) > 60


def test_live_removes_what_lies_above_the_new_band() -> None:
    tone = np.sin(2 * np.pi * 8_500 * np.arange(24_000) / 48_000).astype(np.float32)
    assert np.abs(LiveResampler(48_000, 16_000).push(tone)[800:-800]).max() < 1e-3


@pytest.mark.parametrize(("rate_in", "rate_out"), [(48_000, 16_000), (44_100, 16_000), (24_000, 48_000), (8_000, 16_000)])
def test_live_gives_every_frame_on_time(rate_in: int, rate_out: int) -> None:
    live = LiveResampler(rate_in, rate_out)
    given_s = got = 0.0
    for _ in range(50):
        got += len(live.push(np.zeros(rate_in // 50, np.float32)))
        given_s += 1 / 50
        assert 0 <= given_s - got / rate_out <= live.delay_s + 1 / rate_out
    assert live.delay_s <= 0.0031


def test_two_streams_share_nothing() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.uniform(-1, 1, 4_800).astype(np.float32) for _ in range(2))
    first, second = Resampler(48_000, 16_000), Resampler(48_000, 16_000)
    mixed = [(first.push(a[i : i + 480]), second.push(b[i : i + 480])) for i in range(0, 4_800, 480)]
    np.testing.assert_allclose(np.concatenate([x for x, _ in mixed] + [first.flush()]), resample(a, 48_000, 16_000), atol=1e-6)
    np.testing.assert_allclose(np.concatenate([y for _, y in mixed] + [second.flush()]), resample(b, 48_000, 16_000), atol=1e-6)


def test_reset_begins_a_fresh_stream() -> None:
    signal = np.random.default_rng(2).uniform(-1, 1, 3_000).astype(np.float32)
    resampler = Resampler(44_100, 16_000)
    first = np.concatenate([resampler.push(signal), resampler.flush()])
    with pytest.raises(ValueError, match="reset"):
        resampler.push(signal)
    resampler.reset()
    np.testing.assert_array_equal(np.concatenate([resampler.push(signal), resampler.flush()]), first)


def test_wrong_input_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="positive"):
        Resampler(0, 16_000)
    with pytest.raises(ValueError, match="mono"):
        Resampler(8_000, 16_000).push(np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match="positive"):
        LiveResampler(16_000, -1)
    with pytest.raises(ValueError, match="mono"):
        LiveResampler(8_000, 16_000).push(np.zeros((4, 2), np.float32))
    flushed = LiveResampler(8_000, 16_000)
    flushed.flush()
    with pytest.raises(ValueError, match="reset"):
        flushed.push(np.zeros(4, np.float32))
