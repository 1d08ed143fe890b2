"""Many conversations on loaded parts and one model worker: who may come in, how many there are, and how they leave.

A host may have several profiles loaded, each with parts of its own; a conversation keeps the one that it began with.
A conversation beyond `max_sessions` is refused at once, so that the running ones stay in real time. The host also watches the event loop:
a loop that falls behind makes every conversation late, and is counted like a voice that ran dry.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.build import EchoKind, build_parts, build_session
from agent.part_loading import RuntimeConfig
from agent.parts import Parts
from agent.profiles import Profile
from agent.session import Session
from agent.speakers import can_clone, check_can_clone, read_speakers
from agent.transport import Transport
from agent.worker import ModelWorker, Worker
from duplex.errors import ConfigError, DuologueError

if TYPE_CHECKING:
    from agent.voice_sample import VoiceSample

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.05
LATE_S = 0.1
"""An event loop so far behind its time has missed a deadline."""


class HostFull(DuologueError):
    """No place is free, or the host is closing; the running conversations are not touched."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A profile that is ready to talk."""

    profile: Profile
    parts: Parts
    voices: Mapping[str, Any] = field(default_factory=dict)
    """Name -> speaker, in the form that the profile's voice makes; besides its own."""


class Host:
    """An async context manager; the model worker is closed with it."""

    def __init__(
        self,
        profile: Profile,
        parts: Parts,
        worker: ModelWorker | None = None,
        max_sessions: int = 2,
        voices: Mapping[str, Any] | None = None,
        others: Sequence[Loaded] = (),
    ) -> None:
        """profile, parts, voices: what conversations get that ask for nothing else. others: what they may ask for.

        worker: one for all conversations; None makes one as the profile says. Raises ConfigError.
        """
        if max_sessions < 1:
            raise ConfigError("max_sessions must be at least 1.")
        self.profile, self.parts, self.max_sessions = profile, parts, max_sessions
        self.default = Loaded(profile, parts, voices or {})
        self.loaded = {one.profile.name: one for one in (self.default, *others)}
        """What conversations may be held with, by the profile's name; the first is the default."""
        if len(self.loaded) < 1 + len(others):
            raise ConfigError("Two of the profiles have the same name, so no conversation could say which it wants.")
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
    def load(
        cls,
        profile: Profile,
        max_sessions: int = 2,
        others: Sequence[Profile] = (),
        samples: Mapping[str, VoiceSample] | None = None,
    ) -> Host:
        """With the parts of the profile, and of others beside it. samples: voices by name, for those of them that can clone.

        Raises WeightsError, ConfigError (none of the profiles can clone), InputError for a sample that is no voice sample.
        """
        profiles, samples, loaded = (profile, *others), samples or {}, []
        if samples and not any(map(can_clone, profiles)):
            check_can_clone(profile)
        for one in reversed(profiles):  # the first one last: its threads per job hold for the process
            parts = build_parts(one)
            loaded.append(Loaded(one, parts, read_speakers(one, parts, samples if can_clone(one) else {})))
        *rest, first = loaded
        return cls(profile, first.parts, max_sessions=max_sessions, voices=first.voices, others=rest[::-1])

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
        self,
        transport: Transport,
        *,
        echo: EchoKind | None = "none",
        system_prompt: str | None = None,
        loaded: Loaded | None = None,
    ) -> AsyncIterator[Session]:
        """A conversation over `transport`, which is entered by the caller; its place is free again after the block.

        loaded: one of `loaded`'s; None takes the default. Raises HostFull.
        """
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
            one = loaded or self.default
            session = build_session(one.profile, one.parts, transport, self.worker, echo=echo, system_prompt=system_prompt)
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
