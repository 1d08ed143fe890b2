"""Built conversations: two tracks and, for every tick, what a listener of good manners would do.

    Utterance (one sentence, with the places where it may break off)
      -> Turn (the sentence with some of its places held as pauses)
        -> Scenario (turns, the agent's speech, sounds and voices over it, in a room, with noise)

duplex.scenario_builder makes them.

Labels: WAIT; RESPOND from the end of a turn until the agent speaks; YIELD from the onset of an interruption until the agent falls silent;
KEEP while a sound that asks for nothing lies over the agent's voice, and half a second after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from duplex.audio import Samples

WAIT, RESPOND, YIELD, KEEP = range(4)
"""The four decisions, in the order of the predictor's classes."""
NAMES = ("wait", "respond", "yield", "keep")

Kind = Literal["turn", "pause", "interruption", "backchannel", "noise", "side_talk"]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One sentence as it was spoken, with the places where its speaker may fall silent; the last place is its end."""

    voice: str
    samples: Samples
    """[n] at 16 kHz."""
    places: tuple[int, ...]
    """Samples after each stretch; the last is n."""
    said: tuple[str, ...]
    """The words up to each place."""
    whole: tuple[bool, ...]
    """Whether the words up to each place are a whole sentence; the last one ends the turn."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens in a scenario; positions are user samples."""

    kind: Kind
    start: int
    end: int
    said: str = ""
    """The words of the turn up to `end`."""
    whole: bool = True
    """False after words that plainly go on."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A conversation of two tracks."""

    user: Samples
    """[n] the microphone, 16 kHz."""
    agent: Samples
    """[n] what the agent plays."""
    speaking: NDArray[np.bool_]
    """[ticks] whether the agent speaks when a tick ends."""
    labels: NDArray[np.int8]
    """[ticks] the right decision at the end of each tick."""
    events: tuple[Event, ...]
    """In order of their start."""

    @property
    def ticks(self) -> int:
        """Whole ticks."""
        return len(self.labels)


@dataclass(frozen=True)
class ScenarioConfig:
    """What conversations are like."""

    silence_s: tuple[float, float] = (0.3, 2.0)
    """Shortest and longest pause, and wait of the agent after a turn; drawn evenly on a logarithmic scale."""
    stretch_s: tuple[float, float] = (0.6, 4.5)
    """Speech before a silence, likewise."""
    exchanges: int = 2
    """User turns that the agent answers."""
    clean: bool = False
    """No room, no noise, no change of level."""
    noise_db: tuple[float, float] = (5.0, 30.0)
    """Signal-to-noise ratio."""
    level_db: tuple[float, float] = (-38.0, -18.0)
    """The user's level while speaking, dBFS."""
    tempo: tuple[float, float] = (0.82, 1.25)
    """Factor on speed and pitch."""


@dataclass(slots=True)
class Stock:
    """What scenarios are built from."""

    utterances: list[Utterance]
    interruptions: list[Utterance]
    backchannels: list[Utterance]
    leads: list[Utterance] = field(default_factory=list)
    """Short openings that may stand before a sentence of the same voice."""

    def voices(self) -> list[str]:
        """Who speaks."""
        return sorted({u.voice for u in self.utterances})
