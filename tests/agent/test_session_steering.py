"""What an application asks of a running conversation, on a manual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest

from agent.doubles import LevelVad, ScriptedEars, ScriptedThinker, ToneVoice, spoken
from agent.parts import Parts
from agent.response import ResponseConfig
from agent.scripted_user import Say, ScriptedUser
from agent.session import Session, SessionConfig
from agent.tool_calls import Tool
from agent.turn_detection import TurnDetectionConfig
from agent.virtual_time import run_virtual
from agent.worker import VirtualWorker
from duplex.events import Event, FunctionCalled, ResponseEnded, ResponseStarted, SpeculationDiscarded, UserTranscript
from duplex.predictor import RulePredictor
from tests.agent.conversations import COSTS_S, Line, _Words

LONG = "This answer goes on for quite a while so that there is time to do something in the middle of it."
CONFIG = SessionConfig(response=ResponseConfig(group_tokens=1))
TOOL = Tool("get_time", "The time", {"type": "object", "properties": {}})
CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


class Stage:
    """A conversation and what became of it."""

    def __init__(self, script: list[Line], replies: list[str], ears: ScriptedEars | None = None) -> None:
        self.user = ScriptedUser([Say(n.sound(), n.when, n.delay_s, n.text) for n in script], patience_s=20.0)
        self.thinker = ScriptedThinker(replies)
        parts = Parts(ears or ScriptedEars(_Words(self.user, script)), LevelVad(), self.thinker, ToneVoice(), RulePredictor())
        self.session = Session(parts, self.user, VirtualWorker(cost_s=COSTS_S.__getitem__), CONFIG)
        self.events: list[Event] = []
        self.session.observe(self.events.append)

    def of(self, kind: type) -> list:
        return [e for e in self.events if isinstance(e, kind)]

    def history(self) -> list[tuple[str, str]]:
        return [(m.role, m.text) for m in self.session.history.messages]

    async def until(self, kind: type, count: int = 1) -> None:
        async with asyncio.timeout(60):
            while len(self.of(kind)) < count:  # noqa: ASYNC110  (a manual clock)
                await asyncio.sleep(0.02)


def play(script: list[Line], replies: list[str], act: Callable[[Stage], Awaitable[None]]) -> Stage:
    """A conversation in which `act` does something."""

    async def main() -> Stage:
        stage = Stage(script, replies)
        async with stage.session:
            await act(stage)
        return stage

    return run_virtual(main())


@pytest.mark.parametrize(("played_s", "left"), [(0.0, ""), (0.6, "This answer"), (99.0, LONG), (1.0, "This answer goes on")])
def test_words_that_were_not_heard_after_all_are_forgotten(played_s: float, left: str) -> None:
    async def act(stage: Stage) -> None:
        await stage.until(ResponseEnded)
        epoch = stage.of(ResponseEnded)[0].epoch
        heard = stage.session.truncate(epoch, played_s)
        assert heard is not None and heard.strip() == left
        assert stage.session.truncate(999, 1.0) is None

    stage = play([Line("Tell me a story."), Line("Well?", delay_s=30)], [LONG], act)
    assert stage.history() == [("user", "Tell me a story."), *([("assistant", left)] if left else [])]


def test_truncating_what_is_being_said_stops_it() -> None:
    async def act(stage: Stage) -> None:
        await stage.until(ResponseStarted)
        await asyncio.sleep(2.0)
        stage.session.truncate(stage.of(ResponseStarted)[0].epoch, 0.6)
        assert stage.of(ResponseEnded)[0].reason == "cancelled"

    stage = play([Line("Tell me a story."), Line("Well?", delay_s=30)], [LONG], act)
    assert stage.history()[-1] == ("assistant", "This answer")


def test_what_the_client_has_played_decides_what_was_heard() -> None:
    async def act(stage: Stage) -> None:
        await stage.until(ResponseStarted)
        epoch = stage.of(ResponseStarted)[0].epoch
        await asyncio.sleep(2.0)
        stage.session.played(epoch, 0.55)
        stage.session.cancel_response()

    stage = play([Line("Tell me a story."), Line("Well?", delay_s=30)], [LONG], act)
    assert stage.history()[-1] == ("assistant", "This answer")
    assert stage.of(ResponseEnded)[0].heard.strip() == "This answer"


def test_a_response_may_be_text_alone() -> None:
    async def act(stage: Stage) -> None:
        stage.session.manner = replace(stage.session.manner, spoken=False)
        await stage.until(ResponseEnded)

    stage = play([Line("Tell me a story.")], ["Once upon a time."], act)
    (ended,) = stage.of(ResponseEnded)
    assert (ended.reason, ended.heard, ended.text) == ("completed", "Once upon a time.", "Once upon a time.")
    assert stage.history()[-1] == ("assistant", "Once upon a time.")
    assert float(np.abs(stage.user.tracks()[1]).max()) == 0.0


def test_the_longest_length_cuts_a_reply_and_says_so() -> None:
    async def act(stage: Stage) -> None:
        stage.session.manner = replace(stage.session.manner, spoken=False, most_tokens=9)
        await stage.until(ResponseEnded)

    stage = play([Line("Tell me a story.")], [LONG], act)
    assert stage.of(ResponseEnded)[0].cut_short and stage.of(ResponseEnded)[0].text == LONG[:9]


def test_one_response_may_be_given_in_another_manner() -> None:
    async def act(stage: Stage) -> None:
        stage.session.add("user", "Hello", "a")
        assert stage.session.respond(replace(stage.session.manner, spoken=False)) is not None
        assert stage.session.respond() is None
        await stage.until(ResponseEnded)
        stage.session.add("user", "Again", "b")
        stage.session.respond()
        await stage.until(ResponseEnded, 2)

    stage = play([Line("Well?", delay_s=60)], ["Text.", "Sound."], act)
    assert stage.history() == [("user", "Hello"), ("assistant", "Text."), ("user", "Again"), ("assistant", "Sound.")]
    assert float(np.abs(stage.user.tracks()[1]).max()) > 0.1


def in_the_pause(act: Callable[[Stage], None]) -> Stage:
    """`act` is called when a response to the user's words is prepared, unheard, in the pause after them."""

    async def wait(stage: Stage) -> None:
        stage.session.detection = TurnDetectionConfig("silence", silence_s=3.0)  # prepared after half of it
        while stage.session.turns.current is None:  # noqa: ASYNC110  (nothing tells of it)
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.4)
        assert stage.session.turns.floor == "pause" and len(stage.thinker.seen) == 1
        act(stage)
        await stage.until(ResponseEnded)

    return play([Line("Tell me a story.")], ["One."], wait)


