"""The held-out texts that voices are judged on: replies of the language model, and hard ones written by hand.

The replies answer questions that the training never asked (bench_texts/replies.json). The hard ones are rare names, figures, dates, tongue
twisters and long words (bench_texts/hard.txt, one a line).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

TEXTS = Path(__file__).parent / "bench_texts"

Kind = Literal["replies", "hard"]
KINDS: tuple[Kind, ...] = ("replies", "hard")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One text to be spoken."""

    kind: Kind
    question: str
    """What it answers; "" for a text without a question."""
    text: str


@cache
def held_out(kind: Kind) -> tuple[HeldOut, ...]:
    """All texts of a kind, always in the same order."""
    if kind == "hard":
        lines = (TEXTS / "hard.txt").read_text(encoding="utf-8").splitlines()
        return tuple(HeldOut(kind, "", line.strip()) for line in lines if line.strip())
    listed = json.loads((TEXTS / "replies.json").read_text(encoding="utf-8"))
    return tuple(HeldOut(kind, item["question"], item["text"]) for item in listed)


def chosen(kind: Kind, count: int | None) -> tuple[HeldOut, ...]:
    """`count` texts spread evenly over all of a kind, or all of them."""
    texts = held_out(kind)
    if count is None or count >= len(texts):
        return texts
    return tuple(texts[index * len(texts) // count] for index in range(count))
