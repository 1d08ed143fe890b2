"""A ring of samples between a sound card's callback and the event loop: one writer, one reader, no lock, no allocation.

Each side moves only its own counter, after it has touched the samples; Python's integers make that move atomic.
"""

from __future__ import annotations

import numpy as np

from duplex.audio import Samples


class SampleRing:
    """Holds up to `capacity` float32 samples."""

    def __init__(self, capacity: int) -> None:
        self._samples = np.zeros(capacity, np.float32)
        self._capacity = capacity
        self.written = 0
        """Samples ever accepted; only the writer moves it."""
        self.taken = 0
        """Samples ever read or skipped; only the reader moves it."""

    def __len__(self) -> int:
        return self.written - self.taken

    def write(self, samples: Samples) -> int:
        """Accept [n] samples, or as many as fit; returns how many. Writer's side."""
        count = min(len(samples), self._capacity - (self.written - self.taken))
        start = self.written % self._capacity
        first = min(count, self._capacity - start)
        self._samples[start : start + first] = samples[:first]
        self._samples[: count - first] = samples[first:count]
        self.written += count
        return count

    def read_into(self, out: Samples) -> int:
        """Fill the beginning of `out` [n] with what there is; returns how many. Reader's side."""
        count = min(len(out), self.written - self.taken)
        start = self.taken % self._capacity
        first = min(count, self._capacity - start)
        out[:first] = self._samples[start : start + first]
        out[first:count] = self._samples[: count - first]
        self.taken += count
        return count

    def read(self) -> Samples:
        """Everything there is, as a new array. Reader's side."""
        out = np.empty(len(self), np.float32)
        return out[: self.read_into(out)]
