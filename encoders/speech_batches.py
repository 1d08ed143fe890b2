"""Batches for teaching the input projector: recordings of like length, some with a second one behind, and what they say where.

Drawn on the CPU, laid on the device: nothing here waits for it. Legend: B rows, n samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from duplex.audio import USER_RATE_HZ
from duplex.errors import InputError
from encoders.speech_augment import Layout, SoundBank, lay, plan
from encoders.speech_projector import OUT_RATE_HZ

SAMPLES_PER_FRAME = round(USER_RATE_HZ / OUT_RATE_HZ)
"""User samples in a frame out."""
EDGE_S = 0.1
"""Silence at the ends of a recording, about."""


@dataclass(frozen=True, slots=True)
class Words:
    """Words by themselves, none without a sound."""

    first: list[NDArray[np.int64]]
    """[w] tokens in use at the beginning of a turn."""
    next: list[NDArray[np.int64]]
    """[w] the same later."""
    phones: list[NDArray[np.int64]]
    """[w] the sounds it is made of, from 0."""
    odds: NDArray[np.float64]
    """[w] how likely each shall be drawn."""


@dataclass(frozen=True)
class Spoken:
    """Recordings and what they say."""

    bank: SoundBank
    text: NDArray[np.int64]
    """[r] which text each speaks."""
    voice: list[str]
    """[r] who."""
    first: list[NDArray[np.int64]]
    """Per text, tokens in use at the beginning of a turn."""
    next: list[NDArray[np.int64]]
    """Per text, after another sentence."""
    held: NDArray[np.bool_]
    """[r] kept for judging."""
    lengths: NDArray[np.int64]
    """[r] samples, on the CPU."""
    shares: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)
    """Per text, after which share of its letters each token of `first` and of `next` ends; empty for no guide."""
    phones: list[NDArray[np.int64]] = field(default_factory=list)
    """Per text, the sounds it is made of, from 0; an empty one where they are not known; empty for no phones at all."""
    words: Words | None = None
    """Words by themselves."""

    def hours(self) -> float:
        """All of it."""
        return float(self.bank.lengths.sum()) / USER_RATE_HZ / 3600


@dataclass(frozen=True, slots=True)
class Written:
    """What the rows of a batch say, in tokens, and where."""

    frames: NDArray[np.int64]
    """[B] frames out that count."""
    targets: list[NDArray[np.int64]]
    """[B] tokens in use."""
    places: list[NDArray[np.float64]]
    """[B] the frame near which each may end; empty for no guide."""

    def later(self, frames: int) -> Written:
        """The same, so many frames later."""
        return Written(self.frames + frames, self.targets, [one + frames for one in self.places])


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step learns from, before anything is done to the sound."""

    sound: Tensor
    """[B, n]"""
    written: Written
    """What it says."""
    phones: list[NDArray[np.int64]]
    """[B] sounds, an empty one where they are not known; empty for no phones at all."""


class Batches:
    """Draws them."""

    def __init__(self, spoken: Spoken, pick: np.random.Generator) -> None:
        self.spoken, self.pick = spoken, pick
        self._pools: dict[bool, NDArray[np.int64]] = {}

    def draw(self, sound_s: float, speed: float = 1.0, *, held: bool = False, pairs: float = 0.35) -> Batch:
        """About `sound_s` of sound.

        speed: the most by which it is sped up or slowed down. pairs: share of batches of short ones with a second behind each.

        Raises InputError when there is nothing to draw from.
        """
        spoken, pool = self.spoken, self._pool(held)
        anchor = int(self.pick.integers(len(pool)))
        typical = spoken.lengths[pool[anchor]]
        paired = typical < 5 * USER_RATE_HZ and self.pick.random() < pairs
        lasts = 1.2 * typical * (2 if paired else 1) + 1.2 * USER_RATE_HZ
        rows = max(min(int(sound_s * USER_RATE_HZ / lasts), len(pool), 256), 1)
        chosen = neighbours(pool, anchor, rows, self.pick)
        first, second = chosen[:rows], np.full(rows, -1)
        if paired and len(chosen) > rows:
            second = chosen[rows:][self.pick.integers(0, len(chosen) - rows, rows)]
        targets = [
            np.concatenate([spoken.first[spoken.text[a]], spoken.next[spoken.text[b]]]) if b >= 0 else spoken.first[spoken.text[a]]
            for a, b in zip(first, second, strict=True)
        ]
        layout = plan(first, second, spoken.lengths, speed, self.pick)
        places = [self._places(layout, row) for row in range(rows)] if spoken.shares else []
        phones = [self._phones(a, b) for a, b in zip(first, second, strict=True)] if spoken.phones else []
        frames = np.ceil(layout.counted / SAMPLES_PER_FRAME).astype(np.int64)
        return Batch(lay(spoken.bank, layout), Written(frames, targets, places), phones)

    def _pool(self, held: bool) -> NDArray[np.int64]:
        """Recordings by length."""
        if held not in self._pools:
            pool = np.flatnonzero(self.spoken.held if held else ~self.spoken.held)
            if not len(pool):
                raise InputError("There is too little speech to learn from and to judge by; speak for longer.")
            self._pools[held] = pool[np.argsort(self.spoken.lengths[pool], kind="stable")]
        return self._pools[held]

    def _phones(self, *said: np.int64) -> NDArray[np.int64]:
        """A row's sounds; none where one of its recordings' are not known."""
        found = [self.spoken.phones[self.spoken.text[one]] for one in said if one >= 0]
        return np.concatenate(found) if all(map(len, found)) else np.zeros(0, np.int64)

    def _places(self, layout: Layout, row: int) -> NDArray[np.float64]:
        """Frames near which the row's tokens end."""
        found = []
        for which, (recording, begins) in enumerate(((layout.first[row], layout.lead[row]), (layout.second[row], layout.at2[row]))):
            if recording >= 0:
                lasts = max(self.spoken.lengths[recording] - 2 * EDGE_S * USER_RATE_HZ, 1)
                at = EDGE_S * USER_RATE_HZ + self.spoken.shares[self.spoken.text[recording]][which] * lasts
                found.append((begins + at / layout.speed[row]) / SAMPLES_PER_FRAME)
        return np.concatenate(found)


def neighbours(pool: NDArray[np.int64], anchor: int, rows: int, pick: np.random.Generator) -> NDArray[np.int64]:
    """Up to four times `rows` of a pool that is sorted by length, from around the anchor, in any order."""
    low = max(min(anchor - 2 * rows, len(pool) - 4 * rows), 0)
    near = pool[low : low + 4 * rows]
    return near[pick.permutation(len(near))]


def letter_shares(letters: Sequence[float]) -> NDArray[np.float64]:
    """Letters of each token -> the share of all letters after which it ends."""
    ends = np.cumsum(np.maximum(letters, 0.3))
    return ends / ends[-1]
