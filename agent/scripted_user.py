"""A user made of recordings, who waits for the agent as a person would: a transport for tests and measurements.

Each `Say` is one utterance and when it comes: after the agent has been silent, or a while into its answer. Both sides are recorded on
one clock, with the exact place of every utterance, so latencies can be read off the sound itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from duplex.audio import AGENT_FRAME, FRAME_MS, USER_FRAME, Frame, Samples, user_samples
from duplex.errors import ConfigError

AUDIBLE = 10 ** (-50 / 20)
"""Peak above which the agent counts as audible (-50 dBFS)."""


@dataclass(frozen=True, slots=True)
class Say:
    """One utterance."""

    samples: Samples
    """[n] user samples (16 kHz), trimmed to the speech."""
    when: Literal["silence", "speaking"] = "silence"
    """"silence": once the agent has been silent for `delay_s`; "speaking": `delay_s` after it became audible."""
    delay_s: float = 1.0
    """See `when`."""
    name: str = ""
    """For the record."""


@dataclass(frozen=True, slots=True)
class Said:
    """Where an utterance lies."""

    name: str
    start: int
    end: int


@dataclass(slots=True)
class ScriptedUser:
    """A transport that plays utterances and records both sides. Paced by the running loop's clock, real or virtual."""

    script: Sequence[Say]
    noise_db: float = -72.0
    """Level of the room noise under everything, dBFS RMS."""
    tail_s: float = 1.2
    """Silence of the agent after the last utterance's answer that ends the conversation."""
    patience_s: float = 12.0
    """How long the user waits for the agent in vain before going on."""
    hang_up_s: float = float("inf")
    """Seconds after the last utterance at which the user leaves, whatever the agent is doing."""
    record: bool = True
    """Keep both sides' sound for `tracks`; False for very long conversations."""
    said: list[Said] = field(default_factory=list)
    late_frames: int = 0
    """Frames that were handed over more than 100 ms after their time."""
    _user: list[Samples] = field(default_factory=list)
    _agent: list[Samples] = field(default_factory=list)
    _received: int = 0
    _sent: int = 0
    _began: float | None = None
    _index: int = 0
    _playing: Samples | None = None
    _offset: int = 0
    _agent_since: int | None = None  # frame at which the agent became audible after the last utterance
    _silent_since: int = 0
    _waiting_since: int = 0
    _noise: Samples = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        if any(s.samples.ndim != 1 for s in self.script):
            raise ConfigError("A scripted utterance must be mono: one dimension of samples.")
        self._noise = np.random.default_rng(0).standard_normal(50 * USER_FRAME).astype(np.float32) * np.float32(
            10 ** (self.noise_db / 20)
        )

    async def receive(self) -> Frame | None:
        """The next frame at its time; None after the script and the agent's last answer."""
        loop = asyncio.get_running_loop()
        if self._began is None:
            self._began = loop.time()
        number = self._received
        if self._over(number):
            return None
        due = self._began + (number + 1) * FRAME_MS / 1000
        await asyncio.sleep(max(due - loop.time(), 0.0))
        if loop.time() - due > 0.1:
            self.late_frames += 1
        near = self._next(number)
        self._received += 1
        if self.record:
            self._user.append(near)
        return Frame(number * USER_FRAME, near)

    async def send(self, samples: Samples) -> None:
        """Record the agent and notice when it speaks."""
        number = self._sent
        self._sent += 1
        if self.record:
            self._agent.append(samples.copy())
        if float(np.abs(samples).max()) > AUDIBLE:
            if self._agent_since is None:
                self._agent_since = number
            self._silent_since = number + 1

    def committed(self) -> int:
        """A file plays at once."""
        return 0

    async def close(self) -> None:
        """Nothing to let go of."""

    def tracks(self) -> tuple[Samples, Samples]:
        """(user [n] at 16 kHz, agent [m] at 24 kHz) as recorded so far, of equal duration."""
        count = min(len(self._user), len(self._agent))
        empty = np.zeros(0, np.float32)
        user = np.concatenate(self._user[:count]) if count else empty
        agent = np.concatenate(self._agent[:count]) if count else empty
        assert len(agent) * USER_FRAME == len(user) * AGENT_FRAME
        return user, agent

    def _over(self, number: int) -> bool:
        if self._index < len(self.script) or self._playing is not None:
            return False
        if (number - self._waiting_since) * FRAME_MS >= 1000 * self.hang_up_s:
            return True
        silent = number - self._silent_since
        answered = self._agent_since is not None
        return silent * FRAME_MS >= 1000 * (self.tail_s if answered else self.patience_s)

    def _next(self, number: int) -> Samples:
        start = (number % 50) * USER_FRAME
        frame = self._noise[start : start + USER_FRAME].copy()
        if self._playing is None and self._index < len(self.script) and self._due(number, self.script[self._index]):
            say = self.script[self._index]
            self._index += 1
            self._playing, self._offset, self._agent_since = say.samples, 0, None
            self._silent_since = number
            at = number * USER_FRAME
            self.said.append(Said(say.name, at, at + len(say.samples)))
        if self._playing is not None:
            piece = self._playing[self._offset : self._offset + USER_FRAME]
            frame[: len(piece)] += piece
            self._offset += USER_FRAME
            if self._offset >= len(self._playing):
                self._playing, self._waiting_since, self._silent_since = None, number, max(self._silent_since, number)
        return frame

    def _due(self, number: int, say: Say) -> bool:
        delay = user_samples(say.delay_s) // USER_FRAME
        if number - self._waiting_since > self.patience_s * 1000 / FRAME_MS:
            return True
        if say.when == "speaking":
            return self._agent_since is not None and number - self._agent_since >= delay
        first = self._index == 0
        return (first or self._agent_since is not None) and number - self._silent_since >= delay
