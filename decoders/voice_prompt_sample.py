"""A voice sample as people record it, made into what the networks want: mono, finite, neither clipped nor silent, trimmed to speech.

Notable: each way in which a sample can be of no use is told in one sentence that says what to record instead. Nothing is repaired in
silence except what costs no quality: channels are mixed down and quiet ends cut off.

Legend: n samples at the file's own rate, f frames of 20 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from duplex.audio import Samples
from duplex.errors import InputError

FRAME_S = 0.02
FULL_SCALE = 0.98  # of the sample's peak, from which on equal neighbours count as a flat top
OVER_SCALE = 1.5  # a peak above this is not sound in [-1, 1] but another scale


@dataclass(frozen=True)
class VoiceSampleConfig:
    """What a voice sample must be like."""

    shortest_s: float = 1.0
    """Least speech, after quiet ends are cut off; three seconds and more give a better likeness."""
    longest_s: float = 30.0
    """Most speech: one pass of the speech tokenizer, and a prompt that leaves the LM room."""
    lowest_rate_hz: int = 16_000
    """Below it the upper half of the voice's spectrum is missing."""
    silence_db: float = -50.0
    """A sample whose loudest 20 ms (RMS, full scale = 0 dB) lie below this is silence."""
    trim_db: float = 40.0
    """Ends that lie this far below the loudest 20 ms are cut off."""
    margin_ms: float = 100.0
    """Sound kept before and after what was found to be speech."""
    most_clipped: float = 0.01
    """Share of samples in flat tops above which the recording counts as clipped."""

    def __post_init__(self) -> None:
        if not 0.2 <= self.shortest_s < self.longest_s:
            sizes = f"shortest_s ({self.shortest_s}) < longest_s ({self.longest_s})"
            raise ValueError(f"a voice sample's lengths must satisfy 0.2 <= {sizes}")
        if self.lowest_rate_hz < 8000:
            raise ValueError(f"a voice sample's lowest_rate_hz must be at least 8000, not {self.lowest_rate_hz}")
        if not self.silence_db < 0.0 < self.trim_db:
            raise ValueError(f"silence_db ({self.silence_db}) must be below 0 and trim_db ({self.trim_db}) above it")
        if not 0.0 <= self.margin_ms <= 1000.0:
            raise ValueError(f"a voice sample's margin_ms must be in 0 to 1000, not {self.margin_ms}")
        if not 0.0 < self.most_clipped <= 1.0:
            raise ValueError(f"a voice sample's most_clipped must be above 0 and at most 1, not {self.most_clipped}")


def prepare_sample(samples: NDArray[np.floating], rate_hz: int, config: VoiceSampleConfig | None = None) -> Samples:
    """[n] or [n, channels] in [-1, 1] at `rate_hz` -> [n'] float32 mono at the same rate, from the first to the last speech.

    Raises InputError, one sentence each: a rate too low, no numbers, another scale, silence, clipping, too little or too much speech.
    """
    config = config or VoiceSampleConfig()
    wanted = f"give {config.shortest_s:g} to {config.longest_s:g} s of one person speaking"
    if rate_hz < config.lowest_rate_hz:
        raise InputError(f"The voice sample has {rate_hz} Hz; record it with {config.lowest_rate_hz} Hz or more.")
    if samples.ndim not in (1, 2) or not samples.size:
        raise InputError(f"The voice sample is empty; {wanted}.")
    mono = np.asarray(samples if samples.ndim == 1 else samples.mean(axis=1), np.float32)  # [n]
    if not np.isfinite(mono).all():
        raise InputError(
            "The voice sample holds values that are no numbers (NaN or infinite); export it again, as 16-bit WAV or FLAC."
        )
    if np.abs(mono).max() > OVER_SCALE:
        raise InputError(
            f"The voice sample's values reach {np.abs(mono).max():.0f} instead of 1; export it again, as 16-bit WAV or FLAC."
        )
    levels_db = frame_levels_db(mono - mono.mean(), rate_hz)  # [f]; a constant offset is no sound
    loudest_db = float(levels_db.max())
    if loudest_db < config.silence_db:
        raise InputError(f"The voice sample is silent (its loudest part has {loudest_db:.0f} dB); {wanted}.")
    if (clipped := clipped_share(mono)) > config.most_clipped:
        raise InputError(f"The voice sample is clipped ({clipped:.0%} of it); record it again at a lower level.")
    speech = np.flatnonzero(levels_db > max(loudest_db - config.trim_db, config.silence_db))
    frame, margin = round(FRAME_S * rate_hz), round(config.margin_ms / 1000 * rate_hz)
    kept = mono[max(int(speech[0]) * frame - margin, 0) : (int(speech[-1]) + 1) * frame + margin]
    length_s = len(kept) / rate_hz
    if length_s < config.shortest_s:
        raise InputError(f"The voice sample holds only {length_s:.1f} s of sound, which is too short; {wanted}.")
    if length_s > config.longest_s:
        raise InputError(f"The voice sample holds {length_s:.0f} s of sound, which is too long; {wanted}.")
    return kept


def frame_levels_db(mono: Samples, rate_hz: int) -> NDArray[np.float64]:
    """[n] -> [f] RMS of each 20 ms in dB of full scale; the last frame may be short of samples."""
    frame = round(FRAME_S * rate_hz)
    padded = np.pad(mono.astype(np.float64), (0, -len(mono) % frame)).reshape(-1, frame)  # [f, frame]
    return 10 * np.log10(np.maximum(np.square(padded).mean(axis=1), 1e-12))


def clipped_share(mono: Samples) -> float:
    """Share of samples that lie in a flat top: at the sample's own peak, and equal to the one before."""
    peak = float(np.abs(mono).max())
    flat = (np.abs(mono[1:]) >= FULL_SCALE * peak) & (mono[1:] == mono[:-1])
    return float(flat.mean()) if len(flat) else 0.0
