"""A probe for shortcuts: can the end of a turn be told from a pause without hearing what was said and how?

Built conversations are only worth learning from if it cannot. A logistic regression is fitted to what silence alone tells, on half of the
silences, and judged on the other half: near 0.5 (area under the curve) is chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from duplex.audio import Samples, seconds, user_samples
from duplex.levels import level_db
from duplex.scenario import Scenario

FEATURES = ("length", "stretch before", "pauses before", "time so far", "level in it", "change of level in it")
"""What the probe is shown of each silence: its own length, the speech before it, and the background noise in it."""


def silences(scenarios: Sequence[Scenario]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Each silence after speech in conversations, up to when the user or the agent speaks -> [n, 6] features, [n] is a turn's end."""
    rows, ends = [], []
    for scenario in scenarios:
        turns = [e for e in scenario.events if e.kind == "turn"]
        for turn in turns:
            inner = [e for e in scenario.events if e.kind == "pause" and turn.start <= e.start and e.end <= turn.end]
            begun = turn.start
            for count, pause in enumerate(inner):
                rows.append(_row(scenario.user, begun, pause.start, pause.end, count, turn.start))
                ends.append(False)
                begun = pause.end
            taken = _taken(scenario, turn.end)
            if taken is not None:
                rows.append(_row(scenario.user, begun, turn.end, taken, len(inner), turn.start))
                ends.append(True)
    return np.array(rows).reshape(-1, len(FEATURES)), np.array(ends, bool)


def _taken(scenario: Scenario, end: int) -> int | None:
    """Where the agent begins to speak after `end`; None when it was speaking there, or never does."""
    tick = end // 1280
    if tick >= scenario.ticks or scenario.speaking[tick]:
        return None
    later = np.flatnonzero(scenario.speaking[tick:])
    return int(tick + later[0]) * 1280 if len(later) else None


def _row(user: Samples, begun: int, start: int, stop: int, count: int, turn: int) -> list[float]:
    middle = (start + stop) // 2
    first, second = level_db(user[start + user_samples(0.1) : middle]), level_db(user[middle : stop - user_samples(0.05)])
    return [
        np.log(seconds(stop - start)),
        np.log(seconds(max(start - begun, 1))),
        count,
        seconds(start - turn),
        second,
        second - first,
    ]


def probe(scenarios: Sequence[Scenario], seed: int = 0) -> float:
    """The area under the ROC curve that silence alone reaches; 0.5 is chance. Raises ValueError for fewer than 20 silences of a kind."""
    rows, ends = silences(scenarios)
    if min(int(ends.sum()), int((~ends).sum())) < 20:
        raise ValueError("the probe needs at least 20 pauses and 20 ends; give it more conversations")
    order = np.random.default_rng(seed).permutation(len(rows))
    rows, ends = rows[order], ends[order]
    rows = (rows - rows.mean(0)) / np.maximum(rows.std(0), 1e-6)
    rows = np.concatenate([rows, rows**2, np.ones((len(rows), 1))], 1)
    half = len(rows) // 2
    weights = np.zeros(rows.shape[1])
    for _ in range(300):
        p = 1 / (1 + np.exp(-rows[:half] @ weights))
        weights += 0.5 * (rows[:half].T @ (ends[:half] - p) / half - 1e-3 * weights)
    return area(rows[half:] @ weights, ends[half:])


def area(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The area under the ROC curve; nan without both kinds."""
    if not positive.any() or positive.all():
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))
