"""The timeline picture and the printed conversation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apps.timeline import draw_timeline
from apps.transcript_lines import lines_of
from duplex.events import Backchannel, Event, FloorChanged, ResponseEnded, ResponseStarted, Trouble, UserTranscript, as_dict

EVENTS: list[Event] = [
    FloorChanged(0, "user"),
    UserTranscript(8000, "What is", False),
    UserTranscript(16_000, "What is it?", True),
    FloorChanged(17_000, "agent"),
    ResponseStarted(24_000, 1, 0.5),
    Backchannel(32_000, "mm-hm"),
    Trouble(33_000, "slow"),
    ResponseEnded(48_000, 1, "interrupted", "It is", "It is a long story.", 0.2),
]


def test_lines_tell_who_said_what_and_what_was_not_heard() -> None:
    lines = list(lines_of(EVENTS))
    assert lines[0].endswith("user   What is it?")
    assert "It is  [interrupted]  (unheard: a long story.)" in lines[1]
    assert "mm-hm: the agent talks on" in lines[2] and "slow" in lines[3]


def test_the_picture_is_drawn_for_any_length(tmp_path: Path) -> None:
    for seconds in (0.0, 1.0, 45.0):
        path = tmp_path / f"{seconds}.png"
        noise = np.random.default_rng(0).standard_normal(int(seconds * 16_000)).astype(np.float32)
        draw_timeline(path, noise, np.zeros(int(seconds * 24_000), np.float32), EVENTS, "title")
        assert path.stat().st_size > 5000


def test_events_have_a_flat_form() -> None:
    assert as_dict(EVENTS[4]) == {"type": "response_started", "at_s": 1.5, "epoch": 1, "latency_s": 0.5}
