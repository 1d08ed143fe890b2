"""What the input projector knows of the language: the words of its texts, how each was pronounced there, and what comes after what.

The voice's phones have a space between words, so a word's sounds are known wherever a text has as many groups of phones as words.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.train_projector_speech import sounds_of
from apps.train_projector_texts import Texts
from duplex.errors import InputError
from encoders.word_lexicon import Lexicon
from encoders.word_ngrams import FIRST, WordNgrams

_WORD = re.compile(r"[A-Za-z](?:[A-Za-z'’]*[A-Za-z])?")
_SENTENCE_ENDS = re.compile(r"(?<=[.?!])\s+")

MOST_PRONUNCIATIONS, LEAST_SHARE = 4, 0.04
"""Of each word: no more than so many, and none but the first that has less than this share."""
OPENING_SEEN = 4
"""Sentences that begin alike from which it is known whether they ask something."""


@dataclass(frozen=True, slots=True)
class Language:
    """What is known."""

    lexicon: Lexicon
    ngrams: WordNgrams


def learn(texts: Texts, held_every: int) -> Language:
    """From texts with their phones, without those that are kept for judging. Raises InputError when no text's words can be told apart."""
    sounds = sounds_of(texts)
    said: defaultdict[str, Counter[tuple[int, ...]]] = defaultdict(Counter)
    written: defaultdict[str, Counter[str]] = defaultdict(Counter)
    sentences: list[tuple[list[str], bool]] = []
    for index, (text, made) in enumerate(zip(texts.texts, texts.phones, strict=True)):
        if index % held_every == 0:
            continue
        groups = _words(made, sounds[index], texts)
        parts = [(_WORD.findall(part), part.endswith("?")) for part in _SENTENCE_ENDS.split(text)]
        words = [word for some, _ in parts for word in some]
        if len(words) == len(groups):
            for word, group in zip(words, groups, strict=True):
                said[word.lower()][group] += 1
        for some, asks in parts:
            for word in some[1:]:
                written[word.lower()][word] += 1
            sentences.append(([word.lower() for word in some], asks))
    if not said:
        raise InputError("The phones of no text are known; gather the texts where the voice joe is (`--pack`).")
    ids = {word: FIRST + index for index, word in enumerate(said)}
    known = [([ids[word] for word in some], asks) for some, asks in sentences if some and all(word in ids for word in some)]
    forms = tuple(written[word].most_common(1)[0][0] if word in written else word for word in ids)
    word, rows, odds = list[int](), list[tuple[int, ...]](), list[float]()
    for text, ways in said.items():
        total = sum(ways.values())
        for rank, (way, times) in enumerate(ways.most_common(MOST_PRONUNCIATIONS)):
            if not rank or times >= LEAST_SHARE * total:
                word.append(ids[text])
                rows.append(way)
                odds.append(math.log(times / total))
    lexicon = Lexicon(("",) * FIRST + forms, np.array(word, np.int64), tuple(rows), np.array(odds), _asking(known))
    return Language(lexicon, WordNgrams.count((one for one, _ in known), FIRST + len(ids)))


def _words(phones: NDArray[np.uint8], sounds: NDArray[np.int64], texts: Texts) -> list[tuple[int, ...]]:
    """A text's sounds, word by word."""
    heard = texts.sounds[phones]
    ends = np.cumsum(heard)[phones == texts.space]
    return [tuple(part.tolist()) for part in np.split(sounds, ends) if len(part)]


def _asking(sentences: Iterable[tuple[list[int], bool]]) -> dict[tuple[int, ...], float]:
    """Beginnings of one and of two words that were seen often enough -> the share that asks something."""
    times: Counter[tuple[int, ...]] = Counter()
    asked: Counter[tuple[int, ...]] = Counter()
    for words, asks in sentences:
        for length in (1, 2):
            if len(words) >= length:
                times[tuple(words[:length])] += 1
                asked[tuple(words[:length])] += asks
    shares = {opening: asked[opening] / n for opening, n in times.items() if n >= OPENING_SEEN}
    return {
        opening: share
        for opening, share in shares.items()
        if (len(opening) == 1 and share > 0.5) or (len(opening) == 2 and (share > 0.5) != (shares.get(opening[:1], 0.0) > 0.5))
    }
