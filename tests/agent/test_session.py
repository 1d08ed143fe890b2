"""One scripted conversation on a manual clock for each rule of the turn-taking table."""

from __future__ import annotations

import numpy as np
import pytest

from agent.response import ResponseConfig
from agent.session import SessionConfig
from duplex.audio import seconds
from duplex.events import (
    Backchannel,
    FloorChanged,
    ResponseEnded,
    ResponseStarted,
    SpeculationDiscarded,
    Trouble,
    UserStopped,
    UserTranscript,
)
from duplex.turns import TurnConfig
from duplex.vad import VoiceActivityConfig
from tests.agent.conversations import Line, converse

LONG = "This is a rather long answer that goes on and on about the matter at hand until someone stops it at last."


def test_a_question_is_answered_and_both_sides_are_remembered() -> None:
    done = converse([Line("What is the capital of France?")], ["Paris is."])
    assert done.history() == [("user", "What is the capital of France?"), ("assistant", "Paris is.")]
    (started,) = done.of(ResponseStarted)
    assert 0.2 < started.latency_s < 0.7
    assert [e.floor for e in done.of(FloorChanged)] == ["user", "pause", "agent", "quiet"]
    (ended,) = done.of(ResponseEnded)
    assert (ended.reason, ended.heard) == ("completed", "Paris is.")


def test_the_latency_that_is_reported_is_the_one_in_the_sound() -> None:
    done = converse([Line("What is the capital of France?")], ["Paris is."])
    _, agent = done.user.tracks()
    first = int(np.flatnonzero(np.abs(agent) > 1e-3)[0]) / 24_000
    assert done.of(ResponseStarted)[0].latency_s == pytest.approx(first - done.user.said[0].end / 16_000, abs=0.05)


def test_a_complete_sentence_is_answered_sooner_than_one_that_hangs() -> None:
    whole = converse([Line("Do you like the sea?")], ["I do."]).of(ResponseStarted)[0]
    hanging = converse([Line("I like the")], ["What?"]).of(ResponseStarted)[0]
    assert hanging.latency_s > whole.latency_s + 0.8


def test_the_words_are_looked_for_when_the_voice_fades_not_only_when_it_has_stopped() -> None:
    config = SessionConfig(interim_s=9.0, activity=VoiceActivityConfig(offset_ms=320))
    done = converse([Line("What is the capital of France?")], ["Paris is."], config)
    kinds = [type(event) for event in done.events]
    assert kinds.index(UserTranscript) < kinds.index(UserStopped)
    assert kinds.count(UserTranscript) == 2  # found once, and final once


def test_a_question_is_answered_sooner_than_a_statement() -> None:
    question = converse([Line("Do you like the sea?")], ["I do."]).of(ResponseStarted)[0]
    statement = converse([Line("I like the sea.")], ["Me too."]).of(ResponseStarted)[0]
    assert question.latency_s + 0.2 < statement.latency_s < 0.9


def test_a_pause_in_the_middle_discards_the_speculation_and_waits() -> None:
    done = converse([Line("I would like to know,", then="how many legs a spider has.", gap_s=0.9)], ["Eight."])
    assert done.of(SpeculationDiscarded)
    assert len(done.of(ResponseStarted)) == 1
    assert done.history()[0] == ("user", "I would like to know, how many legs a spider has.")


def test_an_interruption_silences_the_agent_at_once_and_history_keeps_what_was_heard() -> None:
    lines = [Line("Tell me a story."), Line("Wait, stop that right now.", 1.5, "speaking", 1.5)]
    done = converse(lines, [LONG, "Fine."])
    interrupted = done.of(ResponseEnded)[0]
    assert interrupted.reason == "interrupted"
    assert 0 < interrupted.stop_latency_s <= 0.25
    assert interrupted.heard and LONG.startswith(interrupted.heard) and len(interrupted.heard) < len(LONG) / 2
    assert done.history()[1] == ("assistant", interrupted.heard)
    assert done.history()[2] == ("user", "Wait, stop that right now.")
    assert done.history()[3] == ("assistant", "Fine.")
    onset = done.user.said[1].start / 16_000
    _, agent = done.user.tracks()
    after = agent[int((onset + 0.3) * 24_000) : int((onset + 1.4) * 24_000)]
    assert float(np.abs(after).max()) == 0.0


