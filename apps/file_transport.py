"""A recording as the user: its frames come at their time on the running loop's clock, and both sides go into one stereo file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

import numpy as np

from apps.stereo_writer import StereoWriter
from duplex.audio import AGENT_RATE_HZ, FRAME_MS, USER_FRAME, USER_RATE_HZ, Frame, Samples
from duplex.resample import Resampler


class FileTransport:
    """Left channel: the user at 24 kHz; right channel: the agent. As long as the input, to the sample."""

    def __init__(self, frames: Iterable[Samples], total_samples: int, writer: StereoWriter) -> None:
        """`frames` yields [USER_FRAME] samples at 16 kHz; `total_samples` is the input's exact length (user samples)."""
        self._frames: Iterator[Samples] = iter(frames)
        self._left_over = total_samples * AGENT_RATE_HZ // USER_RATE_HZ
        self._writer = writer
        self._up = Resampler(USER_RATE_HZ, AGENT_RATE_HZ)
        self._left = np.zeros(0, np.float32)
        self._right = np.zeros(0, np.float32)
        self._number = 0
        self._began: float | None = None
        self._closed = False
        self.late_frames = 0
        """Frames that were taken more than 100 ms after their time."""

    async def receive(self) -> Frame | None:
        """See agent.transport.Transport. Raises InputError when the recording breaks off."""
        loop = asyncio.get_running_loop()
        if self._began is None:
            self._began = loop.time()
        near = next(self._frames, None)
        if near is None:
            return None
        due = self._began + (self._number + 1) * FRAME_MS / 1000
        await asyncio.sleep(max(due - loop.time(), 0.0))
        self.late_frames += loop.time() - due > 0.1
        frame = Frame(self._number * USER_FRAME, near)
        self._number += 1
        self._left = np.concatenate([self._left, self._up.push(near)])
        return frame

    async def send(self, samples: Samples) -> None:
        """See agent.transport.Transport. Raises OutputError when the file cannot be written."""
        self._right = np.concatenate([self._right, samples])
        self._write(min(len(self._left), len(self._right)))

    def committed(self) -> int:
        """A file plays at once."""
        return 0

    async def close(self) -> None:
        """Write what is left and finish the file; may be called twice."""
        if self._closed:
            return
        self._closed = True
        try:
            self._left = np.concatenate([self._left, self._up.flush()])
            count = min(len(self._left), len(self._right))
            if count < self._left_over and self._number * USER_FRAME * AGENT_RATE_HZ // USER_RATE_HZ >= self._left_over:
                count = self._left_over  # the resampler may end a sample short
            self._left, self._right = _fit(self._left, count), _fit(self._right, count)
            self._write(count)
        finally:
            self._writer.close()

    def _write(self, count: int) -> None:
        count = min(count, self._left_over)
        self._writer.write(self._left[:count], self._right[:count])
        self._left, self._right = self._left[count:], self._right[count:]
        self._left_over -= count


def _fit(samples: Samples, count: int) -> Samples:
    return samples[:count] if len(samples) >= count else np.pad(samples, (0, count - len(samples)))
