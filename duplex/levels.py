"""Levels in dBFS."""

from __future__ import annotations

import math

import numpy as np

from duplex.audio import Samples

SILENCE_DB = -100.0


def level_db(samples: Samples) -> float:
    """RMS level of [n] samples in dBFS, never below SILENCE_DB."""
    if len(samples) == 0:
        return SILENCE_DB
    power = float(np.dot(samples, samples)) / len(samples)
    return max(10.0 * math.log10(power), SILENCE_DB) if power > 1e-10 else SILENCE_DB
