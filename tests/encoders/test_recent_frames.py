"""The buffer of newest frames keeps what was asked, whatever the pieces; sound is cleaned; cuts fall into gaps."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from encoders.recent_frames import BANDS, RecentFrames, blocks, quietest


@given(st.lists(st.integers(0, 101), max_size=90), st.integers(1, 2000))
def test_the_last_frames_are_the_stream_s_last_however_it_came(sizes: list[int], keep: int) -> None:
    recent, fed = RecentFrames(), 0
    for size in sizes:
        frames = np.repeat(np.arange(fed, fed + size, dtype=np.float32)[:, None], BANDS, axis=1)
        recent.add(frames, keep)
        fed += size
    count = min(keep, fed)
    assert np.array_equal(recent.last(count)[:, 0], np.arange(fed - count, fed))
    assert recent.filled <= len(recent.buffer)


@given(st.lists(st.floats(width=32), max_size=50))
def test_blocks_are_clean_and_whole(values: list[float]) -> None:
    samples = np.array(values, np.float32)
    clean = np.concatenate([*blocks(samples), np.empty(0, np.float32)])
    assert len(clean) == len(samples) and np.isfinite(clean).all() and (np.abs(clean) <= 1).all()
    inside = np.isfinite(samples) & (np.abs(samples) <= 1)
    assert np.array_equal(clean[inside], samples[inside])
    assert all(len(block) <= 16_000 for block in blocks(np.zeros(40_000, np.float32)))


def test_the_quietest_spot_is_in_the_gap() -> None:
    frames = np.zeros((1000, 80), np.float32)
    frames[100:130] = -5  # before the allowed part
    frames[640:665] = -4
    assert 640 <= quietest(frames, 400) <= 665
