"""A session's life: cancel in every state, two hundred turns on one session, history that stays bounded by what was heard."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import numpy as np
import pytest

from agent.doubles import LevelVad, ScriptedEars, ScriptedThinker, ToneVoice, spoken
from agent.parts import Parts
from agent.response import ResponseConfig
from agent.scripted_user import Say, ScriptedUser
from agent.session import Session, SessionConfig
from agent.virtual_time import run_virtual
from agent.worker import VirtualWorker, Worker
from duplex.events import AgentTranscript, FloorChanged, ResponseEnded
from duplex.predictor import RulePredictor
from tests.agent.conversations import COSTS_S, Line, _Words, converse

LONG = "This answer goes on for quite a while so that there is time to interrupt it in the middle."
CONFIG = SessionConfig(response=ResponseConfig(group_tokens=1))


def make(script: list[Line], worker: Worker | VirtualWorker) -> tuple[Session, ScriptedUser]:
    user = ScriptedUser([Say(n.sound(), n.when, n.delay_s, n.text) for n in script])
    parts = Parts(ScriptedEars(_Words(user, script)), LevelVad(), ScriptedThinker([LONG]), ToneVoice(), RulePredictor())
    return Session(parts, user, worker, CONFIG), user


@pytest.mark.parametrize("floor", ["user", "pause", "agent", "ducked", "held", "quiet"])
def test_leaving_in_any_state_leaves_nothing_running(floor: str) -> None:
    async def main() -> None:
        script = [Line("Tell me a story."), Line("Okay.", 0.4, "speaking", 1.0), Line("And then?", 1.0)]
        session, _ = make(script, VirtualWorker(cost_s=COSTS_S.__getitem__))
        events = session.events()
        async with session:
            async for event in events:
                if isinstance(event, FloorChanged) and event.floor == floor:
                    break
            else:
                pytest.fail(f"the conversation never came to {floor}")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())


@pytest.mark.parametrize("moment_s", [0.0, 0.3, 1.1, 2.1, 2.4, 2.6, 3.0, 4.5])
def test_cancelling_the_owner_at_any_moment_leaves_nothing_running(moment_s: float) -> None:
    async def main() -> None:
        session, _ = make([Line("Tell me a story.")], VirtualWorker(cost_s=COSTS_S.__getitem__))

        async def own() -> None:
            async with session:
                await session.wait()

        owner = asyncio.create_task(own())
        await asyncio.sleep(moment_s)
        owner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await owner
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())


@pytest.mark.parametrize("moment_s", [0.5, 1.6, 2.3, 2.7, 3.5])
def test_cancel_response_at_any_moment_keeps_the_session_going(moment_s: float) -> None:
    async def main() -> None:
        session, _ = make([Line("Tell me a story."), Line("And then?")], VirtualWorker(cost_s=COSTS_S.__getitem__))
        events = session.events()
        async with session:
            await asyncio.sleep(moment_s)
            session.cancel_response()
            await session.wait()
        kept = [e async for e in events]
        assert any(isinstance(e, ResponseEnded) and e.reason == "completed" for e in kept)

    run_virtual(main())


async def test_real_threads_and_a_real_clock_hold_a_conversation_too() -> None:
    worker = Worker(2)
    session, _ = make([Line("Hi there.", 0.4)], worker)
    events = session.events()
    async with session:
        await asyncio.wait_for(session.wait(), 30)
    worker.close()
    assert [e.reason async for e in events if isinstance(e, ResponseEnded)] == ["completed"]


def test_a_typed_message_is_answered() -> None:
    async def main() -> None:
        session, _ = make([Line("Hello.", delay_s=8.0)], VirtualWorker(cost_s=COSTS_S.__getitem__))
        async with session:
            session.ask("What do bees make?")
            await asyncio.sleep(7.5)
            assert [m.text for m in session.history.messages] == ["What do bees make?", LONG]

    run_virtual(main())


def test_two_hundred_turns_leave_tasks_and_memory_flat() -> None:
    turns = 200
    script = [Line(f"Question {i}?", 0.3, delay_s=0.4) for i in range(turns)]

    async def main() -> tuple[int, list[int], set[int]]:
        thinker = ScriptedThinker(["Short answer."])
        user = ScriptedUser([Say(spoken(0.3), "silence", 0.4, n.text) for n in script], record=False)
        parts = Parts(ScriptedEars(_Words(user, script)), LevelVad(), thinker, ToneVoice(0.1), RulePredictor())
        session = Session(parts, user, VirtualWorker(cost_s=COSTS_S.__getitem__), CONFIG)
        events = session.events()
        ended, memory, tasks = 0, [], set()
        async with session:
            async for event in events:
                if isinstance(event, ResponseEnded):
                    ended += 1
                    if ended % 50 == 0:
                        thinker.seen.clear()  # the double's own records do not count
                        thinker._asked.clear()
                        gc.collect()
                        memory.append(tracemalloc.get_traced_memory()[0])
                        tasks.add(len(asyncio.all_tasks()))
                    if ended == turns:
                        break
        return ended, memory, tasks

    tracemalloc.start()
    try:
        ended, memory, tasks = run_virtual(main())
    finally:
        tracemalloc.stop()
    assert ended == turns
    assert max(tasks) <= 4
    assert memory[-1] - memory[1] < 300_000


def test_the_reply_that_is_cut_before_its_first_word_leaves_no_trace() -> None:
    done = converse(
        [Line("Tell me a story."), Line("Wait, stop.", 0.9, "speaking", 0.02)], ["Supercalifragilistic tale.", "Yes."], word_s=2.0
    )
    assert [text for _, text in done.history()] == ["Tell me a story. Wait, stop.", "Yes."]


def test_a_conversation_that_is_ended_before_it_began_ends_its_events() -> None:
    async def main() -> tuple[bool, int]:
        session, _ = make([Line("Hello.")], VirtualWorker(cost_s=lambda lane: 60.0))
        events = session.events()

        async def begin() -> None:
            async with session:
                await session.wait()

        beginning = asyncio.create_task(begin())
        await asyncio.sleep(1.0)
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)
        return beginning.cancelled(), len([event async for event in events])

    assert run_virtual(main()) == (True, 0)


def test_a_new_voice_speaks_from_the_next_response_on() -> None:
    async def main() -> tuple[ScriptedUser, list[ResponseEnded]]:
        script = [Line("Tell me a story."), Line("And another?")]
        session, user = make(script, VirtualWorker(cost_s=COSTS_S.__getitem__))
        events = session.events()
        ended: list[ResponseEnded] = []
        async with session:
            with pytest.raises(ValueError, match="pitch"):
                session.change_voice(3.0)
            async for event in events:
                if isinstance(event, AgentTranscript) and not ended:
                    session.change_voice(880.0)  # while the first answer is being spoken: it keeps its voice
                if isinstance(event, ResponseEnded):
                    ended.append(event)
                    if len(ended) == 2:
                        break
        return user, ended

    user, ended = run_virtual(main())
    sound = user.tracks()[1]
    starts = [e.at * 24_000 // 16_000 for e in ended]
    pitches = [_pitch(sound[: starts[0]]), _pitch(sound[starts[0] + 24_000 : starts[1]])]
    assert pitches == [pytest.approx(220, abs=5), pytest.approx(880, abs=5)]


def _pitch(sound: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(sound))
    return float(spectrum.argmax() * 24_000 / len(sound))
