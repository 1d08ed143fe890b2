"""DNSMOS: how a listener would rate a recording, told by Microsoft's network.

Notable: only the published graph is used, with its package's (`speechmos`) rules around it: a sound is repeated until it fills a window of
9.01 s, a longer one is judged in several windows and averaged, and each raw figure goes through a fitted polynomial. Two things are done
more cheaply, because a window costs a second of an old core: a repeated sound is judged once (the package judges every second of the
repetition as well), and a long one every three seconds instead of every second; single figures move by up to 0.05. The package itself
would bring librosa and half a minute of compiling.

Reddy et al. 2022, "DNSMOS P.835: A Non-Intrusive Perceptual Objective Speech Quality Metric to Evaluate Noise Suppressors".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decoders.onnx_session import open_session, run
from duplex.audio import USER_RATE_HZ, Samples

WINDOW = 144_160  # samples of one judgement: 9.01 s
HOP = 3 * USER_RATE_HZ  # samples from one judgement of a long sound to the next

_SIGNAL = np.poly1d([-0.08397278, 1.22083953, 0.0052439])
_BACKGROUND = np.poly1d([-0.13166888, 1.60915514, -0.39604546])
_OVERALL = np.poly1d([-0.06766283, 1.11546468, 0.04602535])


@dataclass(frozen=True, slots=True)
class Opinion:
    """Mean opinion scores, 1 (bad) to 5 (excellent)."""

    signal: float
    background: float
    overall: float


class Dnsmos:
    """The network, loaded. Stateless: threads may share it."""

    def __init__(self, path: Path) -> None:
        """path: `sig_bak_ovr.onnx`. Raises WeightsError."""
        self._path = path
        self._session = open_session(path)

    def __call__(self, sound: Samples) -> Opinion:
        """[n] at 16 kHz, n > 0, in [-1, 1]. Costs a second of one old core per window. Raises ValueError for an empty sound."""
        found = [run(self._session, self._path, {"input_1": window[None]})[0] for window in windows(sound)]
        return rated(np.asarray(found, np.float64).mean(axis=0))


def rated(raw: NDArray[np.float64]) -> Opinion:
    """The network's three figures (signal, background, overall) as opinions."""
    return Opinion(float(_SIGNAL(raw[0])), float(_BACKGROUND(raw[1])), float(_OVERALL(raw[2])))


def windows(sound: Samples) -> list[Samples]:
    """What is judged of a sound: pieces of WINDOW samples. Raises ValueError for an empty sound."""
    if not len(sound):
        raise ValueError("an empty sound cannot be judged")
    if len(sound) < WINDOW:
        return [np.resize(sound, WINDOW).astype(np.float32)]
    return [sound[at : at + WINDOW].astype(np.float32) for at in range(0, len(sound) - WINDOW + 1, HOP)]
