"""The models of a conversation, as the session asks for them. They are shared; their states belong to each conversation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from agent.chat_template import Message
from decoders.voice import Voice
from duplex.audio import AGENT_RATE_HZ, Samples
from duplex.playout import Pace
from duplex.predictor import DuplexPredictor, Ending
from encoders.ears import Ears


class Step(Protocol):
    """One decoded token."""

    @property
    def token(self) -> int:
        """The token's id."""
        ...

    @property
    def hidden(self) -> Any:
        """[d] final-layer state that the token was sampled from."""
        ...


class Thinker(Protocol):
    """The LLM."""

    @property
    def eos_ids(self) -> Collection[int]:
        """Tokens that end a reply."""
        ...

    def open(self) -> Any:
        """A fresh context."""
        ...

    def render(self, system: str, messages: Sequence[Message], open_assistant: bool = True, open_last: bool = False) -> list[int]:
        """The dialogue as token ids, oldest turns dropped until it fits; opened for a reply, or left open within the last message."""
        ...

    def turn_end(self, context: Any) -> Ending | None:
        """With the user's words so far in the context: how likely the sentence ends here; None when it cannot tell."""
        ...

    def sync_steps(self, context: Any, keys: Sequence[int]) -> Iterator[Any]:
        """Make the context hold exactly `keys`, in bounded steps."""
        ...

    def sampler(self, seed: int, calls: bool = False) -> Any:
        """A fresh sampler state; with `calls` it may draw the marks of a function call (agent.tool_calls)."""
        ...

    def step(self, context: Any, sampler: Any) -> Step:
        """Sample one token and take it into the context."""
        ...

    def encode(self, text: str) -> list[int]:
        """Text as ordinary token ids."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text; of the special ones, only the marks of a function call are spelt out."""
        ...


class Vad(Protocol):
    """Probability of voice per window."""

    def open(self) -> Any:
        """A fresh state."""
        ...

    def feed(self, state: Any, samples: Samples) -> list[tuple[int, float]]:
        """[n] user samples -> (end sample, probability) for each window of 32 ms that became complete."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that has weights."""

    ears: Ears
    vad: Vad
    thinker: Thinker
    voice: Voice
    predictor: DuplexPredictor
    pace: Pace = field(default_factory=Pace)
    """How well this machine keeps up with them, as the conversations on it have found."""

    voice_rate_hz: ClassVar[int] = AGENT_RATE_HZ
