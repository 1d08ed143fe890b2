"""A built conversation as the agent hears it, tick by tick: voice activity on its sound, and the words as far as they would be known.

In training the words are those that the recogniser made of each stretch beforehand, told after a delay as long as recognising takes. The
bench recognises the sound itself instead (see apps.bench_floor_ears).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from duplex.audio import TICK, USER_RATE_HZ, seconds, user_samples
from duplex.levels import level_db
from duplex.predictor_features import Heard
from duplex.scenario import Event, Scenario
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


@dataclass(frozen=True)
class WordsConfig:
    """When words are known, and how often they are not."""

    least_s: float = 0.20
    """Shortest time from the end of a stretch to its words."""
    most_s: float = 0.55
    """Longest."""
    lag_s: float = 0.45
    """While a sound goes on over the agent's voice, its words are known so much later."""
    missing: float = 0.25
    """Share of conversations in which no words are known."""
    endless: float = 0.25
    """Share in which nobody says how likely a sentence ends."""


def with_words(scenario: Scenario, heard: Sequence[Heard], seed: int, config: WordsConfig | None = None) -> list[Heard]:
    """The ticks with the words of the scenario's events."""
    c, rng = config or WordsConfig(), np.random.default_rng((seed, 1))
    draw = rng.random()
    told = list(heard)
    if draw < c.missing:
        return told
    endless = rng.random() < c.endless
    for event in scenario.events:
        if event.kind in ("pause", "turn", "interruption"):
            start = event.start if event.kind == "pause" else event.end
            begun = start + user_samples(rng.uniform(c.least_s, c.most_s))
            for tick in range(begun // TICK, len(told)):
                if told[tick].voiced or told[tick].agent_speaking or (event.kind == "pause" and (tick + 1) * TICK > event.end):
                    break
                ends = None if endless else event.ends
                told[tick] = replace(told[tick], transcript=event.heard, fresh=True, sentence_ends=ends)
        if event.kind in ("interruption", "backchannel", "side_talk"):
            _over_agent(told, event, c)
    return told


def _over_agent(told: list[Heard], event: Event, config: WordsConfig) -> None:
    """Words of a sound over the agent's voice: so far while it lasts, all of them soon after."""
    words = event.heard.split()
    spoken_s = max(seconds(event.end - event.start), 0.1)
    for tick in range(event.start // TICK, len(told)):
        if not told[tick].agent_speaking:
            return
        since_s = (tick + 1) * TICK / USER_RATE_HZ - event.start / USER_RATE_HZ
        if since_s > spoken_s + 3.0:
            return
        share = (since_s - config.lag_s) / spoken_s
        count = len(words) if share >= 1 else int(max(share, 0) * len(words))
        if count:
            told[tick] = replace(told[tick], transcript=" ".join(words[:count]), fresh=share >= 1)
