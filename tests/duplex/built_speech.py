"""Stand-ins for spoken sentences: harmonic syllables of drawn lengths, with places to pause; no voice has to be installed."""

from __future__ import annotations

import numpy as np

from duplex.audio import USER_RATE_HZ, Samples
from duplex.scenario import Stock, Utterance


def syllables(rng: np.random.Generator, pitch_hz: float, seconds: float) -> Samples:
    """[n] something voiced."""
    count = round(seconds * USER_RATE_HZ)
    t = np.arange(count) / USER_RATE_HZ
    tone = sum(np.sin(2 * np.pi * pitch_hz * k * t) / k for k in range(1, 12))
    shape = 0.3 + 0.7 * np.abs(np.sin(2 * np.pi * 2.5 * t + rng.uniform(0, 3)))
    return np.asarray(0.1 * tone * shape, np.float32)


def utterance(rng: np.random.Generator, voice: str, least_s: float = 0.7, most_s: float = 6.0, most_places: int = 3) -> Utterance:
    """One sentence of made-up words."""
    length = float(np.exp(rng.uniform(np.log(least_s), np.log(most_s))))
    inner = int(rng.integers(0, most_places + 1)) if length > 1.2 else 0
    cuts = np.sort(rng.uniform(0.15, 0.85, inner)) * length
    samples = syllables(rng, 120 if voice == "low" else 210, length)
    places = (*(round(c * USER_RATE_HZ) for c in cuts), len(samples))
    said = (*(" ".join(["word"] * (i + 2)) + " the" for i in range(inner)), "these are all the words.")
    return Utterance(voice, samples, places, said, (*([False] * inner), True))


def stock(seed: int = 0, count: int = 120) -> Stock:
    """Two voices."""
    rng = np.random.default_rng(seed)
    made = Stock([], [], [], [])
    for voice in ("low", "high"):
        made.utterances += [utterance(rng, voice) for _ in range(count)]
        made.interruptions += [utterance(rng, voice, 0.4, 2.0, 0) for _ in range(10)]
        made.backchannels += [utterance(rng, voice, 0.2, 0.5, 0) for _ in range(6)]
        made.leads += [utterance(rng, voice, 0.3, 0.6, 0) for _ in range(4)]
    return made
