"""The newest feature frames of a stream in one buffer, and where to cut them: what ears with a bounded window have in common.

Notable: the buffer is allocated once; when it is full, the frames that must be kept move to its front. So a stream of hours costs what a
minute costs, and taking frames is a copy of those frames alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from duplex.audio import USER_RATE_HZ, Samples

Frames = NDArray[np.float32]

FRAME_RATE_HZ = 100
"""Frames per second, Whisper's and Kaldi's alike."""
BUFFER_S = 30
MOST_KEPT_S = BUFFER_S - 1
"""A second is taken in at a time, and what is kept must leave room for it."""
BANDS = 80
_BLOCK_SAMPLES = USER_RATE_HZ  # long input is taken in one second at a time


@dataclass(slots=True)
class RecentFrames:
    """Up to 30 s of [t, 80] frames, the newest last."""

    buffer: Frames = field(default_factory=lambda: np.empty((BUFFER_S * FRAME_RATE_HZ, BANDS), np.float32))
    """Rows [0, filled) are valid."""
    filled: int = 0
    """How many there are."""

    def add(self, frames: Frames, keep: int) -> None:
        """Append [n, 80] frames; of the older ones at least `keep` stay. n and keep together are at most the buffer's length."""
        if self.filled + len(frames) > len(self.buffer):
            self.buffer[:keep] = self.buffer[self.filled - keep : self.filled]
            self.filled = keep
        self.buffer[self.filled : self.filled + len(frames)] = frames
        self.filled += len(frames)

    def last(self, count: int) -> Frames:
        """[count, 80] the newest frames, a view."""
        return self.buffer[self.filled - count : self.filled]


def blocks(samples: Samples) -> Iterator[Samples]:
    """[n] samples as float32 in blocks of at most a second; NaN counts as 0, values beyond full scale are clipped."""
    clean = np.clip(np.nan_to_num(np.asarray(samples, np.float32), nan=0.0, posinf=1.0, neginf=-1.0), -1.0, 1.0)
    for at in range(0, len(clean), _BLOCK_SAMPLES):
        yield clean[at : at + _BLOCK_SAMPLES]


def quietest(frames: Frames, at_least: int) -> int:
    """The middle of the quietest 200 ms of [t, 80] frames, not before frame `at_least`: a place to cut, in frames."""
    loudness = frames.mean(axis=1)
    width = FRAME_RATE_HZ // 5
    smooth = np.convolve(loudness, np.full(width, 1.0 / width, np.float32), mode="valid")  # entry i covers [i, i + width)
    return int(smooth[at_least - width // 2 :].argmin()) + at_least
