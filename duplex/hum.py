"""How far a sound is a closed-mouth hum ("mm-hm"): voiced energy with next to nothing above 500 Hz.

Open vowels and consonants carry energy above 500 Hz; a nasal hum does not. The measure is the share of energy above 500 Hz,
in dB, mapped to [0, 1].
"""

from __future__ import annotations

import numpy as np

from duplex.audio import USER_RATE_HZ, Samples

_SPLIT_HZ = 500.0
_HUM_DB = -25.0
_SPEECH_DB = -15.0


def hum_likeness(samples: Samples) -> float:
    """[n] user samples (16 kHz, at least 20 ms) -> 0 (speech) to 1 (hum); 0 for silence."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    split = int(_SPLIT_HZ * len(samples) / USER_RATE_HZ)
    low, high = float(spectrum[:split].sum()), float(spectrum[split:].sum())
    if low + high < 1e-6:
        return 0.0
    share_db = 10.0 * np.log10(max(high, 1e-12) / (low + high))
    return float(np.clip((_SPEECH_DB - share_db) / (_SPEECH_DB - _HUM_DB), 0.0, 1.0))
