"""Scores of turn-taking, on decisions that are made by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from duplex.audio import user_samples
from duplex.floor_scores import OverlapRun, Setting, TurnRun, curve, delay_at, floor_scores


def run(pauses: list[tuple[float, float]], end_s: float, scores: list[float], wait_s: float = 0.7) -> TurnRun:
    """A turn with decisions every 20 ms; scores: of each pause, and of the end."""
    at = np.arange(0, user_samples(end_s + 4), 320)
    silence, score = np.zeros(len(at)), np.zeros(len(at))
    gaps = [*((user_samples(a), user_samples(b)) for a, b in pauses), (user_samples(end_s), user_samples(end_s + 4))]
    for (start, stop), value in zip(gaps, scores, strict=True):
        inside = (at > start) & (at <= stop)
        silence[inside], score[inside] = (at[inside] - start) / 16000, value
    return TurnRun(tuple(gaps[:-1]), gaps[-1][0], at, silence, score, silence >= wait_s)


def test_taking_in_a_pause_is_a_cut_off_and_waiting_is_not() -> None:
    assert run([(1, 1.9)], 3, [0, 0]).cut_off(run([(1, 1.9)], 3, [0, 0]).takes)
    short = run([(1, 1.5)], 3, [0, 0])
    assert not short.cut_off(short.takes)
    assert short.delay_s(short.takes) == pytest.approx(0.7, abs=0.021)


def test_a_turn_that_is_never_taken_is_missed() -> None:
    never = run([], 2, [0], wait_s=9)
    assert never.delay_s(never.takes) is None
    assert floor_scores([never], []).turn_rate == 0.0


def test_all_measures() -> None:
    turns = [run([(1, 1.9)], 3, [0, 0]), run([(1, 1.5)], 3, [0, 0]), run([], 2, [0]), run([], 2, [0], wait_s=0.3)]
    overlaps = [
        OverlapRun("interruption", 16000, 16000 + 4800),
        OverlapRun("interruption", 16000, None),
        OverlapRun("backchannel", 16000, None),
        OverlapRun("backchannel", 16000, 20000),
        OverlapRun("noise", 16000, None),
    ]
    found = floor_scores(turns, overlaps)
    assert (found.pause_rate, found.turn_rate, found.interruption_rate, found.backchannel_rate, found.noise_rate) == (
        0.5,
        1,
        0.5,
        0.5,
        0,
    )
    assert found.turn_latency_s == pytest.approx(0.5, abs=0.021) and found.stop_latency_s == pytest.approx(0.3)
    assert math.isnan(found.side_talk_rate)


def test_a_setting_trusts_the_score_sooner() -> None:
    sure = run([], 2, [0.9])
    assert sure.delay_s(Setting(0.24, 0.5, 1.0).takes(sure)) == pytest.approx(0.24, abs=0.021)
    assert sure.delay_s(Setting(0.24, 0.95, 1.0).takes(sure)) == pytest.approx(1.0, abs=0.021)


def test_a_score_that_knows_beats_one_that_does_not() -> None:
    lengths = (0.4, 0.6, 0.9, 1.3, 1.7)
    knows = [run([(1, 1 + s)], 4, [0.1, 0.9]) for s in lengths]
    waits = [run([(1, 1 + s)], 4, [0.0, 0.0]) for s in lengths]
    best, plain = curve(knows), curve(waits)
    assert delay_at(best, 0.0) == pytest.approx(0.12, abs=0.05)
    assert delay_at(plain, 0.0) > 1.6
    assert [p.cut_off for p in plain] == sorted(p.cut_off for p in plain)
    assert all(a.delay_s > b.delay_s for a, b in pairwise(plain))


def test_no_setting_is_so_careful() -> None:
    assert math.isnan(delay_at(curve([run([(1, 3.9)], 6, [0, 0])]), 0.0))
