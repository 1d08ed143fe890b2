"""The words that can be heard: how each is written, how it may be pronounced, and which beginnings of sentences ask something.

A pronunciation is a row of phones, as they are said among other words ("it" ends on a flap before a vowel), with how often it is chosen.

Legend: W words, R pronunciations, Q phones of all of them, O openings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from duplex.errors import WeightsError
from encoders.word_ngrams import FIRST


@dataclass(frozen=True, slots=True, eq=False)
class Lexicon:
    """Words and their sounds. Immutable."""

    words: tuple[str, ...]
    """[W] as they are written within a sentence; those before FIRST are empty."""
    word: NDArray[np.int64]
    """[R] which word each is a pronunciation of."""
    phones: tuple[tuple[int, ...], ...]
    """[R] from 0."""
    odds: NDArray[np.float64]
    """[R] log P(pronunciation | word)."""
    asks: Mapping[tuple[int, ...], float] = field(default_factory=dict)
    """Of one or two words that a sentence begins with: which share of such sentences are questions."""

    def question(self, opening: Sequence[int]) -> bool:
        """Whether a sentence that begins with these words is more likely a question than not."""
        for length in (2, 1):
            if (share := self.asks.get(tuple(opening[:length]))) is not None:
                return share > 0.5
        return False

    def tensors(self) -> dict[str, Tensor]:
        """As it is kept. At most 256 phones and 65,536 words."""
        text = "\n".join(self.words).encode()
        openings = np.array([(*opening, 0)[:2] for opening in self.asks], np.uint16).reshape(-1, 2)
        flat = np.array([phone for one in self.phones for phone in one], np.uint8)
        arrays = {
            "text": np.frombuffer(text, np.uint8).copy(),
            "word": self.word.astype(np.uint16).view(np.int16),
            "phones": flat,
            "sizes": np.array([len(one) for one in self.phones], np.uint8),
            "odds": self.odds.astype(np.float16),
            "openings": openings.view(np.int16),
            "asks": np.array(list(self.asks.values()), np.float16),
        }
        return {name: torch.from_numpy(value) for name, value in arrays.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Lexicon:
        """What `tensors` gave. Raises WeightsError."""
        try:
            words = bytes(tensors["text"].numpy()).decode().split("\n")
            word = tensors["word"].numpy().view(np.uint16).astype(np.int64)
            ends = np.concatenate([[0], tensors["sizes"].numpy().astype(np.int64).cumsum()])
            flat = tensors["phones"].numpy().astype(int).tolist()
            openings = tensors["openings"].numpy().view(np.uint16).astype(int).tolist()
            shares = tensors["asks"].float().tolist()
            odds = tensors["odds"].numpy().astype(np.float64)
        except (KeyError, ValueError) as error:
            raise WeightsError(f"This is no lexicon ({error}).") from error
        if (
            len(word) != len(ends) - 1
            or ends[-1] != len(flat)
            or (len(word) and not FIRST <= word.min() <= word.max() < len(words))
        ):
            raise WeightsError("This is no lexicon (its pronunciations are not those of its words).")
        phones = tuple(tuple(flat[a:b]) for a, b in pairwise(ends.tolist()))
        asks: dict[tuple[int, ...], float] = {
            (first, second) if second else (first,): share for (first, second), share in zip(openings, shares, strict=True)
        }
        return cls(tuple(words), word, phones, odds, asks)


class PronunciationTree:
    """All pronunciations as one tree with shared beginnings; node 0 is where every word begins.

    Legend: N nodes, E ends of pronunciations in the order of their nodes.
    """

    def __init__(self, lexicon: Lexicon, single: NDArray[np.float64]) -> None:
        """single: [W] log P of each word, for what can still come below a node."""
        node: dict[tuple[int, int], int] = {}
        phone, parent, ends = [-1], [-1], []
        for said in lexicon.phones:
            at = 0
            for one in said:
                key = at, one
                if key not in node:
                    node[key] = len(phone)
                    phone.append(one)
                    parent.append(at)
                at = node[key]
            ends.append(at)
        self.size = len(phone)
        self.phone = np.array(phone) + 1
        """[N] class of each node's phone; 0, the blank, for the first."""
        above = np.array(parent)
        self.children = np.argsort(above[1:], kind="stable") + 1
        self.child_counts = np.bincount(above[1:], minlength=self.size)
        self.child_starts = np.cumsum(self.child_counts) - self.child_counts
        order = np.argsort(ends, kind="stable")
        self.end_words, self.end_odds = lexicon.word[order], lexicon.odds[order]
        """[E] which word ends, and log P(pronunciation | word)."""
        self.end_counts = np.bincount(ends, minlength=self.size)
        self.end_starts = np.cumsum(self.end_counts) - self.end_counts
        ahead = np.full(self.size, -np.inf)
        np.maximum.at(ahead, np.array(ends, np.int64), single[lexicon.word] + lexicon.odds)
        for at in range(self.size - 1, 0, -1):  # children come after their parents
            ahead[above[at]] = max(ahead[above[at]], ahead[at])
        ahead[0] = 0.0
        self.ahead = ahead
        """[N] log P of the likeliest word that can still come; 0 where any word can."""