def test_a_response_asked_for_in_a_pause_is_given_in_the_manner_that_was_asked_for() -> None:
    def act(stage: Stage) -> None:
        pirate = replace(stage.session.manner, system_prompt="You are a pirate.", spoken=False)
        assert stage.session.respond(pirate) is not None
        assert len(stage.of(SpeculationDiscarded)) == 1

    stage = in_the_pause(act)
    assert stage.thinker.prompts[1:] == ["You are a pirate."]
    assert stage.history() == [("user", "Tell me a story."), ("assistant", "One.")]
    assert float(np.abs(stage.user.tracks()[1]).max()) == 0.0


def test_a_response_asked_for_in_a_pause_is_the_one_that_was_prepared_if_nothing_else_is_wanted() -> None:
    stage = in_the_pause(lambda stage: bool(stage.session.respond(replace(stage.session.manner))))
    assert len(stage.thinker.prompts) == 1 and stage.of(SpeculationDiscarded) == []


def test_a_new_manner_in_a_pause_holds_for_the_answer_to_it() -> None:
    def act(stage: Stage) -> None:
        stage.session.manner = replace(stage.session.manner, system_prompt="You are a pirate.")
        stage.session.change_voice(880.0)

    stage = in_the_pause(act)
    assert stage.thinker.prompts[-1] == "You are a pirate."
    sound = stage.user.tracks()[1]
    assert float(np.abs(np.fft.rfft(sound)).argmax()) * 24_000 / len(sound) == pytest.approx(880, abs=5)
    assert stage.history() == [("user", "Tell me a story."), ("assistant", "One.")]


def test_without_turn_detection_nothing_is_answered_until_it_is_asked_for() -> None:
    async def act(stage: Stage) -> None:
        session = stage.session
        session.detection = TurnDetectionConfig("manual")
        await asyncio.sleep(5.0)
        assert not stage.of(ResponseStarted) and stage.history() == []
        assert session.commit()
        assert session.respond() is not None
        await stage.until(ResponseEnded)
        session.detection = TurnDetectionConfig()

    stage = play([Line("What is it?"), Line("Well?", delay_s=60)], ["It is."], act)
    assert stage.history() == [("user", "What is it?"), ("assistant", "It is.")]
    assert [e.text for e in stage.of(UserTranscript) if e.final] == ["What is it?"]


def test_what_is_cleared_was_never_said() -> None:
    async def act(stage: Stage) -> None:
        stage.session.detection = TurnDetectionConfig("manual")
        await asyncio.sleep(5.0)
        stage.session.clear()
        await asyncio.sleep(0.1)
        assert stage.session.commit()
        await stage.until(UserTranscript)

    stage = play([Line("What is it?"), Line("Well?", delay_s=60)], ["It is."], act)
    assert stage.history() == []


