"""Many conversations on one set of loaded parts and one model worker: who may come in, how many there are, and how they leave.

A conversation beyond `max_sessions` is refused at once, so that the running ones stay in real time. The host also watches the event loop:
a loop that falls behind makes every conversation late, and is counted like a voice that ran dry.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from agent.build import EchoKind, build_parts, build_session
from agent.part_loading import RuntimeConfig
from agent.parts import Parts
from agent.profiles import Profile
from agent.session import Session
from agent.transport import Transport
from agent.worker import ModelWorker, Worker
from duplex.errors import ConfigError, DuologueError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.05
LATE_S = 0.1
"""An event loop so far behind its time has missed a deadline."""


class HostFull(DuologueError):
    """No place is free, or the host is closing; the running conversations are not touched."""


class Host:
    """An async context manager; the model worker is closed with it."""

    def __init__(self, profile: Profile, parts: Parts, worker: ModelWorker | None = None, max_sessions: int = 2) -> None:
        """worker: one for all conversations; None makes one as the profile says. Raises ConfigError."""
        if max_sessions < 1:
            raise ConfigError("max_sessions must be at least 1.")
        self.profile, self.parts, self.max_sessions = profile, parts, max_sessions
        self.worker = worker or Worker(profile.section("runtime", RuntimeConfig).model_threads)
        self.opened = 0
        """Conversations so far."""
        self.refused = 0
        self.draining = False
        self.loop_misses = 0
        """How often the event loop was late by LATE_S or more."""
        self._underruns = 0  # of conversations that are over
        self._sessions: set[Session] = set()
        self._places = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    def load(cls, profile: Profile, max_sessions: int = 2) -> Host:
        """With the profile's parts. Raises WeightsError, ConfigError."""
        return cls(profile, build_parts(profile), max_sessions=max_sessions)

    @property
    def places_taken(self) -> int:
        """Conversations that are running, or are being set up."""
        return self._places

    @property
    def deadline_misses(self) -> int:
        """20 ms frames in which a voice ran dry, and moments at which the event loop was late."""
        return self.loop_misses + self._underruns + sum(session.playout.underruns for session in self._sessions)

    async def __aenter__(self) -> Host:
        self._watching = asyncio.create_task(self._watch(), name="watch-loop")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        await asyncio.to_thread(self.worker.close)

    @asynccontextmanager
    async def session(
        self, transport: Transport, *, echo: EchoKind | None = "none", system_prompt: str | None = None
    ) -> AsyncIterator[Session]:
        """A conversation over `transport`, which is entered by the caller; its place is free again after the block. Raises HostFull."""
        if self.draining or self._places >= self.max_sessions:
            self.refused += 1
            raise HostFull(
                "This server is shutting down; try another one."
                if self.draining
                else f"All {self.max_sessions} places are taken; try again later."
            )
        self._places += 1
        self._empty.clear()
        session = None
        try:
            session = build_session(self.profile, self.parts, transport, self.worker, echo=echo, system_prompt=system_prompt)
            self._sessions.add(session)
            self.opened += 1
            yield session
        finally:
            if session is not None:
                self._sessions.discard(session)
                self._underruns += session.playout.underruns
            self._places -= 1
            if self._places == 0:
                self._empty.set()

    async def drain(self, timeout_s: float) -> bool:
        """Let nobody in any more and wait until all have left; False when some are still there after `timeout_s`."""
        self.draining = True
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def _watch(self) -> None:
        while True:
            due = time.monotonic() + LOOK_EVERY_S
            await asyncio.sleep(LOOK_EVERY_S)
            if time.monotonic() - due > LATE_S:
                self.loop_misses += 1
