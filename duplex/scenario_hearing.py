"""A built conversation as a predictor hears it, tick by tick: voice activity on its sound, without words.

What the agent knows besides, which takes its ears and its LLM, is found in apps.floor_listening.
"""

from __future__ import annotations

from typing import Any, Protocol

from duplex.audio import TICK, seconds
from duplex.levels import level_db
from duplex.predictor_features import Heard
from duplex.scenario import Scenario
from duplex.vad import VoiceActivity, VoiceActivityConfig


class VoiceModel(Protocol):
    """What is asked of `duplex.vad.Vad`."""

    def open(self) -> Any:
        """A fresh state."""
        ...

    def feed(self, state: Any, samples: Any) -> list[tuple[int, float]]:
        """Probability of voice of each window that became complete."""
        ...


def hear(scenario: Scenario, vad: VoiceModel, config: VoiceActivityConfig | None = None) -> list[Heard]:
    """Both sides at each tick, without words."""
    state, activity = vad.open(), VoiceActivity(config or VoiceActivityConfig(offset_ms=128))
    found = []
    newest = 0.0
    for tick in range(scenario.ticks):
        sound = scenario.user[tick * TICK : (tick + 1) * TICK]
        windows = vad.feed(state, sound)
        level = level_db(sound)
        for end, probability in windows:
            activity.update(end, probability, level)
        newest = max((p for _, p in windows), default=newest)
        silent = 0.0 if activity.active else seconds((tick + 1) * TICK - activity.last_voiced)
        found.append(Heard(sound, newest, activity.active, silent, bool(scenario.speaking[tick])))
    return found
