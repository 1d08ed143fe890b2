"""Choosing among what may have been said by an LLM's judgement: lattice rescoring, one place of doubt at a time.

A search with trigrams finds what may have been said and how much worse each way is; most of its errors are such that somebody who knows
the language sees the right words at once. For each place of doubt the LLM tells how much likelier the other words and a few after them
are than the usual ones, after the same beginning (Rastrow et al. 2011, "Efficient discriminative training of long-span language models",
also go from a path to its neighbours). Places that don't overlap are decided each for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from encoders.word_lattice import Said, spelt
from encoders.word_lexicon import Lexicon

_AFTER = 3
"""Words that are judged behind a place of doubt."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Two ways to go on after the first `at` tokens of a text."""

    at: int
    usual: tuple[int, ...]
    other: tuple[int, ...]


Judge = Callable[[Sequence[int], Sequence[Doubt]], list[float]]
"""A text's tokens and doubts about it -> for each log P(other) - log P(usual), after the text before."""


def choose(
    paths: Sequence[tuple[float, list[Said]]],
    weight: float,
    lexicon: Lexicon,
    encode: Callable[[str], Sequence[int]],
    judge: Judge,
) -> list[Said]:
    """The words that were said.

    paths: as `WordSearch.paths` gives them, at least one. weight: of the judge's logarithms beside the search's scores. encode: the text of
    a word or mark -> tokens.
    """
    usual = paths[0][1]
    written = _written(usual, lexicon, encode)
    starts = [0]
    for tokens in written:
        starts.append(starts[-1] + len(tokens))
    places, doubts = list[_Place](), list[Doubt]()
    for less, words in paths[1:]:
        begin, end = _apart(usual, words)
        instead = words[begin : len(words) - (len(usual) - end)]
        others = _written(words, lexicon, encode)
        behind = begin + len(instead) + _AFTER
        doubt = Doubt(starts[begin], _joined(written[begin : end + _AFTER]), _joined(others[begin:behind]))
        if doubt.usual != doubt.other:
            places.append(_Place(begin, end, less, instead))
            doubts.append(doubt)
    if not doubts:
        return usual
    found = judge(_joined(written), doubts)
    gains = [(weight * more - place.less, place) for more, place in zip(found, places, strict=True)]
    taken: list[_Place] = []
    for gain, place in sorted(gains, key=lambda one: -one[0]):
        if gain > 0 and all(place.end < other.begin or place.begin > other.end for other in taken):
            taken.append(place)
    said = list(usual)
    for place in sorted(taken, key=lambda one: -one.begin):
        said[place.begin : place.end] = place.instead
    return said


@dataclass(frozen=True, slots=True)
class _Place:
    """Where other words may have been said."""

    begin: int
    end: int
    less: float
    """How much worse they are by the search's scores."""
    instead: list[Said]


def _written(words: Sequence[Said], lexicon: Lexicon, encode: Callable[[str], Sequence[int]]) -> list[tuple[int, ...]]:
    """Each word's tokens, those of the mark behind it included."""
    found: list[tuple[int, ...]] = []
    for _, text, mark in spelt(words, lexicon):
        if mark:
            found[-1] += tuple(encode(text))
        else:
            found.append(tuple(encode(text)))
    return found


def _apart(a: Sequence[Said], b: Sequence[Said]) -> tuple[int, int]:
    """From where and up to where the words of a are others than those of b."""
    n = min(len(a), len(b))
    begin = next((i for i in range(n) if (a[i].word, a[i].ends) != (b[i].word, b[i].ends)), n)
    same = next((i for i in range(n - begin) if (a[-1 - i].word, a[-1 - i].ends) != (b[-1 - i].word, b[-1 - i].ends)), n - begin)
    return begin, len(a) - same


def _joined(tokens: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(one for some in tokens for one in some)
