"""Sentences that nobody said, as the projector would hear them: phone scores of real recordings, cut up and put together anew.

To hear sounds takes sound, of which a CPU can make and hear little; to read words from sounds takes many words, which are to be had in
writing. So scores of recordings are cut where each phone ends (the likeliest way through CTC), and a written sentence's phones are each
given a piece cut from where the same phone came after the same phone: with its length, its doubts and its errors. A sentence takes its
pieces from recordings that were heard about equally well. Scores alone are put together, not the states that they were read from, which
know more than the phone.

Legend: B rows, S sounds (25 a second), P phones, L labels, N sounds of all recordings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from duplex.errors import InputError
from encoders.speech_batches import Spoken, Words, Written, neighbours

KINDS = 4
"""How many kinds of recordings there are, by how well they were heard."""
ENOUGH = 3
"""Pieces of a pair of phones from which one is chosen; where there are fewer, the phone before does not matter."""
WORDS_P = 0.5
"""Share of batches of words that do not belong together."""
WORDS_S, WORDS_IN_A_ROW = 2.6, (2, 8)
"""How long a row of these lasts, about, and how many it has, from the first number up to below the second."""
BLOCK = 32
"""A row's sounds are a multiple of this: four chunks."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One recording as it was heard."""

    odds: NDArray[np.float32]
    """[S, 1 + P] logarithms, blank first."""
    phones: NDArray[np.int64]
    """[L] what was said."""


@dataclass(frozen=True, slots=True)
class Imagined:
    """What one step learns from."""

    odds: Tensor
    """[B, S, 1 + P] logarithms, blank first."""
    written: Written
    """What they say; a frame is two sounds."""


class Pieces:
    """Pieces of recordings by phone, the phone before, and how well their recording was heard."""

    def __init__(self, heard: Iterable[Heard]) -> None:
        """Raises InputError where no recording's phones are known."""
        kept, ends, phones, before, sure, row_of = list[NDArray[np.float16]](), [], [], [], list[float](), []
        at = 0
        for one in heard:
            if (found := align(one.odds, one.phones)) is not None:
                last, score = found
                edge = one.odds.shape[1] - 1  # stands for the beginning and the end
                kept.append(one.odds.astype(np.float16))
                ends.append(at + np.concatenate([last + 1, [len(one.odds)]]))
                phones.append(np.concatenate([one.phones, [edge]]))
                before.append(np.concatenate([[edge], one.phones]))
                row_of.append(np.full(len(one.phones) + 1, len(sure)))
                sure.append(score / len(one.phones))
                at += len(one.odds)
        if not kept:
            raise InputError("None of the recordings' phones are known, so no sentence can be put together from them.")
        self.edge = kept[0].shape[1] - 1
        """The phone that a recording begins and ends with."""
        self._odds = np.concatenate(kept)
        every = np.concatenate(ends)
        begins = np.concatenate([[0], every[:-1]])
        order = np.argsort(np.argsort(sure))
        kind = (order * KINDS // len(sure))[np.concatenate(row_of)]
        self._begins, self._lengths = begins, every - begins
        phone, previous = np.concatenate(phones), np.concatenate(before)
        size = self.edge + 1
        self._index = [
            _Index((kind * size + previous) * size + phone, KINDS * size * size),
            _Index(kind * size + phone, KINDS * size),
            _Index(phone, size),
        ]

    def __len__(self) -> int:
        return len(self._begins)

    def say(self, phones: NDArray[np.int64], pick: np.random.Generator) -> list[NDArray[np.float32]]:
        """[L] phones, `edge` behind each sentence -> for each the scores [s, 1 + P] of a piece; [0, 1 + P] where it was never heard."""
        size, kind = self.edge + 1, int(pick.integers(KINDS))
        previous = np.concatenate([[self.edge], phones[:-1]])
        keys = ((kind * size + previous) * size + phones, kind * size + phones, phones)
        chosen = np.full(len(phones), -1)
        for index, key, enough in zip(self._index, keys, (ENOUGH, ENOUGH, 1), strict=True):
            chosen = np.where(chosen < 0, index.draw(key, enough, pick), chosen)
        ranges = [(self._begins[one], self._begins[one] + self._lengths[one]) if one >= 0 else (0, 0) for one in chosen]
        return [self._odds[a:b].astype(np.float32) for a, b in ranges]


class _Index:
    """Pieces by a key."""

    def __init__(self, keys: NDArray[np.int64], size: int) -> None:
        self._order = np.argsort(keys, kind="stable")
        self._counts = np.bincount(keys, minlength=size)
        self._starts = np.concatenate([[0], self._counts.cumsum()[:-1]])

    def draw(self, keys: NDArray[np.int64], enough: int, pick: np.random.Generator) -> NDArray[np.int64]:
        """One piece for each key, -1 where there are fewer than `enough`."""
        counts = self._counts[keys]
        at = self._starts[keys] + (pick.random(len(keys)) * counts).astype(np.int64)
        return np.where(counts >= enough, self._order[np.minimum(at, len(self._order) - 1)], -1)


Row = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]
"""Scores, the frames near which the tokens end, and the tokens."""


