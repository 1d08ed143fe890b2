"""How the end of a user's turn is found in one conversation: by the predictor, by a fixed silence, or by the application.

The predictor and the turn-taking core are the same for all; what differs is how its answer to "is the turn over?" is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from duplex.errors import ConfigError
from duplex.predictor import DuplexPredictor, TickDecision, TickInput


@dataclass(frozen=True, slots=True)
class TurnDetectionConfig:
    """What the application may choose for each conversation, also while it runs."""

    kind: Literal["predictor", "silence", "manual"] = "predictor"
    """Who says that a turn is over: the duplex predictor, so much silence, or the application by `Session.commit`."""
    patience: float = 1.0
    """predictor: the silence that it waits for is stretched by this factor."""
    most_s: float = 4.0
    """predictor: after so much silence the turn is over in any case."""
    silence_s: float = 0.5
    """silence: so much of it ends a turn."""
    respond: bool = True
    """Answer when a turn ends; else the words are only remembered."""
    interrupt: bool = True
    """The user may take the floor from the speaking agent."""
    onset_threshold: float | None = None
    """Probability of voice from which a sound counts as one; None leaves the profile's."""
    preroll_s: float | None = None
    """Sound before the detected onset that belongs to the turn; None leaves the profile's."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.patience <= 10 or not 0 < self.silence_s <= 30 or not 0 < self.most_s <= 60:
            raise ConfigError("turn detection: patience lies in 0.1 to 10, silence_s above 0 and up to 30, most_s up to 60.")
        if self.onset_threshold is not None and not 0 < self.onset_threshold < 1:
            raise ConfigError("turn detection: onset_threshold lies between 0 and 1.")
        if self.preroll_s is not None and not 0 <= self.preroll_s <= 5:
            raise ConfigError("turn detection: preroll_s lies in 0 to 5.")

    def decide(self, predictor: DuplexPredictor, state: Any, known: TickInput) -> TickDecision:
        """One tick's decision."""
        if known.agent_speaking:
            return predictor.tick(state, known)
        if self.kind == "manual":
            return TickDecision()
        if self.kind == "predictor":
            decision = predictor.tick(state, replace(known, silence_s=known.silence_s / self.patience))
            return replace(decision, respond=1.0) if known.silence_s >= self.most_s else decision
        if known.voiced:
            return TickDecision()
        # a response is prepared, unheard, halfway there
        return TickDecision(
            respond=1.0 if known.silence_s >= self.silence_s else 0.5 if known.silence_s >= self.silence_s / 2 else 0.0
        )
