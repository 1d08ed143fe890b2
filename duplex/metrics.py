"""Latencies read off the sound itself: no event, no model's word for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from duplex.audio import AGENT_RATE_HZ, USER_RATE_HZ, Samples

AUDIBLE_DB = -50.0
"""A sample above this (dBFS) can be heard."""


def _audible(agent: Samples) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.flatnonzero(np.abs(agent) > 10 ** (AUDIBLE_DB / 20))


def response_latency_s(agent: Samples, user_end: int, until: int | None = None) -> float | None:
    """End of the user's speech (user sample) to the agent's first audible sample, in seconds; None when none came before `until`.

    agent: [n] at 24 kHz on the user's clock. Negative when the agent was audible before the user ended.
    """
    return _first_after(agent, user_end, until)


def _first_after(agent: Samples, at: int, until: int | None) -> float | None:
    start = at * AGENT_RATE_HZ // USER_RATE_HZ
    stop = len(agent) if until is None else until * AGENT_RATE_HZ // USER_RATE_HZ
    found = _audible(agent[start:stop])
    return float(found[0]) / AGENT_RATE_HZ if len(found) else None


def stop_latency_s(agent: Samples, onset: int, silence_s: float = 0.35, within_s: float = 3.0) -> float | None:
    """Onset of the user's voice over the agent to the agent's last audible sample before `silence_s` of silence, in seconds.

    None when the agent was not speaking at the onset or did not fall silent within `within_s`.
    """
    start = onset * AGENT_RATE_HZ // USER_RATE_HZ
    before = agent[max(start - AGENT_RATE_HZ // 2, 0) : start]
    part = agent[start : start + round((within_s + silence_s) * AGENT_RATE_HZ)]
    if not len(_audible(before)):
        return None
    heard = _audible(part)
    edges = np.concatenate([[0], heard, [len(part)]])
    gaps = np.flatnonzero(np.diff(edges) >= silence_s * AGENT_RATE_HZ)
    return float(edges[gaps[0]]) / AGENT_RATE_HZ if len(gaps) else None


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and tail of some measurements."""

    count: int
    median: float
    p95: float
    worst: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Raises ValueError for no values."""
        if not values:
            raise ValueError("there is nothing to summarise")
        return cls(len(values), float(np.median(values)), float(np.percentile(values, 95)), max(values))
