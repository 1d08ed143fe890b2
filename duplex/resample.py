"""Streaming sample-rate conversion: any chunking gives the same samples as one long call.

Two converters with the same methods. `Resampler` is soxr's: fast and steep, for files; but it works in blocks, so live it would
hold back 10 to 60 ms, in fits and starts. `LiveResampler` is a short polyphase filter in numpy: it holds back 24 samples of the
slower rate (1.5 ms at 16 kHz) and gives every 20 ms frame on time. Both keep sounds in their place. Equal
rates pass through untouched and without delay.
"""

from __future__ import annotations

from math import gcd
from typing import Literal

import numpy as np
import soxr
from numpy.lib.stride_tricks import sliding_window_view

from duplex.audio import Samples

Quality = Literal["QQ", "LQ", "MQ", "HQ", "VHQ"]
"""soxr's recipes, from quick to very steep; "HQ" keeps 16 bits clean."""

HALF_WIDTH = 24  # zero crossings of the live filter on each side, at the slower rate
CUTOFF = 0.9  # of half the slower rate; the transition ends just above 1.0
KAISER_BETA = 7.9  # 80 dB of stopband


class Resampler:
    """Mono float32 at `rate_in_hz` to mono float32 at `rate_out_hz`; the filter's state lives here, one object per stream.

    Raises ValueError for rates below 1 Hz, and from `push` after `flush` (call `reset` to begin anew).
    """

    def __init__(self, rate_in_hz: int, rate_out_hz: int, quality: Quality = "HQ") -> None:
        if rate_in_hz < 1 or rate_out_hz < 1:
            raise ValueError(f"Sample rates must be positive, not {rate_in_hz} and {rate_out_hz} Hz.")
        self.rate_in_hz = rate_in_hz
        self.rate_out_hz = rate_out_hz
        self._stream = None if rate_in_hz == rate_out_hz else soxr.ResampleStream(rate_in_hz, rate_out_hz, 1, quality=quality)
        self._flushed = False

    def push(self, samples: Samples) -> Samples:
        """[n] in -> [m] out, m about n * rate_out / rate_in less what the filter still holds; may be empty. Clips nothing."""
        return self._convert(samples, last=False)

    def flush(self) -> Samples:
        """What the filter still holds; in all, push and flush give round(n * rate_out / rate_in) samples, give or take one."""
        out = self._convert(np.zeros(0, np.float32), last=True)
        self._flushed = True
        return out

    def reset(self) -> None:
        """Forget everything heard, ready for a new stream."""
        if self._stream is not None:
            self._stream.clear()
        self._flushed = False

    @property
    def delay_s(self) -> float:
        """Seconds of sound that went in and have not come out yet."""
        return 0.0 if self._stream is None else float(self._stream.delay()) / self.rate_out_hz

    def _convert(self, samples: Samples, *, last: bool) -> Samples:
        if self._flushed:
            raise ValueError("This resampler was flushed; call reset() before giving it a new stream.")
        if samples.ndim != 1:
            raise ValueError(f"A resampler takes mono samples of shape [n], not {samples.shape}.")
        if self._stream is None:
            return samples.astype(np.float32, copy=True)
        out: Samples = self._stream.resample_chunk(np.ascontiguousarray(samples, np.float32), last=last)
        return out


class LiveResampler:
    """The same for live sound: `push` holds back only `delay_s`, the half width of a Kaiser-windowed sinc (80 dB stopband).

    Passes up to 0.8 of half the slower rate. Raises as Resampler does. One object per stream; the filter bank is the object's own.
    """

    def __init__(self, rate_in_hz: int, rate_out_hz: int) -> None:
        if rate_in_hz < 1 or rate_out_hz < 1:
            raise ValueError(f"Sample rates must be positive, not {rate_in_hz} and {rate_out_hz} Hz.")
        self.rate_in_hz = rate_in_hz
        self.rate_out_hz = rate_out_hz
        common = gcd(rate_in_hz, rate_out_hz)
        self._up, self._down = rate_out_hz // common, rate_in_hz // common
        self._identity = rate_in_hz == rate_out_hz
        self._half = int(np.ceil(HALF_WIDTH * max(1.0, self._down / self._up)))  # input samples on each side
        self._bank = self._filter_bank()
        self.reset()

    def reset(self) -> None:
        """Forget everything heard, ready for a new stream."""
        self._held = np.zeros(self._half, np.float32)  # input not yet used up; silence stands before the beginning
        self._held_start = -self._half  # input index of held[0]
        self._received = 0
        self._next = 0  # index of the next output sample
        self._flushed = False

    def push(self, samples: Samples) -> Samples:
        """[n] in -> [m] out: every output sample whose window is now complete."""
        if self._flushed:
            raise ValueError("This resampler was flushed; call reset() before giving it a new stream.")
        if samples.ndim != 1:
            raise ValueError(f"A resampler takes mono samples of shape [n], not {samples.shape}.")
        if self._identity:
            return samples.astype(np.float32, copy=True)
        self._held = np.concatenate([self._held, samples.astype(np.float32, copy=False)])
        self._received += len(samples)
        # Output k sits at input k * down / up and needs `half` whole samples after the one it lies in.
        ready = max(0, (self._received - self._half) * self._up)
        return self._produce(-(-ready // self._down))

    def flush(self) -> Samples:
        """The rest; in all, push and flush give round(n * rate_out / rate_in) samples."""
        if self._identity or self._flushed:
            self._flushed = True
            return np.zeros(0, np.float32)
        self._flushed = True
        self._held = np.concatenate([self._held, np.zeros(self._half + 1, np.float32)])
        return self._produce(round(self._received * self._up / self._down))

    @property
    def delay_s(self) -> float:
        """Seconds of sound that are held back."""
        return 0.0 if self._identity else self._half / self.rate_in_hz

    def _produce(self, until: int) -> Samples:
        """Output samples [next, until) from what is held."""
        if until <= self._next:
            return np.zeros(0, np.float32)
        position = np.arange(self._next, until, dtype=np.int64) * self._down
        base, phase = position // self._up, position % self._up
        first = base - self._half + 1 - self._held_start
        windows = sliding_window_view(self._held, 2 * self._half)[first]  # [m, 2 * half]
        out: Samples = np.einsum("mt,mt->m", windows, self._bank[phase])
        self._next = until
        used = (until * self._down) // self._up - self._half + 1 - self._held_start
        if used > 0:
            self._held = self._held[used:]
            self._held_start += used
        return out

    def _filter_bank(self) -> Samples:
        """[up, 2 * half]: row p weighs the input around the point p / up of a sample after one of them; each row sums to 1."""
        tap = np.arange(2 * self._half) - self._half + 1
        distance = tap[None, :] - np.arange(self._up)[:, None] / self._up  # input samples
        cutoff = CUTOFF * min(1.0, self._up / self._down)
        window = np.i0(KAISER_BETA * np.sqrt(np.clip(1 - (distance / self._half) ** 2, 0, None))) / np.i0(KAISER_BETA)
        bank = cutoff * np.sinc(cutoff * distance) * window
        return np.asarray(bank / bank.sum(axis=1, keepdims=True), np.float32)


def resample(samples: Samples, rate_in_hz: int, rate_out_hz: int, quality: Quality = "HQ") -> Samples:
    """A whole signal at once, [n] -> [round(n * rate_out / rate_in)] give or take one: a fresh resampler and one long step."""
    resampler = Resampler(rate_in_hz, rate_out_hz, quality)
    return np.concatenate([resampler.push(samples), resampler.flush()])
