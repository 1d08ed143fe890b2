"""How likely a word is after two others: trigrams with interpolated Kneser-Ney smoothing (Chen and Goodman 1999), packed into flat arrays.

A sentence begins after (BEGIN, BEGIN) and ends with END; words are numbered from FIRST on. What was never counted is backed off from: three
words to two, two to one. All probabilities are kept as logarithms of the interpolated ones, so that each look-up takes the longest match.

Legend: W words, P different pairs, T different triples, n asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from duplex.errors import WeightsError

BEGIN, END, FIRST = 0, 1, 2
"""What stands before a sentence, what ends it, and the first word."""
NEVER = -20.0
"""Logarithm of what is not counted on at all."""
STEPS = 12.0
"""Of a logarithm in a file: e is so many."""
_MOST = 1 << 16
_LOGS = ("single", "single_back", "pair", "pair_back", "triple")
_WORDS = ("pair_words", "triple_words")
_COUNTS = ("pair_counts", "triple_counts")

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class WordNgrams:
    """The probabilities. Immutable."""

    def __init__(
        self,
        single: Floats,
        single_back: Floats,
        pair_ends: Ints,
        pair_words: Ints,
        pair: Floats,
        pair_back: Floats,
        triple_ends: Ints,
        triple_words: Ints,
        triple: Floats,
    ) -> None:
        """single, single_back: [W] of a word, and what is added where a pair that begins with it is not known. pair_ends: [W] after how
        many pairs those that begin with each word end. pair_words, pair, pair_back: [P] their second words, of these, and what is added
        where a triple that begins so is not known. triple_ends [P], triple_words and triple [T]: likewise, by pair. Probabilities are
        logarithms.
        """
        self.single, self.single_back, self._pair_ends, self._triple_ends = single, single_back, pair_ends, triple_ends
        self.words = len(single)
        self._pair_words, self._triple_words = pair_words, triple_words
        self._pair, self._pair_back, self._triple = pair, pair_back, triple
        self._pairs = np.repeat(np.arange(self.words), np.diff(pair_ends, prepend=0)) * self.words + pair_words
        self._triples = np.repeat(np.arange(len(pair)), np.diff(triple_ends, prepend=0)) * self.words + triple_words

    def log(self, before: Ints, last: Ints, word: Ints) -> Floats:
        """[n] each: log P(word | before, last)."""
        pair, known = _find(self._pairs, last * self.words + word)
        low = np.where(known, self._pair[pair], self.single_back[last] + self.single[word])
        history, seen = _find(self._pairs, before * self.words + last)
        triple, counted = _find(self._triples, history * self.words + word)
        return np.where(seen & counted, self._triple[triple], np.where(seen, self._pair_back[history], 0.0) + low)

    @classmethod
    def count(cls, sentences: Iterable[Sequence[int]], words: int) -> WordNgrams:
        """From sentences of words from FIRST on; words: W, the two marks included. Raises ValueError for too many, or for no sentence."""
        if words > _MOST:
            raise ValueError(f"at most {_MOST} words can be counted, not {words}")
        rows = [np.array([BEGIN, BEGIN, *one, END], np.int64) for one in sentences]
        if not rows:
            raise ValueError("there are no sentences to count")
        flat = np.concatenate(rows)
        third = np.concatenate([np.arange(len(one)) > 1 for one in rows])
        at = np.flatnonzero(third)
        begins = np.int64(BEGIN)  # the pair that stands before every sentence is one, though no word is said in it
        triples, times = np.unique((flat[at - 2] * words + flat[at - 1]) * words + flat[at], return_counts=True)
        pairs, after = np.unique(triples % (words * words), return_counts=True)  # in how many histories
        if pairs[0] != begins:
            pairs, after = np.concatenate([[begins], pairs]), np.concatenate([[0], after])
        singles = np.bincount(pairs[after > 0] % words, minlength=words)
        single = np.maximum(singles - 0.7, 0) / singles.sum() + 0.7 * (singles > 0).sum() / singles.sum() / words
        first = pairs // words
        taken = _discount(after)
        total, kinds = np.bincount(first, after, words), np.bincount(first, after > 0, words)
        back = np.where(total > 0, taken * kinds / np.maximum(total, 1), 1.0)
        pair = np.maximum(after - taken, 0) / np.maximum(total[first], 1) + back[first] * single[pairs % words]
        history = np.searchsorted(pairs, triples // words)
        said, different = np.bincount(history, times, len(pairs)), np.bincount(history, minlength=len(pairs))
        less = _discount(times)
        pair_back = np.where(said > 0, less * different / np.maximum(said, 1), 1.0)
        shorter = pair[np.searchsorted(pairs, triples % (words * words))]
        triple = (times - less) / said[history] + pair_back[history] * shorter
        ends = np.cumsum(np.bincount(first, minlength=words)), np.cumsum(different)
        return cls(
            _log(single),
            _log(back),
            ends[0],
            pairs % words,
            _log(pair),
            _log(pair_back),
            ends[1],
            triples % words,
            _log(triple),
        )

    def tensors(self) -> dict[str, Tensor]:
        """As they are kept: logarithms in twelfths, in 8 bits; words in 16 bits, and so is how many pairs and triples begin alike."""
        logs = {"single": self.single, "single_back": self.single_back, "pair": self._pair, "pair_back": self._pair_back}
        kept = {name: torch.from_numpy(_in_steps(value)) for name, value in {**logs, "triple": self._triple}.items()}
        words = {"pair_words": self._pair_words, "triple_words": self._triple_words}
        kept |= {name: torch.from_numpy(value.astype(np.uint16).view(np.int16)) for name, value in words.items()}
        counts = {"pair_counts": np.diff(self._pair_ends, prepend=0), "triple_counts": np.diff(self._triple_ends, prepend=0)}
        return kept | {name: torch.from_numpy(value.astype(np.uint16).view(np.int16)) for name, value in counts.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> WordNgrams:
        """What `tensors` gave. Raises WeightsError."""
        try:
            single, single_back, pair, pair_back, triple = (tensors[name].numpy() / -STEPS for name in _LOGS)
            pair_words, triple_words = (tensors[name].numpy().view(np.uint16).astype(np.int64) for name in _WORDS)
            pair_ends, triple_ends = (tensors[name].numpy().view(np.uint16).astype(np.int64).cumsum() for name in _COUNTS)
            return cls(single, single_back, pair_ends, pair_words, pair, pair_back, triple_ends, triple_words, triple)
        except (KeyError, ValueError) as error:
            raise WeightsError(f"These are not the probabilities of words ({error}).") from error


def _in_steps(logs: Floats) -> NDArray[np.uint8]:
    return np.round(np.clip(-logs * STEPS, 0, 255)).astype(np.uint8)


def _find(known: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each is among sorted numbers, and whether."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return at, known[at] == wanted


def _discount(counts: Ints) -> float:
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once else 0.5


def _log(p: Floats) -> Floats:
    return np.maximum(np.log(np.maximum(p, 1e-12)), NEVER)
