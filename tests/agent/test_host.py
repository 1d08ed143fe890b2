"""Many conversations on one model worker: places, refusals, draining."""

from __future__ import annotations

import asyncio
import time

import pytest

from agent.doubles import LevelVad, ScriptedEars, ScriptedThinker, ToneVoice, spoken
from agent.host import LATE_S, Host, HostFull
from agent.parts import Parts
from agent.profiles import load_profile
from agent.scripted_user import Say, ScriptedUser
from duplex.errors import ConfigError
from duplex.events import ResponseEnded
from duplex.predictor import RulePredictor


def host(max_sessions: int = 2) -> Host:
    words = [(6_400, 12_000, "Hello there.")]
    parts = Parts(ScriptedEars(words), LevelVad(), ScriptedThinker(["Hi."]), ToneVoice(0.1), RulePredictor())
    return Host(load_profile("tiny", ["session.response.group_tokens=1"]), parts, max_sessions=max_sessions)


def user() -> ScriptedUser:
    return ScriptedUser([Say(spoken(0.6), delay_s=0.3)], tail_s=0.2, patience_s=5.0)


async def test_conversations_share_the_worker_and_one_above_the_limit_is_refused() -> None:
    async with host() as place:

        async def converse() -> list[str]:
            async with place.session(user()) as session:
                events = session.events()
                async with session:
                    await session.wait()
                return [e.heard async for e in events if isinstance(e, ResponseEnded)]

        running = [asyncio.create_task(converse()) for _ in range(2)]
        async with asyncio.timeout(30):
            while place.places_taken < 2:  # noqa: ASYNC110  (nothing tells of it)
                await asyncio.sleep(0.01)
        with pytest.raises(HostFull, match="2 places"):
            await converse()
        assert await asyncio.gather(*running) == [["Hi."], ["Hi."]]
        assert (place.opened, place.refused, place.places_taken) == (2, 1, 0)
        assert await converse() == ["Hi."]


async def test_draining_lets_nobody_in_and_waits() -> None:
    async with host() as place:
        async with place.session(user()):
            assert not await place.drain(0.05)
            with pytest.raises(HostFull, match="shutting down"):
                async with place.session(user()):
                    pass
        assert await place.drain(1.0)


async def test_a_place_is_free_again_after_a_failure() -> None:
    async with host(1) as place:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="ours"):
                async with place.session(user()):
                    raise RuntimeError("ours")
        assert place.places_taken == 0


async def test_a_late_event_loop_is_counted() -> None:
    async with host() as place:
        await asyncio.sleep(0.1)
        before = place.deadline_misses
        time.sleep(LATE_S + 0.2)  # noqa: ASYNC251  (that is the point)
        await asyncio.sleep(0.1)
        assert place.deadline_misses > before


def test_no_place_at_all_is_no_host() -> None:
    with pytest.raises(ConfigError, match="max_sessions"):
        host(0)
