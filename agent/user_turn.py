"""What is known of the user's current turn, or of a sound over the agent's voice."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from duplex.events import SpeechLabelled
from duplex.predictor import Ending
from encoders.ears import Transcript


@dataclass(slots=True, eq=False)
class UserTurn:
    """One turn, from its onset on. Positions are user samples."""

    number: int
    """Counts the turns (and sounds over the agent's voice) of a conversation."""
    onset: int
    last_voiced: int
    transcript: Transcript | None = None
    ends: Ending | None = None
    """How likely the sentence ends with the newest transcript, by the thinker."""
    labels: SpeechLabelled | None = None
    hum: float = 1.0
    """The least that any part of it was like a hum."""
    updated: asyncio.Event = field(default_factory=asyncio.Event)

    def fresh(self) -> bool:
        """The transcript covers all that was said."""
        return self.transcript is not None and self.transcript.end >= self.last_voiced

    @property
    def text(self) -> str:
        """The words so far."""
        return self.transcript.text if self.transcript else ""

    @property
    def ending(self) -> float | None:
        """How likely the sentence ends here, by its words and how it sounded; None while the thinker has not read them."""
        if self.ends is None or self.transcript is None:
            return None
        return self.ends.heard(self.transcript.over)

    @property
    def listening(self) -> float | None:
        """How likely the sound asks for nothing; None when nobody can tell."""
        return self.transcript.listening if self.transcript else None
