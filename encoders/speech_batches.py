"""Batches for teaching the input projector: recordings of like length, some with a second one behind, and what they say.

Drawn on the CPU, laid on the device: nothing here waits for it. Legend: B rows, n samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from duplex.audio import USER_RATE_HZ
from duplex.errors import InputError
from encoders.speech_augment import SoundBank, lay, plan


@dataclass(frozen=True)
class Spoken:
    """Recordings and what they say."""

    bank: SoundBank
    text: NDArray[np.int64]
    """[r] which text each speaks."""
    voice: list[str]
    """[r] who."""
    held: NDArray[np.bool_]
    """[r] kept for judging."""
    lengths: NDArray[np.int64]
    """[r] samples, on the CPU."""
    phones: list[NDArray[np.int64]]
    """Per text, the sounds it is made of, from 0; an empty one where they are not known."""

    def hours(self) -> float:
        """All of it."""
        return float(self.bank.lengths.sum()) / USER_RATE_HZ / 3600


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step learns from, before anything is done to the sound."""

    sound: Tensor
    """[B, n]"""
    samples: NDArray[np.int64]
    """[B] those that count."""
    phones: list[NDArray[np.int64]]
    """[B] what is said; an empty one where it is not known."""
    texts: list[tuple[np.int64, ...]]
    """[B] which texts are said."""


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
        layout = plan(first, second, spoken.lengths, speed, self.pick)
        texts = [tuple(spoken.text[one] for one in row if one >= 0) for row in zip(first, second, strict=True)]
        phones = [self._phones(row) for row in texts]
        return Batch(lay(spoken.bank, layout), layout.counted, phones, texts)

    def _pool(self, held: bool) -> NDArray[np.int64]:
        """Recordings by length."""
        if held not in self._pools:
            pool = np.flatnonzero(self.spoken.held if held else ~self.spoken.held)
            if not len(pool):
                raise InputError("There is too little speech to learn from and to judge by; speak for longer.")
            self._pools[held] = pool[np.argsort(self.spoken.lengths[pool], kind="stable")]
        return self._pools[held]

    def _phones(self, texts: tuple[np.int64, ...]) -> NDArray[np.int64]:
        """A row's sounds; none where one of its texts' are not known."""
        found = [self.spoken.phones[text] for text in texts]
        return np.concatenate(found) if all(map(len, found)) else np.zeros(0, np.int64)


def neighbours(pool: NDArray[np.int64], anchor: int, rows: int, pick: np.random.Generator) -> NDArray[np.int64]:
    """Up to four times `rows` of a pool that is sorted by length, from around the anchor, in any order."""
    low = max(min(anchor - 2 * rows, len(pool) - 4 * rows), 0)
    near = pool[low : low + 4 * rows]
    return near[pick.permutation(len(near))]
