"""The agent's own backchannels: short sounds in its voice while the user pauses, made ahead so that each is there at once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from duplex.audio import Samples
from duplex.errors import ConfigError

if TYPE_CHECKING:
    from agent.response import Manner, Responder


@dataclass(frozen=True, slots=True)
class BackchannelConfig:
    """What the agent says while the user pauses; whether and when it does is in `turns`."""

    texts: tuple[str, ...] = ("Uh-huh.", "Right.", "I see.", "Okay.")
    """They are said in turn."""
    level_db: float = -6.0
    """Against the agent's ordinary voice."""

    def __post_init__(self) -> None:
        if not self.texts or not all(text.strip() for text in self.texts):
            raise ConfigError("backchannels.texts needs at least one text, and no empty one.")


class Backchannels:
    """One conversation's; made by a task of the session, taken in its `hear`."""

    def __init__(self, config: BackchannelConfig) -> None:
        self.config = config
        self._made: list[tuple[str, Samples]] = []
        self._speaker: object = None
        self._turn = itertools.count()

    async def make(self, responder: Responder, manner: Manner) -> None:
        """Speak every text in the manner's voice, as speaking work of its own."""
        gain = np.float32(10 ** (self.config.level_db / 20))
        made = [(text, gain * await responder.sound(text, manner)) for text in self.config.texts]
        self._made, self._speaker = [(text, samples) for text, samples in made if len(samples)], manner.speaker

    def of(self, speaker: object) -> bool:
        """Whether they are there, in this voice."""
        return bool(self._made) and self._speaker is speaker

    def next(self) -> tuple[str, Samples]:
        """The next one: text and samples [n] at 24 kHz."""
        return self._made[next(self._turn) % len(self._made)]