def test_turns_may_be_remembered_without_an_answer() -> None:
    async def act(stage: Stage) -> None:
        stage.session.detection = TurnDetectionConfig("silence", silence_s=0.6, respond=False)
        await asyncio.sleep(9.0)

    stage = play([Line("One."), Line("Two.", delay_s=3.0)], ["Never."], act)
    assert not stage.of(ResponseStarted)
    assert [e.text for e in stage.of(UserTranscript) if e.final] == ["One."]
    assert stage.session.turns.floor == "quiet"


@pytest.mark.parametrize("silence_s", [0.3, 1.2, 2.5])
def test_a_fixed_silence_ends_a_turn_whatever_was_said(silence_s: float) -> None:
    async def act(stage: Stage) -> None:
        stage.session.detection = TurnDetectionConfig("silence", silence_s=silence_s)
        await stage.until(ResponseStarted)

    for words in ("What is it?", "I would like the"):
        stage = play([Line(words)], ["It is."], act)
        assert stage.of(ResponseStarted)[0].latency_s == pytest.approx(silence_s, abs=0.25)


def test_patience_stretches_the_silence() -> None:
    latencies = []
    for patience in (0.7, 1.0, 1.6):

        async def act(stage: Stage, patience: float = patience) -> None:
            stage.session.detection = TurnDetectionConfig(patience=patience)
            await stage.until(ResponseStarted)

        latencies.append(play([Line("I like the sea.")], ["Me too."], act).of(ResponseStarted)[0].latency_s)
    assert latencies[0] < latencies[1] < latencies[2]


def test_the_application_may_end_a_turn_early() -> None:
    async def act(stage: Stage) -> None:
        await asyncio.sleep(2.1)
        assert stage.session.commit()
        await stage.until(ResponseStarted)

    stage = play([Line("I would like the", delay_s=1.0)], ["Yes."], act)
    assert stage.of(ResponseStarted)[0].latency_s < 0.6


def test_a_function_is_called_once_its_response_is_given_and_its_result_is_known() -> None:
    async def act(stage: Stage) -> None:
        stage.session.manner = replace(stage.session.manner, tools=(TOOL,))
        await stage.until(ResponseEnded)
        (call,) = stage.of(FunctionCalled)
        stage.session.add("result", "noon", "r")
        stage.session.respond()
        await stage.until(ResponseEnded, 2)
        assert (call.name, call.arguments) == ("get_time", "{}")

    stage = play([Line("What time is it?"), Line("Well?", delay_s=60)], [f"Let me see. {CALL}", "It is noon."], act)
    assert [e.reason for e in stage.of(ResponseEnded)] == ["completed", "completed"]
    assert stage.of(ResponseEnded)[0].text.strip() == "Let me see."
    assert stage.history() == [
        ("user", "What time is it?"),
        ("assistant", f"Let me see.\n{CALL}"),
        ("user", "<tool_response>\nnoon\n</tool_response>"),
        ("assistant", "It is noon."),
    ]


def test_a_function_of_a_response_that_was_thrown_away_is_never_called() -> None:
    async def act(stage: Stage) -> None:
        stage.session.manner = replace(stage.session.manner, tools=(TOOL,))
        await stage.until(ResponseEnded)

    line = Line("I would like to know,", then="what time it is.", gap_s=0.9)
    stage = play([line, Line("Well?", delay_s=60)], [CALL], act)
    assert stage.of(SpeculationDiscarded)
    assert len(stage.of(FunctionCalled)) == 1


def test_sound_apart_from_the_stream_is_recognised() -> None:
    heard: list[str] = []

    async def main() -> Stage:
        stage = Stage([Line("Well?", delay_s=60)], ["Hi."], ScriptedEars([(0, 16_000, "Hello there.")]))
        async with stage.session:
            stage.session.add_sound(spoken(1.0), "s", heard.append)
            assert stage.session.respond() is not None
            await stage.until(ResponseEnded)
        return stage

    stage = run_virtual(main())
    assert heard == ["Hello there."]
    assert stage.history() == [("user", "Hello there."), ("assistant", "Hi.")]


def test_instructions_that_do_not_fit_are_refused() -> None:
    from agent.build import build_parts
    from agent.profiles import load_profile

    session = Session(build_parts(load_profile("tiny")), ScriptedUser([]), VirtualWorker(), CONFIG)
    session.check_manner(session.manner)
    with pytest.raises(ValueError, match="shorten"):
        session.check_manner(replace(session.manner, system_prompt="x" * 5000))


@pytest.mark.parametrize("wrong", [{"patience": 0.0}, {"silence_s": 0.0}, {"onset_threshold": 1.0}, {"preroll_s": -1.0}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="turn detection"):
        TurnDetectionConfig(**wrong)  # type: ignore[arg-type]
