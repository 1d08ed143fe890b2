"""What is done to a voice's samples before they leave: gain without clipping, and soft edges. Sample by sample, so chunks join as a whole.

Shapes: n samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from duplex.audio import Samples


def level(sound: Samples, gain_db: float) -> Samples:
    """Gain, with everything above 0.7 bent so that it stays below 1."""
    loud: Samples = sound * np.float32(10 ** (gain_db / 20))
    over = np.abs(loud) - np.float32(0.7)
    return np.where(over > 0, np.sign(loud) * (0.7 + 0.28 * np.tanh(over / 0.28)), loud).astype(np.float32)


def fade_in(sound: Samples, at: int, length: int) -> None:
    """Fade, in place, what of a clause's first `length` samples lies in `sound`, whose first sample is the clause's `at`."""
    part = sound[: max(length - at, 0)]
    part *= _ramp(np.arange(at, at + len(part)), length)


def fade_out(sound: Samples, length: int) -> None:
    """Fade, in place, the last `length` samples."""
    part = sound[max(len(sound) - length, 0) :]
    part *= _ramp(np.arange(len(part))[::-1], length)


def _ramp(place: NDArray[np.int64], length: int) -> NDArray[np.float32]:
    """A raised cosine, 0 before the first sample and 1 after the last."""
    return (0.5 - 0.5 * np.cos(np.pi * (place + 0.5) / max(length, 1))).astype(np.float32)
