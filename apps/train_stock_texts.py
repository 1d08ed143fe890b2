"""What the voices of a stock say: the sentences of duplex.scenario_texts, and for the training many more of what people say to an agent.

The more have their places (`|`) after any word, for people fall silent anywhere.
"""

from __future__ import annotations

from random import Random

import numpy as np

from apps.train_corpus_questions import questions
from apps.train_projector_texts import templates, tidy
from duplex.scenario_texts import Set, choose, sentences

MOST_PLACES = 3
LEAST_WORDS = 4
"""Of a sentence with a place."""


def to_say(which: Set, count: int, rng: np.random.Generator) -> list[str]:
    """`count` sentences for one voice, choices made, places marked; in the training every second one is a free one."""
    built = sentences(which)
    if which == "bench":
        return [choose(built[index % len(built)], rng) for index in range(count)]
    free = iter(_free(count // 2, int(rng.integers(1 << 31))))
    return [next(free) if index % 2 else choose(built[index // 2 % len(built)], rng) for index in range(count)]


def _free(count: int, seed: int) -> list[str]:
    """Questions, requests, statements and small talk."""
    random, found = Random(seed), dict[str, None]()
    while len(found) < count:
        seed += 1
        more = [asked.text for asked in questions(count, seed)]
        more += [text for text in map(tidy, templates(np.random.default_rng(seed), count)) if text is not None]
        random.shuffle(more)
        found |= dict.fromkeys(text for text in more if 2 <= len(text.split()) <= 16)
    return [with_places(text, random) for text in list(found)[:count]]


def with_places(text: str, random: Random) -> str:
    """A sentence with marks after some of its words; none after the end of a sentence within it, where the turn might be over."""
    words = text.split()
    able = [n for n in range(1, len(words)) if words[n - 1][-1].isalnum()]
    if len(words) < LEAST_WORDS or not able:
        return text
    chosen = set(random.sample(able, min(random.randint(1, MOST_PLACES), len(able))))
    return " ".join(f"{'| ' if n in chosen else ''}{word}" for n, word in enumerate(words))
