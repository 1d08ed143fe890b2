"""What the live view shows of a scripted conversation."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from apps.talk_view import METER_CELLS, TalkView, meter
from duplex.audio import user_samples
from duplex.events import (
    AgentTranscript,
    Backchannel,
    Event,
    FloorChanged,
    Levels,
    ResponseEnded,
    ResponseStarted,
    SpeculationDiscarded,
    SpeechLabelled,
    Trouble,
    UserStarted,
    UserTranscript,
)


def at(seconds: float) -> int:
    return user_samples(seconds)


CONVERSATION: list[Event] = [
    UserStarted(at(1)),
    FloorChanged(at(1), "user"),
    UserTranscript(at(1.5), "what is", False),
    SpeculationDiscarded(at(1.8), 1),
    UserTranscript(at(2), "What is the time?", True),
    ResponseStarted(at(2.6), 2, 0.62),
    FloorChanged(at(2.6), "agent"),
    AgentTranscript(at(3), 2, "It is ten", "It is ten past nine."),
    Backchannel(at(3.2), "mm-hm"),
    ResponseEnded(at(4), 2, "completed", "It is ten past nine.", "It is ten past nine."),
    UserTranscript(at(6), "Tell me more.", True),
    ResponseStarted(at(7), 3, 1.0),
    ResponseEnded(at(8), 3, "interrupted", "Once upon", "Once upon a midnight dreary", 0.21),
    Trouble(at(9), "The machine is too slow."),
    Levels(at(9.5), -20.0, -100.0, 27.4),
]


def shown(view: TalkView, *, styles: bool = False) -> str:
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    console.print(view.render())
    return console.export_text(styles=styles)


def view_of(events: list[Event]) -> TalkView:
    view = TalkView()
    for event in events:
        view.take(event)
    return view


def test_the_screen_shows_both_sides_levels_latency_and_trouble() -> None:
    view = view_of(CONVERSATION)
    view.echo, view.device_ms, view.keys = "webrtc", 141.6, "m mutes"
    text = shown(view)
    for words in (
        "What is the time?",
        "It is ten past nine.  [after 0.62 s]",
        "mm-hm  [the agent talks on]",
        "Once upon a midnight dreary  [after 1.00 s, interrupted, silent 210 ms later]",
        "The machine is too slow.",
        "webrtc -27 dB",
        "1.00 s, median 1.00 s",
        "210 ms",
        "devices 142 ms",
        "0:09, 0 gaps",
        "m mutes, q or Ctrl-C ends",
        "the agent speaks",
        "0:09",
    ):
        assert words in text
    assert text.index("What is the time?") < text.index("It is ten past nine.") < text.index("Tell me more.")
    assert "what is\n" not in text


def test_the_echo_line_tells_the_canceller_and_whether_it_is_trusted() -> None:
    view = TalkView()
    assert "not cancelled" in shown(view)
    view.echo, view.echo_trusted = "webrtc", False
    assert "webrtc none yet, learning" in shown(view)
    view.take(Levels(0, -20.0, -20.0, 31.0))
    assert "webrtc -31 dB, learning" in shown(view)
    view.echo = "half_duplex"
    assert "half duplex" in shown(view)


def test_the_status_fits_eighty_columns() -> None:
    view = view_of(CONVERSATION)
    view.echo, view.echo_trusted, view.device_ms = "webrtc", False, 1160.0
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(view._status())
    lines = console.export_text().rstrip().splitlines()
    assert len(lines) == 3
    assert "…" not in "".join(lines)


def test_a_shut_microphone_catches_the_eye() -> None:
    view = TalkView()
    view.microphone = "muted"
    assert "\x1b[1;33mmuted" in shown(view, styles=True)


def test_what_the_ears_say_besides_words_stands_behind_the_turn() -> None:
    view = TalkView()
    view.take(SpeechLabelled(at(1), "en", None, "speech"))
    view.take(UserTranscript(at(1.5), "ha", False))
    assert "ha  [en]" in shown(view)
    view.take(SpeechLabelled(at(1.6), "en", "happy", "laughter"))
    assert "ha  [en, happy, laughter]" in shown(view)
    assert view.take(UserTranscript(at(2), "Ha ha.", True)) == ["0:01  you    Ha ha.  [en, happy, laughter]"]
    assert view.take(UserTranscript(at(5), "Next.", True)) == ["0:05  you    Next."]


def test_interim_words_are_dim_and_unheard_ones_struck_out() -> None:
    interim = shown(view_of(CONVERSATION[:3]), styles=True)
    assert "\x1b[2;3mwhat is" in interim
    final = shown(view_of(CONVERSATION), styles=True)
    assert "\x1b[2;9m a midnight dreary" in final
    assert "\x1b[2;3m" not in final
    speaking = shown(view_of(CONVERSATION[:8]), styles=True)
    assert "\x1b[2m past nine." in speaking


def test_without_a_screen_each_finished_turn_is_one_line() -> None:
    view = TalkView()
    lines = [line for event in CONVERSATION for line in view.take(event)]
    assert lines[0] == "0:01  you    What is the time?"
    assert [line[6:].split("  ")[0] for line in lines] == ["you", "you", "agent", "you", "agent", "!"]
    assert lines[4].endswith("Once upon (unheard: a midnight dreary)  [after 1.00 s, interrupted, silent 210 ms later]")


def test_a_response_that_nobody_heard_leaves_no_line() -> None:
    view = TalkView()
    assert view.take(ResponseEnded(at(1), 7, "cancelled", "", "Never said.")) == []
    assert not view.lines


def test_interim_words_of_a_backchannel_do_not_stay() -> None:
    view = view_of([UserTranscript(at(1), "mm", False), Backchannel(at(1.2), "mm-hm")])
    assert [line.said for line in view.lines] == ["mm-hm"]


def test_the_summary_counts() -> None:
    view = view_of(CONVERSATION)
    view.underruns = 2
    text = " ".join(view.summary())
    assert "2 answers, 2 gaps" in text
    assert "median 1.00 s, slowest 1.00 s" in text
    assert "at most 210 ms" in text
    assert "27 dB" in text
    assert TalkView().summary() == ["0 s of conversation, 0 answers, 0 gaps in the voice."]


def test_a_long_conversation_keeps_a_bounded_screen() -> None:
    view = TalkView(most=5)
    for turn in range(100):
        view.take(UserTranscript(at(turn), f"turn {turn}", True))
        view.take(ResponseStarted(at(turn), turn, 0.5))
        view.take(ResponseEnded(at(turn), turn, "completed", "yes", "yes"))
    assert len(view.lines) == 5
    assert len(view.latencies_s) == 100
    assert "turn 99" in shown(view)
    assert "turn 50" not in shown(view)


def test_brackets_in_speech_are_shown_as_they_are() -> None:
    assert "a [b] c" in shown(view_of([UserTranscript(at(1), "a [b] c", True)]))


@pytest.mark.parametrize(("level_db", "cells"), [(-200, 0), (-60, 0), (-30, METER_CELLS // 2), (0, METER_CELLS), (20, METER_CELLS)])
def test_the_meter(level_db: float, cells: int) -> None:
    bar = meter(level_db, "green")
    assert bar.plain.count("█") == cells
    assert len(bar.plain) == METER_CELLS
