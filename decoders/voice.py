"""What the conversation asks of a voice: groups of LLM tokens in, chunks of sound out.

The state is owned by the caller. `push` and `finish` are generators: each `next()` does a bounded piece of work (one chunk), so the
caller can run listening work in between and stop at any chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from duplex.audio import Samples


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A piece of the written text and where its sound ends.

    The `text` of all words of a response, joined, is exactly the text that the LLM wrote (spaces and punctuation included), so a
    prefix of words is a prefix of the reply: that is how history keeps what was heard.
    """

    text: str
    end: int
    """Agent-sample offset (24 kHz) in the chunk's `samples` at which this word has been spoken."""


@dataclass(frozen=True, slots=True)
class Speech:
    """One chunk of the agent's voice."""

    samples: Samples
    """[n] float32 at AGENT_RATE_HZ; may be empty for text that makes no sound."""
    words: tuple[SpokenWord, ...]


class Voice(Protocol):
    """A streaming voice decoder."""

    def open(self, seed: int = 0, speaker: Any = None) -> Any:
        """A fresh state for one response. speaker: whose voice, in the form this decoder makes; None for its own.

        Raises ValueError for a speaker that it cannot be.
        """
        ...

    def push(self, state: Any, tokens: Sequence[int], hidden: NDArray[Any] | None = None) -> Iterator[Speech]:
        """Take a group of LLM tokens (and their hidden states [n, d]); yield the chunks that became complete."""
        ...

    def finish(self, state: Any) -> Iterator[Speech]:
        """The text has ended: yield what is left."""
        ...
