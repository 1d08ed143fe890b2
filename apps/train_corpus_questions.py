"""What the corpus of the voice is made from: questions for the LLM to answer, and texts that are read as they are.

Templates and words lie in `corpus/`. A set is drawn anew for every seed, never repeats itself, and the held-out set shares no template with
the trained one. What the benches say, and what the predictor is taught with, is in neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal

from duplex.scenario_texts import BENCH, INTERRUPTIONS, TRAINING

Part = Literal["trained", "held out"]
FOLDER = Path(__file__).parent / "corpus"

# How people begin and end when they speak; most say nothing of the kind.
_OPENERS = (
    "Hey, ", "So, ", "Um, ", "Okay, ", "Well, ", "Please tell me, ", "I was wondering, ", "Quick question. ", "Tell me, ", "Hi there. ",
    "Listen, ", "Oh, and ", "Just curious, ", "Excuse me, ", "My friend asks, ", "I forgot, ", "One more thing. ", "Help me out. ",
)  # fmt: skip
_CLOSERS = (
    " Please.", " Thanks.", " Keep it short.", " Explain it simply.", " Give me an example.", " In one sentence, please.", " Be honest.",
    " I am curious.", " My children want to know.", " I really need to know.", " Take your time.", " What do you think?", " Tell me more.",
)  # fmt: skip
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and where it comes from."""

    text: str
    template: str


