"""Rates, frame sizes and the sample clock, derived once here.

Audio inside the conversation is float32 mono in [-1, 1]. The user's side runs at 16 kHz, the agent's at 24 kHz. Positions in time
are integer sample indexes of the user's side ("user samples") unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

USER_RATE_HZ = 16_000
AGENT_RATE_HZ = 24_000
FRAME_MS = 20
USER_FRAME = USER_RATE_HZ * FRAME_MS // 1000  # 320 samples, one frame of the user's side
AGENT_FRAME = AGENT_RATE_HZ * FRAME_MS // 1000  # 480 samples, one frame of the agent's side
TICK_FRAMES = 4  # one predictor decision every 80 ms
TICK = USER_FRAME * TICK_FRAMES


@dataclass(frozen=True, slots=True)
class Frame:
    """20 ms of the user's side.

    `far` is what the loudspeaker actually played during these same 20 ms, at 16 kHz, for echo cancellation; None when the
    transport has no echo path (a file, a browser that cancels echo itself).
    """

    start: int
    """Index of the first sample, in user samples since the conversation began."""
    near: Samples
    """[USER_FRAME] microphone samples."""
    far: Samples | None = None
    """[USER_FRAME] loudspeaker samples of the same time, or None."""


def user_samples(seconds: float) -> int:
    """Seconds as a count of user samples (16 kHz), rounded to the nearest."""
    return round(seconds * USER_RATE_HZ)


def seconds(user_samples: int) -> float:
    """A count of user samples (16 kHz) as seconds."""
    return user_samples / USER_RATE_HZ