def test_a_hummed_backchannel_is_talked_through() -> None:
    lines = [Line("Tell me a story."), Line("mm-hm", 0.5, "speaking", 1.5, hum=True)]
    done = converse(lines, [LONG])
    assert [e.reason for e in done.of(ResponseEnded)] == ["completed"]
    assert done.of(Backchannel)
    assert "held" not in [e.floor for e in done.of(FloorChanged)]
    onset = done.user.said[1].start / 16_000
    _, agent = done.user.tracks()
    during = agent[int((onset + 0.2) * 24_000) : int((onset + 0.5) * 24_000)]
    assert 0.01 < float(np.abs(during).max()) < 0.1  # ducked, not silent
    assert done.history() == [("user", "Tell me a story."), ("assistant", LONG)]


def test_a_spoken_backchannel_makes_the_agent_hold_and_go_on() -> None:
    done = converse([Line("Tell me a story."), Line("Okay.", 0.4, "speaking", 1.5)], [LONG])
    floors = [e.floor for e in done.of(FloorChanged)]
    assert floors[floors.index("held") + 1] == "agent"
    assert [e.reason for e in done.of(ResponseEnded)] == ["completed"]
    assert done.of(ResponseEnded)[0].heard == LONG


def test_noise_over_the_agent_is_let_pass() -> None:
    done = converse([Line("Tell me a story."), Line("", 0.15, "speaking", 1.5)], [LONG])
    assert [e.reason for e in done.of(ResponseEnded)] == ["completed"]


def test_noise_alone_gets_no_answer() -> None:
    done = converse([Line("", 0.5)], ["Never."], patience_s=4.0)
    assert not done.of(ResponseStarted)
    assert done.session.turns.floor == "quiet"
    assert done.history() == []


def test_going_on_before_the_first_sound_takes_the_response_back() -> None:
    slow = {"listen": 0.05, "think": 0.3, "speak": 0.3}
    done = converse([Line("I like cheese.", then="And I like bread.", gap_s=0.8)], ["Good."], costs_s=slow)
    assert done.of(SpeculationDiscarded)
    assert len(done.of(ResponseStarted)) == 1
    assert done.history()[0] == ("user", "I like cheese. And I like bread.")


def test_without_interruption_the_agent_finishes_and_then_hears_the_user_out() -> None:
    config = SessionConfig(turns=TurnConfig(interrupt=False), response=ResponseConfig(group_tokens=1))
    done = converse([Line("Tell me a story."), Line("Wait, stop.", 1.0, "speaking", 0.5)], ["One two three four.", "Yes."], config)
    assert [e.reason for e in done.of(ResponseEnded)] == ["completed", "completed"]
    assert [text for _, text in done.history()] == ["Tell me a story.", "One two three four.", "Wait, stop.", "Yes."]


def test_a_failing_thinker_is_reported_and_the_conversation_goes_on() -> None:
    done = converse([Line("Hello there."), Line("Are you there?", delay_s=1.0)], ["x"], fail=True, patience_s=3.0)
    assert len(done.of(Trouble)) == 2
    assert [e.text for e in done.of(UserTranscript) if not e.final][-1] == "Are you there?"
    assert done.history() == [("user", "Hello there. Are you there?")]


def test_three_turns_alternate() -> None:
    done = converse([Line("One?"), Line("Two?"), Line("Three?")], ["First.", "Second.", "Third."])
    assert [text for _, text in done.history()] == ["One?", "First.", "Two?", "Second.", "Three?", "Third."]
    assert [len(seen) for seen in done.thinker.seen][-1] == 5
    assert all(e.latency_s is not None and e.latency_s < 0.9 for e in done.of(ResponseStarted))
    assert seconds(done.session.now) < 20