@cache
def templates(file: str, part: Part) -> tuple[str, ...]:
    """The lines of one part of `questions.txt` or `texts.txt`."""
    lines = [line.strip() for line in (FOLDER / file).read_text(encoding="utf-8").splitlines()]
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("["):
            found[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return tuple(found[part])


_HARD = frozenset(("first", "last", "rareplace", "rareword"))
"""Of these every fifth word is kept for the held-out set, so that it holds words that were never trained on."""


@cache
def words(part: Part = "trained") -> dict[str, tuple[str, ...]]:
    """What may stand in each pair of braces."""
    lines = (FOLDER / "words.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(":", 1) for line in lines if line and not line.startswith("#")]
    found = {name: tuple(word.strip() for word in listed.split(" | ")) for name, listed in pairs}
    for name in _HARD:
        kept = found[name][::5]
        found[name] = kept if part == "held out" else tuple(word for word in found[name] if word not in kept)
    return found


def questions(count: int, seed: int, part: Part = "trained") -> list[Asked]:
    """`count` different questions; equal seeds give equal ones. ValueError when the templates do not hold so many."""
    random = Random(f"questions {part} {seed}")
    return _different(
        count, lambda template: _styled(_fill(template, random, part), random), templates("questions.txt", part), random
    )


def texts(count: int, seed: int, part: Part = "trained") -> list[str]:
    """`count` different texts to be read as they are. ValueError when the templates do not hold so many."""
    random = Random(f"texts {part} {seed}")
    return [
        asked.text
        for asked in _different(count, lambda template: _fill(template, random, part), templates("texts.txt", part), random)
    ]


def _different(count: int, make: Callable[[str], str], lines: tuple[str, ...], random: Random) -> list[Asked]:
    """The templates in turn, each pass in a new order, without what was drawn before or belongs to a bench."""
    found: list[Asked] = []
    known = set(_kept_apart())
    barren = 0
    while len(found) < count:
        before = len(found)
        for template in random.sample(lines, len(lines)):
            text = make(template)
            key = plain(text)
            if key not in known and len(found) < count:
                known.add(key)
                found.append(Asked(text, template))
        barren = barren + 1 if len(found) == before else 0
        if barren > 20:
            raise ValueError(f"only {len(found)} different texts can be made of these templates; ask for fewer than {count}")
    return found


def _styled(text: str, random: Random) -> str:
    if random.random() < 0.25:
        opener = random.choice(_OPENERS)
        first = text.split(" ", 1)[0]
        lower = opener.endswith(", ") and first in _STARTS
        text = opener + (text[0].lower() + text[1:] if lower else text)
    if random.random() < 0.2:
        text += random.choice(_CLOSERS)
    return text


_STARTS_TEXT = """
    What Which Who Where When Why How Is Are Do Does Did Can Could Should Would Was Tell Name Give Explain Recommend Count List Convert
    Have Say Teach Use Let Ask Help Make Describe Spell Split Imagine Pretend
"""
_STARTS = frozenset(_STARTS_TEXT.split())


def _fill(template: str, random: Random, part: Part) -> str:
    """A template with its braces filled, a word not twice."""
    used: set[str] = set()

    def word(match: re.Match[str]) -> str:
        name = match[1]
        if name in _FIGURES:
            return _FIGURES[name](random)
        listed = words(part)[name]
        chosen = random.choice([entry for entry in listed if entry not in used] or listed)
        used.add(chosen)
        return chosen

    text = re.sub(r"\ba ((?:[^\W\d_])\w*)", _article, _SLOT.sub(word, template))
    return text[0].upper() + text[1:].replace("m..", "m.")


def _article(match: re.Match[str]) -> str:
    vowel = match[1][0] in "aeio" and not match[1].startswith(("one", "eu"))
    return f"{'an' if vowel else 'a'} {match[1]}"


def plain(text: str) -> str:
    """A text as it is compared: lower case, letters and digits only, single spaces."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower().replace("'", "")))


@cache
def shipped() -> frozenset[str]:
    """What the shipped test speech says, as `plain` gives it."""
    index = json.loads((Path(__file__).parent / "samples" / "index.json").read_text(encoding="utf-8"))
    return frozenset(plain(clip["text"]) for clips in index.values() for clip in clips)


@cache
def _kept_apart() -> frozenset[str]:
    """What is said in the benches and by the built speakers, as `plain` gives it."""
    built = [
        text
        for block in (TRAINING, BENCH, *INTERRUPTIONS.values())
        for line in block.strip().splitlines()
        for text in _choices(line)
    ]
    return shipped() | {plain(text) for text in built}


def _choices(line: str) -> Iterator[str]:
    """A line with every choice of its braces made."""
    match = re.search(r"\{([^}]*)\}", line)
    if match is None:
        yield line.replace("|", " ")
        return
    for chosen in match[1].split("/"):
        yield from _choices(line[: match.start()] + chosen + line[match.end() :])


def _money(random: Random) -> str:
    return random.choice(
        [f"${random.randint(2, 900)} million", f"${random.randint(2, 99)},{random.randint(0, 999):03}", "€250", "£1,200"]
    )


_FIGURES: dict[str, Callable[[Random], str]] = {
    "int": lambda r: str(r.choice([r.randint(2, 20), r.randint(2, 99), r.randint(100, 999)])),
    "big": lambda r: f"{r.choice([r.randint(1000, 99_999), r.randint(100_000, 9_999_999)]):,}",
    "year": lambda r: str(r.randint(1400, 2030)),
    "money": _money,
    "price": lambda r: f"${r.randint(1, 250)}.{r.randint(1, 99):02}",
    "date": lambda r: f"{r.choice(words()['month'])} {r.randint(1, 28)}, {r.randint(1700, 2025)}",
    "time": lambda r: (
        f"{r.randint(1, 12)}:{r.choice([0, 5, 10, 15, 20, 30, 40, 45, 50]):02} {r.choice(['a.m.', 'p.m.', 'AM', 'PM'])}"
    ),
    "phone": lambda r: f"{r.randint(200, 999)}-{r.randint(200, 999)}-{r.randint(0, 9999):04}",
    "percent": lambda r: r.choice([f"{r.randint(1, 99)}%", f"{r.randint(1, 99)} percent", f"{r.randint(0, 9)}.{r.randint(1, 9)}%"]),
    "decimal": lambda r: f"{r.randint(0, 200)}.{r.randint(1, 99)}",
    "ordinal": lambda r: r.choice(["1st", "2nd", "3rd", "4th", "5th", "8th", "12th", "21st", "33rd", "40th", "100th"]),
    "temp": lambda r: r.choice([f"{r.randint(-20, 40)}°C", f"{r.randint(10, 450)}°F", f"{r.randint(0, 100)} degrees"]),
    "letters": lambda r: "".join(r.sample("ABCDEFGHJKLMNPQRSTUVWXYZ", r.randint(2, 3))),
    "fraction": lambda r: r.choice(["1/2", "1/3", "2/3", "1/4", "3/4", "1 1/2"]),
    "score": lambda r: f"{r.randint(0, 9)} to {r.randint(0, 9)}",
}
