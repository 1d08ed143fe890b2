"""Scores of turn-taking: Full-Duplex-Bench's measures, and false cut-offs against delay.

A system is scored by its decisions alone, on a conversation that takes its course whatever it decides: when it would have taken the floor
in each silence, and when it would have held its voice or given the floor up under each sound over it. Making and fading sound is not in
the figures; the conversation bench measures that.

    pause handling         takeover rate over turns with pauses: taken in any pause            (lower is better)
    turn-taking            takeover rate and latency after the end of turns without pauses     (higher, lower)
    interruption           takeover rate and latency from the interruption's onset, to the decision and to the agent's silence
                           (higher, lower)
    backchannel and noise  takeover rate                                                       (lower)
    curve                  over all turns: share cut off in a pause, and mean silence after the end of the others
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from duplex.audio import seconds
from duplex.scenario import Scenario

WITHIN_S = 3.0
"""A turn that is not taken within so much counts as missed, and with so much delay in the curve."""


@dataclass(frozen=True, slots=True)
class TurnRun:
    """What a system thought during one turn and the silence after it; [k] decisions."""

    pauses: tuple[tuple[int, int], ...]
    """Start and end of each, in user samples."""
    end: int
    """Where the turn ends."""
    at: NDArray[np.int64]
    """[k] where each decision falls, in user samples."""
    silence_s: NDArray[np.float64]
    """[k] silence as the system knows it; 0 while it hears a voice."""
    score: NDArray[np.float64]
    """[k] how far it thinks the turn is over, on any scale; equal throughout for a system that only waits."""
    takes: NDArray[np.bool_]
    """[k] whether, as it is shipped, it takes the floor."""

    def cut_off(self, takes: NDArray[np.bool_]) -> bool:
        """Whether the floor is taken in a pause (or while the user speaks) before the turn's end."""
        return bool(takes[self.at <= self.end].any())

    def delay_s(self, takes: NDArray[np.bool_]) -> float | None:
        """The end of the turn to the first decision after it that takes the floor; None when there is none in time."""
        found = self.at[takes & (self.at > self.end)]
        delay = seconds(int(found[0]) - self.end) if len(found) else WITHIN_S
        return delay if delay < WITHIN_S else None


@dataclass(frozen=True, slots=True)
class OverlapRun:
    """When a system would have given up the floor under one sound over the agent's voice."""

    kind: str
    """interruption, backchannel, noise or side_talk."""
    onset: int
    """Where the sound begins, in user samples."""
    yields_at: int | None
    """The first decision after that which gives up the floor; None when it speaks on."""
    quiet_at: int | None = None
    """Where its voice stopped for that, which may be sooner; None when it speaks on."""
    held_s: float = 0.0
    """For how long its voice stopped when it spoke on afterwards."""


@dataclass(frozen=True, slots=True)
class FloorScores:
    """Full-Duplex-Bench's measures; rates in [0, 1], nan where nothing was tried."""

    pause_rate: float
    turn_rate: float
    turn_latency_s: float
    """Median."""
    interruption_rate: float
    stop_latency_s: float
    """Median, to the decision."""
    quiet_latency_s: float
    """Median, to where the agent's voice stops, at the latest with the decision."""
    backchannel_rate: float
    noise_rate: float
    """Coughs, laughter, bangs."""
    side_talk_rate: float
    """Another voice, farther away."""
    held_rate: float
    """Backchannels that were talked through only after holding the voice."""
    held_s: float
    """For how long, median of those."""


def floor_scores(turns: Sequence[TurnRun], overlaps: Sequence[OverlapRun]) -> FloorScores:
    """All measures of one system as it is shipped."""
    delays = [run.delay_s(run.takes) for run in turns if not run.pauses]
    stops = [o for o in overlaps if o.kind == "interruption"]
    latencies = [seconds(o.yields_at - o.onset) for o in stops if o.yields_at is not None]
    quiet = [seconds(o.quiet_at - o.onset) for o in stops if o.quiet_at is not None]
    passed = [o.held_s for o in overlaps if o.kind == "backchannel" and o.yields_at is None]
    rates = {
        kind: _share([o.yields_at is not None for o in overlaps if o.kind == kind])
        for kind in ("backchannel", "noise", "side_talk")
    }
    return FloorScores(
        pause_rate=_share([run.cut_off(run.takes) for run in turns if run.pauses]),
        turn_rate=_share([delay is not None for delay in delays]),
        turn_latency_s=_median([delay for delay in delays if delay is not None]),
        interruption_rate=_share([o.yields_at is not None for o in stops]),
        stop_latency_s=_median(latencies),
        quiet_latency_s=_median(quiet),
        backchannel_rate=rates["backchannel"],
        noise_rate=rates["noise"],
        side_talk_rate=rates["side_talk"],
        held_rate=_share([held > 0 for held in passed]),
        held_s=_median([held for held in passed if held > 0]),
    )


def _share(yes: Sequence[bool]) -> float:
    return float(np.mean(yes)) if len(yes) else float("nan")


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to use a system's score: take the floor after `sure_s` of silence when the score reaches `score`, in any case after `any_s`."""

    sure_s: float
    score: float
    any_s: float

    def takes(self, run: TurnRun) -> NDArray[np.bool_]:
        """[k] where it takes the floor."""
        return ((run.silence_s >= self.sure_s) & (run.score >= self.score)) | (run.silence_s >= self.any_s)


@dataclass(frozen=True, slots=True)
class Point:
    """One setting on the curve."""

    cut_off: float
    """Share of turns with a pause or without that are cut off."""
    delay_s: float
    """Mean silence after the end of the turns that are not."""
    setting: Setting


SURE_S = (0.1, 0.16, 0.24, 0.32, 0.4, 0.5, 0.6, 0.8)
ANY_S = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.4, 2.8)


def curve(turns: Sequence[TurnRun]) -> list[Point]:
    """The best settings of a system, from few cut-offs to short delays: no setting is better than one of these in both.

    Every system has the same settings to choose from, and chooses them on these same turns: all are flattered alike.
    """
    scores = np.concatenate([run.score[run.silence_s > 0] for run in turns])
    levels = [*np.unique(np.quantile(scores, np.linspace(0.02, 0.98, 13))), np.inf]
    found = []
    for sure_s, score, any_s in product(SURE_S, levels, ANY_S):
        if any_s < sure_s:
            continue
        setting = Setting(sure_s, float(score), any_s)
        cut, delays = 0, []
        for run in turns:
            takes = setting.takes(run)
            if run.cut_off(takes):
                cut += 1
            else:
                delays.append(run.delay_s(takes) or WITHIN_S)
        if delays:
            found.append(Point(cut / len(turns), float(np.mean(delays)), setting))
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.cut_off, p.delay_s)):
        if not best or point.delay_s < best[-1].delay_s:
            best.append(point)
    return best


def delay_at(points: Sequence[Point], cut_off: float) -> float:
    """The shortest delay with at most so many cut-offs; nan when no setting has as few."""
    able = [point.delay_s for point in points if point.cut_off <= cut_off + 1e-9]
    return min(able) if able else float("nan")


def turn_span(scenario: Scenario) -> tuple[tuple[tuple[int, int], ...], int]:
    """The pauses and the end of a scenario's first turn."""
    turn = next(event for event in scenario.events if event.kind == "turn")
    pauses = tuple((e.start, e.end) for e in scenario.events if e.kind == "pause" and e.end <= turn.end)
    return pauses, turn.end
