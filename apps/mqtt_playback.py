"""The agent's voice on its way to a satellite: cut into pieces, sent just in time, and known to be heard or not.

Hermes cannot stop a sound that was handed over. So a piece is only handed over when what the satellite still has to play is about to
run out; everything behind it stays here, where an interruption can drop it. A satellite that reports `playFinished` is believed;
otherwise a piece counts as played when its time has passed. No clock and no broker here: the caller says what time it is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from duplex.audio import AGENT_FRAME, AGENT_RATE_HZ, FRAME_MS, Samples
from duplex.errors import ConfigError

AUDIBLE = 1e-3
"""Peak from which a frame is sound (-60 dBFS)."""
PAUSE_FRAMES = 10
"""So many silent frames (200 ms) end a passage; shorter pauses are sent along."""
FADE = AGENT_RATE_HZ // 100
"""10 ms, with which a cut passage ends."""
MOST_WAITING = 120 * AGENT_RATE_HZ
"""Agent samples that may wait here; beyond, the oldest are dropped."""


@dataclass(frozen=True)
class PlaybackConfig:
    """How the voice is handed to a satellite."""

    chunk_ms: int = 300
    """Length of a piece; up to twice that where gaps have put the satellite behind. Shorter is silent sooner when interrupted, and needs
    a satellite that plays pieces without gaps."""
    lead_ms: int = 60
    """How long before the last piece runs out the next one is sent."""
    streaming: bool = False
    """playBytesStreaming instead of playBytes."""
    rate_hz: int = AGENT_RATE_HZ
    """Sample rate of the pieces."""

    def __post_init__(self) -> None:
        if not FRAME_MS <= self.chunk_ms <= 5000 or not 0 <= self.lead_ms <= 1000:
            raise ConfigError("--chunk-ms must lie between 20 and 5000, and --lead-ms between 0 and 1000.")
        if not 8000 <= self.rate_hz <= 48_000:
            raise ConfigError("--play-rate must lie between 8000 and 48000 Hz.")

    @property
    def stop_bound_ms(self) -> int:
        """The most that a satellite which plays without gaps may still have to play when the agent falls silent."""
        return self.chunk_ms + 2 * self.lead_ms


@dataclass(frozen=True, slots=True)
class Piece:
    """Something to hand over."""

    passage: int
    """Number of the passage, from 1: speech without a pause of more than 200 ms."""
    index: int
    """Number of the piece within the passage, from 0."""
    last: bool
    """Whether the passage ends with it."""
    samples: Samples
    """[n] agent samples (24 kHz)."""


@dataclass(slots=True)
class _Sent:
    """A piece at the satellite."""

    passage: int
    index: int
    samples: int
    ends: float  # when it will have been played, on the caller's clock


class Playback:
    """One satellite's loudspeaker, as far as it is known from here."""

    GRACE_S = 1.0
    """How much later than expected the report of a satellite that reports may come."""

    def __init__(self, config: PlaybackConfig | None = None) -> None:
        self.config = config or PlaybackConfig()
        self.dropped = 0
        """Samples that waited too long."""
        self.taken = 0
        """Samples of voice that came in so far, pauses within it included."""
        self._chunk = AGENT_RATE_HZ * self.config.chunk_ms // 1000
        self._lead_s = self.config.lead_ms / 1000
        self._waiting: list[Samples] = []
        self._sent: deque[_Sent] = deque()
        self._talking = False
        self._paused = False
        self._dropping = False  # until the next silent frame, sound belongs to what was dropped
        self._quiet = 0  # silent frames at the end of `_waiting`
        self._passage = 0
        self._index = 0
        self._open = False  # pieces of the passage were sent, the last one not yet
        self._reports = False

    # -- from the conversation ----------------------------------------------------------------------------------------------------

    def take(self, frame: Samples, now: float) -> list[Piece]:
        """20 ms of the agent, silent or not -> what is to be handed over now."""
        self._expire(now)
        audible = float(np.abs(frame).max()) > AUDIBLE
        if self._dropping:  # the rest of the fade of what was dropped
            self._dropping = audible
        elif audible:
            self._talking, self._quiet = True, 0
            self._waiting.append(frame)
            self.taken += len(frame)
        elif self._talking and not self._paused:
            self._waiting.append(frame)
            self.taken += len(frame)
            self._quiet += 1
            if self._quiet >= PAUSE_FRAMES:
                self._end_passage()
        while self.waiting > MOST_WAITING:
            self.dropped += len(self._waiting.pop(0))
        return [] if self._paused else self._due(now)

    def pause(self) -> None:
        """The agent holds its breath: hand nothing over, keep what is here until it goes on."""
        self._paused = bool(self._talking or self._waiting)

    def go_on(self) -> None:
        """End of a pause."""
        self._paused = False

    def drop(self) -> int:
        """The agent was interrupted: forget what was not handed over. Returns how many samples nobody will hear."""
        unheard = self.waiting - self._quiet * AGENT_FRAME
        cut = np.concatenate(self._waiting)[:FADE] if self._open and unheard > 0 else np.zeros(0, np.float32)
        self._waiting = [cut * np.linspace(1.0, 0.0, len(cut), dtype=np.float32)] if len(cut) else []
        self._quiet, self._dropping = 0, True
        self._talking = self._paused = False
        return max(unheard - len(cut), 0)

    def finish(self, now: float) -> list[Piece]:
        """The conversation is over: what is left of a passage that was cut, so that a stream has its last piece."""
        self.drop()
        if not self.waiting and not (self._open and self.config.streaming):
            return []
        self._waiting = self._waiting or [np.zeros(FADE, np.float32)]
        return [self._hand_over(self.waiting, now, last=True)]

    # -- from the satellite -------------------------------------------------------------------------------------------------------

    def played(self, passage: int, index: int | None, now: float) -> None:
        """A piece was played to its end; with `index` None the whole passage was."""
        self._reports = True
        key = (passage, index if index is not None else 1 << 60)
        while self._sent and (self._sent[0].passage, self._sent[0].index) <= key:
            self._sent.popleft()
        at = now
        for piece in self._sent:  # what is left begins now
            at += piece.samples / AGENT_RATE_HZ
            piece.ends = at

    def left_s(self, now: float) -> float:
        """Seconds that the satellite still has to play."""
        self._expire(now)
        if not self._sent:
            return 0.0
        left = self._sent[-1].ends - now
        return max(left, FRAME_MS / 1000) if self._reports else max(left, 0.0)

    def busy(self, now: float) -> bool:
        """Something is still to be played, here or at the satellite."""
        return self.waiting > 0 or self.left_s(now) > 0

    def committed(self, now: float) -> int:
        """Agent samples until what is decided now is heard: a beginning after a silence, a stop while the satellite plays."""
        if self.busy(now):
            return round(self.left_s(now) * AGENT_RATE_HZ)
        return AGENT_RATE_HZ * (self.config.chunk_ms + self.config.lead_ms) // 1000

    @property
    def waiting(self) -> int:
        """Agent samples that are here."""
        return sum(map(len, self._waiting))

    # -- parts --------------------------------------------------------------------------------------------------------------------

    def _due(self, now: float) -> list[Piece]:
        left_s, waiting = self.left_s(now), self.waiting
        if not self._talking:
            if waiting:
                return [self._hand_over(waiting, now, last=True)] if left_s <= 2 * self._lead_s else []
            if not self._open:
                return []
            self._open = self.config.streaming
            if not self._open:
                return []
            self._waiting = [np.zeros(FADE, np.float32)]  # a stream needs a last piece
            return [self._hand_over(FADE, now, last=True)]
        if left_s > 2 * self._lead_s or waiting < self._chunk:
            return []
        if left_s > 0:
            return [self._hand_over(min(waiting, 2 * self._chunk), now, last=False)]
        if waiting < self._chunk + round(self._lead_s * AGENT_RATE_HZ):  # at a beginning, keep the lead back
            return []
        return [self._hand_over(self._chunk, now, last=False)]

    def _hand_over(self, count: int, now: float, *, last: bool) -> Piece:
        if not self._open:
            self._passage, self._index, self._open = self._passage + 1, 0, True
        sound = np.concatenate(self._waiting) if self._waiting else np.zeros(0, np.float32)
        rest = sound[count:]
        self._waiting = [rest] if len(rest) else []
        piece = Piece(self._passage, self._index, last, sound[:count])
        begins = max(now, self._sent[-1].ends if self._sent else now)
        self._sent.append(_Sent(piece.passage, piece.index, count, begins + count / AGENT_RATE_HZ))
        self._index += 1
        self._open = not last
        return piece

    def _end_passage(self) -> None:
        """Keep the sound, not the silence behind it."""
        self._talking = False
        sound = np.concatenate(self._waiting)
        kept = sound[: max(len(sound) - self._quiet * AGENT_FRAME, 0)]
        self._waiting, self._quiet = ([kept] if len(kept) else []), 0

    def _expire(self, now: float) -> None:
        grace = self.GRACE_S if self._reports else 0.0
        while self._sent and self._sent[0].ends + grace <= now:
            self._sent.popleft()
