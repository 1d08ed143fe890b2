"""What may have been said, as a lattice: each word knows the words before it, and what was beaten where ways met."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from encoders.word_lexicon import Lexicon

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Doubts:
    """What is remembered of ways that were beaten."""

    worse: float = 6.0
    """By no more than this, a path may be right."""
    most: int = 3
    """Per word; the least beaten."""

    def __post_init__(self) -> None:
        if self.worse < 0 or self.most < 0:
            raise ValueError("worse and most must not be below 0")


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """A word that may have been said, and through it all words before."""

    before: Said | None
    """None for a turn's first."""
    word: int
    ends: bool
    """Whether a sentence ends with it."""
    others: tuple[tuple[int, float], ...]
    """Words that may have been said in its place, and how likely each is; what is missing to 1 is its own."""
    key: int
    """No other word that was ever said has it, but for the same one with or without an end behind it."""
    first: int
    """The first word of the turn."""
    path: int
    """Equal for words that were said after the same words: a hash of all of them."""
    beaten: tuple[tuple[float, Said], ...] = field(default=(), repr=False)
    """Words that may have been said in its place after other ones, and how much worse that is; the least first."""

    def words(self) -> list[Said]:
        """All words up to this one."""
        found: list[Said] = []
        at: Said | None = self
        while at is not None:
            found.append(at)
            at = at.before
        return found[::-1]

    def better_than(self, others: Iterable[tuple[float, Said]], doubts: Doubts) -> Said:
        """The same, and these are remembered as far as they say something else and are not too much worse."""
        known = {self.path}
        kept = list[tuple[float, Said]]()
        for less, one in sorted((*self.beaten, *others), key=lambda other: other[0]):
            if less <= doubts.worse and len(kept) < doubts.most and one.path not in known:
                known.add(one.path)
                kept.append((less, one))
        return self if tuple(kept) == self.beaten else replace(self, beaten=tuple(kept))


def said_after(came: Said | None, word: int, ends: bool, others: tuple[tuple[int, float], ...], key: int) -> Said:
    """A word that is said after another."""
    if came is None:
        return Said(None, word, ends, others, key, word, hash((word, ends)))
    return Said(came, word, ends, others, key, came.first, hash((came.path, word, ends)))


def meet(begun: dict[int, tuple[float, Said]], place: int, reached: float, one: Said, doubts: Doubts) -> None:
    """Begin at a place, unless a better way does; the better one remembers the other."""
    if place not in begun:
        begun[place] = reached, one
        return
    best, there = begun[place]
    if reached > best:
        begun[place] = reached, one.better_than([(reached - best, there)], doubts)
    else:
        begun[place] = best, there.better_than([(best - reached, one)], doubts)


def beaten_ways(new: NDArray[np.bool_], came: Ints, score: Floats, doubts: Doubts) -> list[list[tuple[float, int]]]:
    """For the best ways to each pair of words, of ways in groups of which the best come first: how much worse the others of the group are,
    and the word that they come from.
    """
    groups: list[list[tuple[float, int]]] = []
    best = 0.0
    for first, one, value in zip(new.tolist(), came.tolist(), score.tolist(), strict=True):
        if first:
            groups.append([])
            best = value
        elif best - value <= doubts.worse and len(groups[-1]) < 2 * doubts.most:
            groups[-1].append((best - value, one))
    return groups


def others_beside(came: Ints, word: Ints, score: Floats, most: int = 3, least: float = 0.05) -> list[tuple[tuple[int, float], ...]]:
    """For words that end now: those that end beside them after the same words, and how likely each is."""
    groups: dict[int, list[int]] = {}
    for index, one in enumerate(came.tolist()):
        groups.setdefault(one, []).append(index)
    found: list[tuple[tuple[int, float], ...]] = [()] * len(came)
    for members in groups.values():
        if len(members) > 1:
            odds = np.exp(score[members] - score[members].max())
            best: dict[int, float] = {}
            for index, share in zip(members, odds.tolist(), strict=True):
                best[int(word[index])] = max(best.get(int(word[index]), 0.0), share)
            ranked = sorted(best.items(), key=lambda one: -one[1])[: most + 1]
            total = sum(best.values())
            for index in members:
                found[index] = tuple((w, s / total) for w, s in ranked if w != word[index] and s / total > least)
    return found


def spelt(words: Sequence[Said], lexicon: Lexicon, done: bool = True) -> Iterator[tuple[Said, str, bool]]:
    """Words as they are written: (word, text with a space in front but for the first, False), and the marks (word, mark,
    True) that end sentences. done: whether the last word's sentence is over whatever it says.
    """
    opening: list[int] = []
    for index, one in enumerate(words):
        text = lexicon.words[one.word]
        if not opening:
            text = text[:1].upper() + text[1:]
        opening.append(one.word)
        yield one, f" {text}" if index else text, False
        if one.ends or (done and index == len(words) - 1):
            yield one, "?" if lexicon.question(opening) else ".", True
            opening = []
