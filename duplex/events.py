"""The events of a conversation, as everyone outside sees them.

Each event carries `at`, the user-sample index (16 kHz) of the moment it speaks of. `as_dict` gives the flat JSON form that the
events file, the server and the broker use: `{"type": "<name>", "at_s": <seconds>, ...}`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal

from duplex.audio import seconds

Floor = Literal["quiet", "user", "pause", "agent", "ducked", "held"]
"""Who has the floor: nobody, the user, the user in a pause, the agent, both (agent quieter), both (agent holding its breath)."""


@dataclass(frozen=True, slots=True)
class Event:
    """Anything that happened."""

    at: int
    """User-sample index of the moment."""


@dataclass(frozen=True, slots=True)
class FloorChanged(Event):
    """The floor passed on."""

    floor: Floor


@dataclass(frozen=True, slots=True)
class UserStarted(Event):
    """The user's voice began; `at` is the estimated true onset."""


@dataclass(frozen=True, slots=True)
class UserStopped(Event):
    """The user's voice ended; `at` is the last voiced sample."""


@dataclass(frozen=True, slots=True)
class UserTranscript(Event):
    """What the user has said in this turn so far; `final` when the turn was taken as ended."""

    text: str
    final: bool
    turn: int = 0
    """Counts the turns (and sounds over the agent's voice) of a conversation."""


@dataclass(frozen=True, slots=True)
class SpeechLabelled(Event):
    """What the ears say of the user's speech besides its words, where they can tell: sent when it changes within a turn."""

    language: str | None
    """Such as "en"."""
    emotion: str | None
    """Such as "happy"; None when it cannot be told."""
    sound: str | None
    """Such as "speech", "laughter" or "cough"; None when it cannot be told."""


@dataclass(frozen=True, slots=True)
class ResponseStarted(Event):
    """The first audible sample of a response left for the loudspeaker."""

    epoch: int
    latency_s: float | None
    """End of the user's speech to this sample, in seconds; None when no user turn preceded it."""


@dataclass(frozen=True, slots=True)
class AgentTranscript(Event):
    """What a response says: `heard` has been played, `text` is all that was written so far."""

    epoch: int
    heard: str
    text: str


@dataclass(frozen=True, slots=True)
class ResponseEnded(Event):
    """A response is over."""

    epoch: int
    reason: Literal["completed", "interrupted", "cancelled", "failed"]
    heard: str
    text: str
    stop_latency_s: float | None = None
    """For an interruption: onset of the user's voice to the agent's silence, in seconds."""
    cut_short: bool = False
    """The reply reached its longest length."""


@dataclass(frozen=True, slots=True)
class FunctionCalled(Event):
    """The agent wants the application to do something, and to tell what came of it."""

    epoch: int
    call_id: str
    name: str
    arguments: str
    """A JSON object."""


@dataclass(frozen=True, slots=True)
class SpeculationDiscarded(Event):
    """A response that was prepared at a likely turn end was thrown away before anyone heard it."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Backchannel(Event):
    """The user's short sound during a response did not take the floor."""

    text: str


@dataclass(frozen=True, slots=True)
class AgentBackchannel(Event):
    """The agent's short sound while the user pauses: it listens, and does not take the floor."""

    text: str


@dataclass(frozen=True, slots=True)
class Levels(Event):
    """Levels of both sides over the last tick, in dBFS (RMS)."""

    user_db: float
    agent_db: float
    erle_db: float | None = None


TroubleCode = Literal["too_slow", "response_failed", "listening_failed", "malformed_call", "events_dropped", "other"]


@dataclass(frozen=True, slots=True)
class Trouble(Event):
    """Something the user should know: too slow a machine, an underrun, a stage that failed."""

    message: str
    """One sentence for somebody who sits at the machine that runs the models."""
    code: TroubleCode = "other"
    """What kind of thing, for a program that words it for somebody else."""


def name_of(event: Event | type[Event]) -> str:
    """`user_started` for UserStarted, and so on."""
    cls = event if isinstance(event, type) else type(event)
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


def as_dict(event: Event) -> dict[str, Any]:
    """The flat JSON form of an event."""
    fields = {k: v for k, v in dataclasses.asdict(event).items() if k != "at"}
    return {"type": name_of(event), "at_s": round(seconds(event.at), 4), **fields}
