"""Conversations with scripted users, measured off the sound: questions, interruptions, backchannels, and a long soak."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.build import build_session
from agent.parts import Parts
from agent.profiles import Profile
from agent.scripted_user import Say, ScriptedUser
from agent.virtual_time import run_virtual
from agent.worker import LaneStats, ModelWorker, VirtualWorker, Worker
from duplex.audio import Samples
from duplex.events import Event, Levels


@dataclass(slots=True)
class Talk:
    """A finished conversation and what it left."""

    user: ScriptedUser
    user_track: Samples
    agent_track: Samples
    events: list[Event] = field(default_factory=list)
    history: list[tuple[str, str]] = field(default_factory=list)
    underruns: int = 0
    stats: dict[str, LaneStats] = field(default_factory=dict)

    def of(self, kind: type) -> list[Event]:
        """The events of one kind."""
        return [e for e in self.events if isinstance(e, kind)]


def talk(profile: Profile, parts: Parts, script: Sequence[Say], *, paced: bool, **options: float) -> Talk:
    """Hold one conversation; paced in real time with real threads, or on a virtual clock."""
    user = ScriptedUser(script, **options)  # type: ignore[arg-type]
    worker: ModelWorker = Worker() if paced else VirtualWorker()

    async def main() -> Talk:
        session = build_session(profile, parts, user, worker, echo="none")
        events = session.events()
        kept: list[Event] = []
        async with session:
            await session.wait()
        async for event in events:
            if not isinstance(event, Levels):
                kept.append(event)
        history: list[tuple[str, str]] = [(m.role, m.text) for m in session.history.messages]
        return Talk(user, *user.tracks(), kept, history, session.playout.underruns, worker.stats)

    try:
        return asyncio.run(main()) if paced else run_virtual(main())
    finally:
        worker.close()
