"""What the sound cards' transport is set to, what it counts, and how it reads a stream's clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from duplex.audio import FRAME_MS
from duplex.errors import ConfigError

STAMPS = 256  # of the last 2.56 s


@dataclass(frozen=True)
class SoundCardConfig:
    """How much sound waits where."""

    latency_ms: int = 40
    """Asked of each device; it may take more."""
    queue_ms: int = 60
    """The agent's sound that waits in our own queue: what the event loop may be late without a gap."""
    slack_ms: int = 30
    """The queue may stray so far from `queue_ms` before a silent frame is left out or repeated."""
    most_committed_ms: int = 200
    """`send` waits while so much is queued and in the device."""
    lead_ms: int = 40
    """The echo reference runs ahead of the microphone by this, to make up for wrong time stamps."""
    realign_ms: int = 40
    """The echo reference is moved against the microphone when the time stamps have put it so far off."""
    gone_s: float = 1.0
    """A device whose callback is silent so long is gone."""
    start_s: float = 2.5
    """The first callback may take so long, and a young stream may stutter."""
    away_s: float = 120.0
    """The conversation waits so long for a device that went away; 0 does not wait."""
    retry_s: float = 0.5
    """Between two looks whether it is back."""
    rate_window_s: float = 3.0
    """A stream's rate is measured over so long; twice in a row off by more than `rate_tolerance`, and it is opened anew."""
    rate_tolerance: float = 0.06
    """Share of the rate; the two nearest rates in use, 44.1 and 48 kHz, are 8 % apart."""

    def __post_init__(self) -> None:
        for key in (
            "latency_ms",
            "queue_ms",
            "slack_ms",
            "realign_ms",
            "gone_s",
            "start_s",
            "retry_s",
            "rate_window_s",
            "rate_tolerance",
        ):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} must be positive, not {getattr(self, key)}.")
        if self.away_s < 0:
            raise ConfigError(f"away_s must not be negative, not {self.away_s}.")
        least = self.queue_ms + self.slack_ms + 2 * FRAME_MS
        if self.most_committed_ms < least:
            raise ConfigError(f"most_committed_ms must be at least {least} (queue and slack), not {self.most_committed_ms}.")


@dataclass(slots=True)
class SoundCardStats:
    """What went wrong so far, and what was done about the clocks."""

    lost_input_ms: float = 0.0
    """Microphone sound that nobody fetched in time."""
    input_overflows: int = 0
    """Times the system itself lost microphone sound."""
    underruns: int = 0
    """Times the loudspeaker had nothing to play although the conversation was under way."""
    output_underflows: int = 0
    """Times the system itself ran dry."""
    left_out_ms: float = 0.0
    """Silence left out because the loudspeaker's queue had grown."""
    repeated_ms: float = 0.0
    """Silence put in because the loudspeaker's queue had shrunk."""
    realigned: int = 0
    """Times the echo reference was moved against the microphone after something had been played."""
    reopened: int = 0
    """Times a device went away, or changed its rate, and the conversation went on."""


class StreamClock:
    """Time of a stream's sample 0, from noisy stamps: the median over the last STAMPS of them."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._offsets = np.full(STAMPS, np.nan)
        self._count = 0

    def stamp(self, index: int, at_s: float) -> None:
        """Sample `index` passes the converter at `at_s`. Called from the callback: no allocation."""
        self._offsets[self._count % STAMPS] = at_s - index / self._rate_hz
        self._count += 1

    def origin_s(self) -> float | None:
        """When sample 0 passed; None before the first stamps."""
        if self._count < 4:
            return None
        return float(np.nanmedian(self._offsets))


class RateWatch:
    """Notices that a stream runs at another rate than it was opened with, as a headset does that turns from music to telephony."""

    def __init__(self, rate_hz: int, config: SoundCardConfig) -> None:
        self._rate_hz, self._config = rate_hz, config
        self._since_s: float | None = None
        self._count = 0
        self._off = 0

    def measure(self, count: int, now_s: float) -> float | None:
        """With `count` samples seen until now: the rate in Hz when it was off over two windows in a row, else None."""
        if self._since_s is None:
            self._since_s, self._count = now_s, count
        past_s = now_s - self._since_s
        if past_s < self._config.rate_window_s:
            return None
        measured_hz = (count - self._count) / past_s
        self._since_s, self._count = now_s, count
        off = abs(measured_hz / self._rate_hz - 1) > self._config.rate_tolerance
        self._off = self._off + 1 if off else 0
        return measured_hz if self._off >= 2 else None


def plausible(stamp_s: float, current_s: float, now_s: float, usual_s: float) -> float:
    """The stamp on our own clock; some systems leave stamps at zero or far off, then the usual latency must do."""
    ahead = stamp_s - current_s
    return now_s + (ahead if stamp_s > 0 and abs(ahead) < 0.5 else usual_s)
