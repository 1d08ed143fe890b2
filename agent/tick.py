"""What the predictor is told on every tick: the newest sound and voice activity of the user, and what is known of their turn.

One conversation's; fed frame by frame in the event loop, so it only moves samples and makes two small values per 80 ms.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from agent.user_turn import UserTurn
from duplex.audio import TICK, USER_FRAME, USER_RATE_HZ, Samples, seconds
from duplex.hum import hum_likeness
from duplex.predictor import TickInput
from duplex.predictor_features import Heard

RECENT_SAMPLES = USER_RATE_HZ // 10
"""100 ms: what the hum measure needs, and a tick lies within it."""


@dataclass(slots=True)
class TickSound:
    """The user's side since the last tick."""

    recent: Samples = field(default_factory=lambda: np.zeros(RECENT_SAMPLES, np.float32))
    """The newest samples, echo removed."""
    voice_p: float = 0.0
    """The largest probability of voice since the last tick."""

    def take(self, near: Samples) -> None:
        """The next [USER_FRAME] samples."""
        self.recent[:-USER_FRAME] = self.recent[USER_FRAME:]
        self.recent[-USER_FRAME:] = near

    def voice(self, probability: float) -> None:
        """What voice activity made of the next window."""
        self.voice_p = max(self.voice_p, probability)

    def heard(self, turn: UserTurn | None, voiced: bool, last_voiced: int, now: int, *, agent_speaking: bool) -> Heard:
        """The tick as a listening predictor takes it; the next one begins. `sound` is a view, good until the next `take`."""
        voice_p, self.voice_p = self.voice_p, 0.0
        return Heard(
            sound=self.recent[-TICK:],
            voice_p=voice_p,
            voiced=voiced,
            silence_s=0.0 if voiced else seconds(now - last_voiced),
            agent_speaking=agent_speaking,
            transcript=turn.text if turn is not None else "",
            fresh=turn is not None and turn.fresh(),
            sentence_ends=turn.ending if turn is not None else None,
            listening=turn.listening if turn is not None else None,
        )

    def known(self, turn: UserTurn, voiced: bool, last_voiced: int, now: int, *, overlap: bool) -> TickInput:
        """The user's turn, or their sound over the agent's voice (`overlap`), as the predictor decides on it."""
        if overlap and now - last_voiced < 2 * USER_FRAME:
            turn.hum = min(turn.hum, hum_likeness(self.recent))
        return TickInput(
            at=now,
            voiced=voiced,
            voiced_s=seconds(max(turn.last_voiced - turn.onset, 0)),
            silence_s=0.0 if voiced else seconds(now - turn.last_voiced),
            agent_speaking=overlap,
            transcript=turn.text,
            transcript_fresh=turn.fresh(),
            hum=turn.hum if overlap else 0.0,
            sentence_ends=turn.ending,
            listening=turn.listening,
        )
