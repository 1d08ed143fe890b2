"""What goes into the turn-taking core (signals) and what comes out of it (actions).

Signals are facts with a time; actions are orders to the session. Both are plain values, so a conversation can be written down as a
list of signals and replayed without sound, models or a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from duplex.predictor import TickDecision

# ---- signals ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signal:
    """A fact at a user-sample position."""

    at: int


@dataclass(frozen=True, slots=True)
class VoiceBegan(Signal):
    """The user's voice set in. `trusted` is False while echo cancellation has not yet seen enough of the agent's own voice."""

    trusted: bool = True


@dataclass(frozen=True, slots=True)
class VoiceEnded(Signal):
    """The user's voice fell silent at `at` (the last voiced sample)."""


@dataclass(frozen=True, slots=True)
class Ticked(Signal):
    """80 ms went by and the predictor was asked."""

    decision: TickDecision


@dataclass(frozen=True, slots=True)
class NothingSaid(Signal):
    """The recogniser found no words in the user's turn: it was noise."""


@dataclass(frozen=True, slots=True)
class ResponseAudible(Signal):
    """The first sample of response `epoch` left for the loudspeaker."""

    epoch: int


@dataclass(frozen=True, slots=True)
class ResponseDrained(Signal):
    """Response `epoch` has been played to its end, or failed and has nothing more to play."""

    epoch: int


@dataclass(frozen=True, slots=True)
class CancelAsked(Signal):
    """The application wants the agent to stop now."""


@dataclass(frozen=True, slots=True)
class ResponseAsked(Signal):
    """The application wants a response now (a typed message, a greeting)."""


@dataclass(frozen=True, slots=True)
class MannerChanged(Signal):
    """The application wants responses given in another manner: one that was prepared in the old one is of no use."""


@dataclass(frozen=True, slots=True)
class TurnKept(Signal):
    """The application took the user's words and wants no response to them."""


# ---- actions ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Action:
    """An order to the session."""


@dataclass(frozen=True, slots=True)
class BeginTurn(Action):
    """A user turn (or a candidate for one) begins at user sample `at`."""

    at: int


@dataclass(frozen=True, slots=True)
class Transcribe(Action):
    """The user fell silent: bring the transcript up to date at once."""


@dataclass(frozen=True, slots=True)
class ForResponse(Action):
    """An order that concerns one response."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Prepare(ForResponse):
    """Start thinking and speaking into the playout buffer, but let nothing out yet."""


@dataclass(frozen=True, slots=True)
class Release(ForResponse):
    """The turn is the agent's: let the prepared response out."""


@dataclass(frozen=True, slots=True)
class Discard(ForResponse):
    """Throw away a response that nobody has heard; the user's turn goes on."""


@dataclass(frozen=True, slots=True)
class Duck(ForResponse):
    """Go on speaking, quieter."""


@dataclass(frozen=True, slots=True)
class Hold(ForResponse):
    """Fall silent but keep the place."""


@dataclass(frozen=True, slots=True)
class Resume(ForResponse):
    """Go on as before."""


@dataclass(frozen=True, slots=True)
class Stop(ForResponse):
    """Fall silent for good; history keeps what was heard."""


@dataclass(frozen=True, slots=True)
class NoteBackchannel(Action):
    """What the user uttered did not take the floor."""


@dataclass(frozen=True, slots=True)
class GiveBackchannel(Action):
    """Let the user, who has only paused, know that the agent listens: a short sound that does not take the floor."""


@dataclass(frozen=True, slots=True)
class DropTurn(Action):
    """The user's turn held no words: forget it."""
