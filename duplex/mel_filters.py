"""The one bank of triangular mel filters: Slaney's scale and area normalisation, as Whisper and the CosyVoice family use it.

Notable: whoever needs another rate, window or number of bands asks for it here; a bank is made once per setting and is read-only.

Slaney 1998, "Auditory Toolbox" (linear below 1 kHz, logarithmic above), with each triangle's area made 1.

Legend: b FFT bins (fft_samples / 2 + 1), m mel bands.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

BREAK_HZ = 1000.0  # below it the scale is linear
BREAK_MEL = 15.0
HZ_PER_MEL = 200.0 / 3.0  # below the break
LOG_STEP = np.log(6.4) / 27.0  # above it: 27 mel per factor 6.4


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's mel scale: linear below 1 kHz (15 mel), 27 steps per factor 6.4 above."""
    return np.where(mel < BREAK_MEL, mel * HZ_PER_MEL, BREAK_HZ * np.exp((mel - BREAK_MEL) * LOG_STEP))


def hz_to_mel(hz: float) -> float:
    """The inverse of `mel_to_hz`, for one frequency."""
    if hz < BREAK_HZ:
        return hz / HZ_PER_MEL
    return float(BREAK_MEL + np.log(hz / BREAK_HZ) * 27.0 / np.log(6.4))


@cache
def mel_filters(
    rate_hz: int, fft_samples: int, bands: int, low_hz: float = 0.0, high_hz: float | None = None
) -> NDArray[np.float32]:
    """[b, m] triangular filters from `low_hz` to `high_hz` (None: half the rate), to be multiplied with a power or magnitude
    spectrum [t, b].

    Raises ValueError when the edges are not 0 <= low < high <= rate / 2, or a size is below 1.
    """
    top_hz = rate_hz / 2 if high_hz is None else high_hz
    if rate_hz < 1 or fft_samples < 2 or bands < 1:
        raise ValueError(f"mel filters need a rate, an FFT and bands, not {rate_hz} Hz, {fft_samples} samples, {bands} bands")
    if not 0.0 <= low_hz < top_hz <= rate_hz / 2:
        raise ValueError(f"mel filters must satisfy 0 <= {low_hz} < {top_hz} <= {rate_hz / 2} Hz (half the rate)")
    edges_hz = mel_to_hz(np.linspace(hz_to_mel(low_hz), hz_to_mel(top_hz), bands + 2))  # [m + 2]
    bins_hz = np.linspace(0.0, rate_hz / 2, fft_samples // 2 + 1)  # [b]
    widths_hz = np.diff(edges_hz)  # [m + 1]
    rising = (bins_hz[:, None] - edges_hz[None, :-2]) / widths_hz[None, :-1]  # [b, m]
    falling = (edges_hz[None, 2:] - bins_hz[:, None]) / widths_hz[None, 1:]  # [b, m]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    bank: NDArray[np.float32] = (triangles * (2.0 / (edges_hz[2:] - edges_hz[:-2]))[None, :]).astype(np.float32)
    bank.setflags(write=False)
    return bank