class Imagination:
    """Draws batches of sentences that were written."""

    def __init__(self, pieces: Pieces, spoken: Spoken, pick: np.random.Generator) -> None:
        """spoken: for its texts; those that were held back are not used."""
        self.pieces, self.spoken, self.pick = pieces, spoken, pick
        held = set(spoken.text[spoken.held].tolist())
        counts = np.array([len(one) for one in spoken.phones])
        pool = np.array([text for text in np.flatnonzero(counts) if text not in held], np.int64)
        if not len(pool):
            raise InputError("The phones of no text are known; gather the texts where the voice joe is (`--pack`).")
        self._pool = pool[np.argsort(counts[pool], kind="stable")]
        self._counts = counts

    def draw(self, sound_s: float, pairs: float = 0.35) -> Imagined:
        """About `sound_s` of what might have been heard. pairs: share of batches of short ones with a second behind each."""
        if self.spoken.words is not None and self.pick.random() < WORDS_P:
            return self._batch([self._words(self.spoken.words) for _ in range(max(int(sound_s / WORDS_S), 1))])
        anchor = int(self.pick.integers(len(self._pool)))
        typical = 1.0 + self._counts[self._pool[anchor]] / 12
        paired = typical < 5 and self.pick.random() < pairs
        rows = max(min(int(sound_s / (1.2 * typical * (2 if paired else 1))), len(self._pool), 256), 1)
        chosen = neighbours(self._pool, anchor, rows, self.pick)
        said = []
        for row in range(min(rows, len(chosen))):
            texts = [chosen[row]]
            if paired and len(chosen) > rows:
                texts.append(chosen[int(self.pick.integers(rows, len(chosen)))])
            said.append(self._row(texts))
        return self._batch(said)

    def _batch(self, said: list[Row]) -> Imagined:
        made, places, targets = [one[0] for one in said], [one[1] for one in said], [one[2] for one in said]
        longest = -(-max(map(len, made)) // BLOCK) * BLOCK
        flat = np.full((len(made), longest, self.pieces.edge + 1), -12.0, np.float32)
        flat[:, :, 0] = 0.0  # nothing new
        for row, one in enumerate(made):
            flat[row, : len(one)] = one
        frames = np.array([-(-len(one) // 2) for one in made], np.int64)
        return Imagined(torch.from_numpy(flat), Written(frames, targets, places if self.spoken.shares else []))

    def _words(self, words: Words) -> Row:
        """Words that do not belong together: what a word is must be heard in itself."""
        chosen = self.pick.choice(len(words.phones), int(self.pick.integers(*WORDS_IN_A_ROW)), p=words.odds)
        phones = np.concatenate([*(words.phones[one] for one in chosen), [self.pieces.edge]])
        said = self.pieces.say(phones, self.pick)
        ends = np.cumsum([len(one) for one in said])[np.cumsum([len(words.phones[one]) for one in chosen]) - 1]
        tokens = [(words.next if place else words.first)[one] for place, one in enumerate(chosen)]
        begins = np.concatenate([[0], ends[:-1]])
        places = [a + (b - a) * np.arange(1, len(one) + 1) / len(one) for a, b, one in zip(begins, ends, tokens, strict=True)]
        return np.concatenate(said), np.concatenate(places) / 2, np.concatenate(tokens)

    def _row(self, texts: list[np.int64]) -> Row:
        spoken = self.spoken
        pieces, ends, at = list[NDArray[np.float32]](), [], 0
        for which, text in enumerate(texts):
            said = self.pieces.say(np.concatenate([spoken.phones[text], [self.pieces.edge]]), self.pick)
            lasts = sum(map(len, said[:-1]))
            if spoken.shares:
                ends.append((at + spoken.shares[text][which] * lasts) / 2)
            pieces += said
            at += lasts + len(said[-1])
        tokens = [(spoken.next if which else spoken.first)[text] for which, text in enumerate(texts)]
        return np.concatenate(pieces), np.concatenate(ends) if ends else np.zeros(0), np.concatenate(tokens)


def align(odds: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], float] | None:
    """The likeliest way through CTC.

    [S, 1 + P] logarithms, blank first, and [L] labels from 0 -> [L] the last place of each label, and the score of the way.

    None where there are no labels or too few places for them.
    """
    count, places = len(labels), len(odds)
    if not count or places < count + int((labels[1:] == labels[:-1]).sum()):
        return None
    states = np.zeros(2 * count + 1, np.int64)
    states[1::2] = labels + 1
    skips = np.zeros(len(states), bool)  # a label may come right after another one
    skips[3::2] = labels[1:] != labels[:-1]
    best = np.full(len(states), -np.inf, np.float64)
    best[:2] = odds[0, states[:2]]
    came = np.zeros((places, len(states)), np.int8)
    ways = np.full((3, len(states)), -np.inf)
    for place in range(1, places):
        ways[0] = best
        ways[1, 1:] = best[:-1]
        ways[2, 2:] = np.where(skips[2:], best[:-2], -np.inf)
        came[place] = ways.argmax(0)
        best = ways.max(0) + odds[place, states]
    state = len(states) - 1 if best[-1] >= best[-2] else len(states) - 2
    score = float(best[state])
    last = np.zeros(count, np.int64)
    for place in range(places - 1, -1, -1):
        if state % 2 and not last[state // 2]:
            last[state // 2] = place
        state -= int(came[place, state])
    return last, score
