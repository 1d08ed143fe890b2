"""What the heads on a recogniser's states learn from, out of conversations that were listened to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.train_listened import Listened, Reading
from duplex.audio import TICK, user_samples
from duplex.scenario import Event
from encoders.sound_heads import newest
from encoders.sound_heads_training import HeardPlaces, Places, Sounds

FOLDS = 2
HELD_EVERY = 12
"""One sentence, or sound, in so many is kept for judging, by its words."""
AFTER_S = 1.0
"""What is heard so much later is no longer told from the sound before it."""
LEAST_S = 0.12
"""A sound over the agent's voice is not judged sooner."""

_OVER = ("interruption", "backchannel", "noise", "side_talk")


@dataclass(slots=True)
class _Rows:
    frames: list[NDArray[np.float16]] = field(default_factory=list)
    last: list[NDArray[np.float16]] = field(default_factory=list)
    state: list[NDArray[np.float16]] = field(default_factory=list)
    yes: list[bool] = field(default_factory=list)

    def add(self, reading: Reading, yes: bool, places: int) -> None:
        assert reading.states is not None
        self.frames.append(newest(reading.states.frames, places).astype(np.float16))
        if reading.states.last is not None:
            self.last.append(reading.states.last.astype(np.float16))
        if reading.state is not None:
            self.state.append(reading.state)
        self.yes.append(yes)

    def sounds(self) -> Sounds:
        last = np.stack(self.last) if len(self.last) == len(self.yes) else None
        return Sounds(np.stack(self.frames), last, np.array(self.yes, bool))


def heard_places(conversations: Iterable[Listened], places: int, without: int | None = None) -> tuple[HeardPlaces, HeardPlaces]:
    """What is learnt from and what is kept back. Raises ValueError where something never occurs.

    places: states of a sound. without: the fold whose sentences are not learnt from.
    """
    over, listening = (_Rows(), _Rows()), (_Rows(), _Rows())
    for one in conversations:
        for rows, found in ((over, silences(one)), (listening, sounds_over(one))):
            for text, reading, yes in found:
                if _held(text) or fold_of(text) != without:
                    rows[_held(text)].add(reading, yes, places)
    if not all(rows.yes for rows in (*over, *listening)):
        raise ValueError("there are too few conversations to keep some for judging")
    learnt, held = (
        HeardPlaces(Places(np.stack(a.state), np.array(a.yes, bool)), a.sounds(), b.sounds())
        for a, b in zip(over, listening, strict=True)
    )
    return learnt, held


def _held(text: str) -> int:
    return int(int(hashlib.sha256(text.encode()).hexdigest(), 16) % HELD_EVERY == 0)


def fold_of(text: str) -> int:
    """Of a sentence, or sound: what heads make of it that were not taught on its fold is as good as what they make of new ones."""
    return int(hashlib.sha256(f"fold {text}".encode()).hexdigest(), 16) % FOLDS


def fold_file(work: Path, fold: int, name: str) -> Path:
    """Where a head is kept that was taught on the other folds. name: `words` (on the LLM's states), or whose recogniser's states."""
    return work / f"heads-{fold}-{name}.safetensors"


def texts(one: Listened) -> list[str]:
    """For each reading the words of the turn, or sound, that it belongs to: those with which `silences` and `sounds_over` tell it."""
    whole = [event for event in one.events if event.kind != "pause"]
    return [
        next((e.said or str(one.seed) for e in whole if r.end <= e.end + user_samples(AFTER_S)), str(one.seed))
        for r in one.readings
    ]


def silences(one: Listened) -> Iterator[tuple[str, Reading, bool]]:
    """(words of the whole turn, what was heard in a silence of it, whether the turn was over), where the LLM read it."""
    turns = [e for e in one.events if e.kind in ("pause", "turn")]  # an interruption is a turn besides
    for event in turns:
        start, stop, over = event.end, event.end + user_samples(AFTER_S), True
        if event.kind == "pause":
            start, stop, over = event.start, min(event.end, event.start + user_samples(AFTER_S)), False
        whole = next((e.said for e in turns if e.kind != "pause" and e.end >= event.end), event.said)
        for reading in one.readings:
            if start < reading.end <= stop and reading.state is not None and reading.states is not None:
                yield whole, reading, over


def sounds_over(one: Listened) -> Iterator[tuple[str, Reading, bool]]:
    """(words, what was heard of a sound over the agent's voice, whether it asks for nothing); what is left of the echo asks for nothing."""
    events = [event for event in one.events if event.kind in _OVER]
    turns = [event for event in one.events if event.kind == "turn"]
    for reading in one.readings:
        if reading.states is None or not _speaking(one, reading.end):
            continue
        within = [event for event in events if _within(event, reading)]
        for event in within[:1]:
            yield event.said or str(one.seed), reading, event.kind != "interruption"
        if not within and not any(_near(event, reading) for event in (*events, *turns)):
            yield str(one.seed), reading, True


def _within(event: Event, reading: Reading) -> bool:
    return event.start + user_samples(LEAST_S) < reading.end <= event.end + user_samples(AFTER_S)


def _near(event: Event, reading: Reading) -> bool:
    return event.start - user_samples(AFTER_S) < reading.end <= event.end + user_samples(AFTER_S)


def _speaking(one: Listened, at: int) -> bool:
    """Whether the agent speaks then."""
    tick = min(at // TICK, len(one.ticks) - 1)
    return bool(one.ticks[tick, 3])
