"""An agent inside another program: loaded once, it holds as many conversations as the machine can carry.

It joins what `agent.build` offers one by one: the profile, its parts, and the worker that all conversations share.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from agent.build import EchoKind, build_parts, build_session
from agent.parts import Parts
from agent.profiles import Profile, load_profile
from agent.session import Session
from agent.transport import Transport
from agent.worker import ModelWorker, Worker

if TYPE_CHECKING:
    from agent.voice_sample import VoiceSample


class Agent:
    """Loaded parts and a worker; a context manager that stops the worker's threads at its end.

    Sessions share the models, each has its own state. Leave every session before the agent.
    """

    def __init__(self, profile: Profile, parts: Parts, worker: ModelWorker | None = None) -> None:
        self.profile, self.parts = profile, parts
        self.worker = worker or Worker()

    def session(self, transport: Transport, *, echo: EchoKind | None = None, system_prompt: str | None = None) -> Session:
        """A conversation with whoever is at the other end of `transport`; enter it with `async with`.

        echo, system_prompt: in place of the profile's. Raises ConfigError when that canceller is not installed.
        """
        return build_session(self.profile, self.parts, transport, self.worker, echo=echo, system_prompt=system_prompt)

    def close(self) -> None:
        """Stop the worker; may be called twice."""
        self.worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def load_agent(profile: str | Path | Profile = "edge", *, voice: VoiceSample | None = None) -> Agent:
    """Load a profile's parts, which takes seconds; outside the event loop, or on a thread of its own.

    profile: a shipped one's name, the path of a YAML file, or what `load_profile` gave. voice: whose voice it speaks with, for a profile
    that can clone one. Raises ConfigError, WeightsError (fetch them first: `duologue fetch edge`), InputError for a bad voice sample.
    """
    found = profile if isinstance(profile, Profile) else load_profile(profile)
    return Agent(found, build_parts(found, voice=voice))
