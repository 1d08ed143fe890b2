"""The printed conversation, and the flat form of events."""

from __future__ import annotations

from apps.transcript_lines import lines_of
from duplex.events import (
    Backchannel,
    Event,
    FloorChanged,
    ResponseEnded,
    ResponseStarted,
    SpeechLabelled,
    Trouble,
    UserTranscript,
    as_dict,
)

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


def test_labels_of_the_ears_stand_behind_their_turn() -> None:
    events = [
        SpeechLabelled(8_000, "en", "neutral", "speech"),
        SpeechLabelled(9_000, "en", "happy", "laughter"),
        UserTranscript(16_000, "Ha ha.", True),
        UserTranscript(32_000, "Next.", True),
        SpeechLabelled(40_000, None, None, "speech"),
        UserTranscript(48_000, "Last.", True),
    ]
    assert [line[11:] for line in lines_of(events)] == ["user   Ha ha.  [en, happy, laughter]", "user   Next.", "user   Last."]


def test_events_have_a_flat_form() -> None:
    assert as_dict(EVENTS[4]) == {"type": "response_started", "at_s": 1.5, "epoch": 1, "latency_s": 0.5}
