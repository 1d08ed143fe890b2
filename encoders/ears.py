"""What the conversation asks of ears: audio in as it comes, transcripts of the current turn out.

`feed` is cheap and is called on every 20 ms frame, in the event loop. `window` takes an immutable snapshot, and `transcribe`, which
runs a model, works on that snapshot alone, so it may run in another thread while `feed` goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from duplex.audio import Samples


@dataclass(frozen=True, slots=True)
class SpeechLabels:
    """What a recogniser says about a stretch of sound besides its words; None where it cannot tell."""

    language: str | None = None
    """Such as "en"; None when nobody speaks."""
    emotion: str | None = None
    """Such as "happy"."""
    event: str | None = None
    """Such as "speech", "laughter" or "cough"."""


@dataclass(frozen=True, slots=True, eq=False)
class HeardVectors:
    """Words as vectors in the LLM's input space, for an LLM that hears the speech itself."""

    keys: tuple[int, ...]
    """[n] unique negative numbers: what is final keeps its keys from one transcript of a turn to the next."""
    pieces: tuple[str, ...]
    """[n] the text of each; joined they are the transcript."""
    vectors: NDArray[np.float32]
    """[n, d]"""

    def without_end(self, marks: str) -> HeardVectors:
        """Without the vectors at the end that say nothing but these marks."""
        n = len(self.pieces)
        while n and not self.pieces[n - 1].strip(marks):
            n -= 1
        return HeardVectors(self.keys[:n], self.pieces[:n], self.vectors[:n])


@dataclass(frozen=True, slots=True, eq=False)
class SoundStates:
    """What a recogniser's layers made of the newest sound of a turn."""

    frames: NDArray[np.float32]
    """[n, d] in order of time; the newest 1.5 s, or fewer."""
    last: NDArray[np.float32] | None = None
    """[e] the decoder's state after the last word; None from a recogniser that has no decoder."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What the user has said in the current turn, up to `end`."""

    text: str
    """The words, with the recogniser's own punctuation; "" when nothing was said."""
    end: int
    """User-sample index up to which audio was taken into account."""
    no_speech: float = 0.0
    """Probability in [0, 1] that the window holds no speech at all."""
    labels: SpeechLabels | None = None
    """What else was heard; None from a recogniser that hears words alone."""
    speech: HeardVectors | None = None
    """The same words as the LLM may hear them; None from a recogniser that gives text alone."""
    listening: float | None = None
    """How likely a sound asks for nothing, in [0, 1], whatever `text` settled on: by a head that was taught what listeners say, coughs,
    other people's talk and echo; or by the odds that the first word is a listener's (`LISTENING_OPENERS`). None from a recogniser that
    cannot tell."""
    over: float | None = None
    """Log odds that the turn is over, by the sound, to be added to those of its words; None from a recogniser that cannot tell."""
    states: SoundStates | None = field(default=None, compare=False, repr=False)
    """What these two were told by."""


class Ears(Protocol):
    """A streaming recogniser; the state is owned by the caller, so conversations share one set of weights."""

    @property
    def interim_s(self) -> float:
        """How often it pays to bring the transcript up to date while the user speaks."""
        ...

    def open(self) -> Any:
        """A fresh state for one conversation."""
        ...

    def feed(self, state: Any, samples: Samples) -> None:
        """Take [n] user samples (16 kHz) that follow what was fed before."""
        ...

    def begin_turn(self, state: Any, start: int) -> None:
        """Forget audio before user sample `start` and the text of the turn before."""
        ...

    def window(self, state: Any) -> Any:
        """An immutable snapshot of the current turn, for `transcribe`."""
        ...

    def transcribe(self, window: Any) -> Transcript:
        """The transcript of a snapshot. Runs the model; thread-safe with `feed`."""
        ...

    def settle(self, state: Any, window: Any, transcript: Transcript) -> None:
        """Let the state keep what `transcribe` found (long turns freeze their oldest text, so the window stays bounded)."""
        ...
