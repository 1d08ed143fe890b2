"""Lines of the application's on a manual clock: when they are spoken, what becomes of them, and what the history keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agent.announcer import MOST_LINES, Announcer
from agent.doubles import LevelVad, ScriptedEars, ScriptedThinker, ToneVoice
from agent.parts import Parts
from agent.response import ResponseConfig
from agent.scripted_user import Say, ScriptedUser
from agent.session import Session, SessionConfig
from agent.virtual_time import run_virtual
from agent.worker import VirtualWorker
from duplex.events import ResponseEnded
from duplex.predictor import RulePredictor
from tests.agent.conversations import COSTS_S, Line, _Words

CONFIG = SessionConfig(response=ResponseConfig(group_tokens=3))
LINE = "The washing machine has finished, and the front door is still open."


def converse(script: list[Line], act: Callable[[Announcer, Session], Any], long_word_s: float = 0.2) -> tuple[Any, Session]:
    """A conversation in which `act(announcer, session)` says things; returns what it returned."""

    async def main() -> tuple[Any, Session]:
        user = ScriptedUser([Say(n.sound(), n.when, n.delay_s, n.text) for n in script], patience_s=30.0)
        parts = Parts(
            ScriptedEars(_Words(user, script)),
            LevelVad(),
            ScriptedThinker(["Short answer."]),
            ToneVoice(long_word_s),
            RulePredictor(),
        )
        session = Session(parts, user, VirtualWorker(cost_s=COSTS_S.__getitem__), CONFIG)
        events = session.events()
        announcer = Announcer(session)

        async def pump() -> None:
            async for event in events:
                announcer.take(event)
            announcer.close()

        async with session:
            pumping = asyncio.create_task(pump())
            result = await act(announcer, session)
        await pumping
        return result, session

    return run_virtual(main())


def test_a_line_is_spoken_word_for_word_and_remembered() -> None:
    async def act(announcer: Announcer, session: Session) -> ResponseEnded:
        return await announcer.say(LINE)

    ended, session = converse([Line("Hello.", delay_s=20.0)], act)
    assert (ended.reason, ended.heard, ended.text) == ("completed", LINE, LINE)
    assert [(m.role, m.text) for m in session.history.messages] == [("assistant", LINE)]


def test_a_line_waits_for_the_user_and_the_answer_to_them() -> None:
    async def act(announcer: Announcer, session: Session) -> ResponseEnded:
        await asyncio.sleep(1.5)  # the user is speaking
        return await announcer.say(LINE)

    ended, session = converse([Line("What bites?", delay_s=1.0)], act)
    assert ended.heard == LINE
    assert [(m.role, m.text) for m in session.history.messages] == [("user", "What bites?"), ("assistant", f"Short answer. {LINE}")]


def test_lines_come_in_order_and_all_of_a_long_one() -> None:
    long = "Once more and again and on and on it goes. " * 12

    async def act(announcer: Announcer, session: Session) -> list[ResponseEnded]:
        return list(await asyncio.gather(announcer.say(long.strip()), announcer.say("And last.")))

    ended, _ = converse([Line("Hello.", delay_s=60.0)], act, 0.1)
    assert [e.heard for e in ended] == [long.strip(), "And last."]
    assert ended[0].at < ended[1].at


def test_an_interrupted_line_is_kept_as_far_as_it_was_heard() -> None:
    async def act(announcer: Announcer, session: Session) -> ResponseEnded:
        return await announcer.say(LINE)

    ended, _ = converse([Line("Stop. I know all that already.", 1.5, "speaking", 0.7)], act)
    assert ended.reason == "interrupted"
    assert ended.heard and LINE.startswith(ended.heard) and ended.heard != LINE


def test_a_line_that_nobody_heard_is_said_after_all() -> None:
    """The user begins in the moment between the line's preparation and its first sample."""

    async def act(announcer: Announcer, session: Session) -> ResponseEnded:
        await asyncio.sleep(1.06)  # the voice began at 1.0 s, and voice activity tells at 1.1 s
        return await announcer.say(LINE)

    ended, session = converse([Line("What bites?", delay_s=1.0)], act)
    assert (ended.reason, ended.heard) == ("completed", LINE)
    assert [m.role for m in session.history.messages] == ["user", "assistant"]


def test_too_many_lines_and_empty_ones_are_refused() -> None:
    async def act(announcer: Announcer, session: Session) -> None:
        for _ in range(MOST_LINES):
            announcer.say("One more.")
        with pytest.raises(ValueError, match="wait to be spoken"):
            announcer.say("Too many.")
        with pytest.raises(ValueError, match="no words"):
            announcer.say("  ")

    converse([Line("Hello.", delay_s=20.0)], act)


def test_the_end_of_the_conversation_cancels_what_was_not_said() -> None:
    async def act(announcer: Announcer, session: Session) -> list[asyncio.Future[ResponseEnded]]:
        futures = [announcer.say(LINE), announcer.say(LINE)]
        futures[1].cancel()
        await asyncio.sleep(0.2)
        return futures

    futures, _ = converse([Line("Hello.", delay_s=20.0)], act)
    assert futures[1].cancelled()
    assert futures[0].cancelled() or futures[0].result().reason == "cancelled"
