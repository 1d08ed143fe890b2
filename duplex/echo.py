"""Taking the agent's own voice out of the microphone.

A canceller has two methods, so the library behind it can be swapped: the best one (WebRTC's AEC3, `pywebrtc-audio`) is young.
The reference must be what the loudspeaker *played*, not what was queued for it. Until the far side has been audible for a while the
filter has not converged, so `WarmUpGuard` says when what is left over may be trusted; `ErleMeter` says how well it works.
All audio is 16 kHz float32, one 20 ms frame at a time.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np

from duplex.audio import FRAME_MS, USER_FRAME, USER_RATE_HZ, Samples
from duplex.errors import ConfigError
from duplex.levels import level_db

log = logging.getLogger(__name__)

EchoKind = Literal["auto", "webrtc", "half_duplex", "none"]


@dataclass(frozen=True)
class EchoConfig:
    """How the far side is judged."""

    audible_db: float = -50.0
    """A far frame louder than this (RMS, dBFS) counts as heard in the room."""
    hold_ms: int = 300
    """Half duplex: the microphone stays shut this long after the far side fell silent, for the room to die away."""
    trust_after_ms: int = 1_500
    """So much audible far side must have been heard before the canceller is trusted."""
    erle_half_life_ms: int = 700
    """Half life of the memory of the ERLE meter."""

    def __post_init__(self) -> None:
        if not -100 <= self.audible_db < 0:
            raise ConfigError(f"audible_db must lie between -100 and 0 dBFS, not {self.audible_db}.")
        for key in ("hold_ms", "trust_after_ms", "erle_half_life_ms"):
            if getattr(self, key) < 0 or (key == "erle_half_life_ms" and self.erle_half_life_ms == 0):
                raise ConfigError(f"{key} must be positive, not {getattr(self, key)}.")


class EchoCanceller(Protocol):
    """One conversation's canceller; its filter is its own state. Not for use from two threads."""

    def process(self, near: Samples, far: Samples) -> Samples:
        """Microphone [320] and loudspeaker [320] of the same 20 ms -> microphone without the loudspeaker [320]."""
        ...

    def reset(self) -> None:
        """Forget the room (the device or the volume changed)."""
        ...


class NoEcho:
    """For headphones, files, and browsers that cancel by themselves: gives the microphone back as it is."""

    def process(self, near: Samples, far: Samples) -> Samples:
        """[320], [320] -> near, untouched."""
        _check(near, far)
        return near

    def reset(self) -> None:
        """Nothing to forget."""


class HalfDuplex:
    """Shuts the microphone while the far side is audible and `hold_ms` beyond: no echo, and no interrupting either."""

    def __init__(self, config: EchoConfig | None = None) -> None:
        self._config = config or EchoConfig()
        self._shut_frames = 0

    def process(self, near: Samples, far: Samples) -> Samples:
        """[320], [320] -> near, or zeros while the far side can still be in the room."""
        _check(near, far)
        if level_db(far) > self._config.audible_db:
            self._shut_frames = 1 + -(-self._config.hold_ms // FRAME_MS)
        if self._shut_frames == 0:
            return near
        self._shut_frames -= 1
        return np.zeros_like(near)

    def reset(self) -> None:
        """Open the microphone."""
        self._shut_frames = 0


class WebRtcEcho:
    """WebRTC's AEC3, which finds the delay between loudspeaker and microphone by itself. Its output is 8 ms late.

    Raises ConfigError when `pywebrtc-audio` is not installed (extra `talk`).
    """

    def __init__(self) -> None:
        try:
            library: Any = importlib.import_module("pywebrtc_audio")
        except ImportError as error:
            raise ConfigError(
                "Echo cancellation needs the package pywebrtc-audio, which cannot be loaded: run `pip install 'duologue[talk]'`, "
                "or choose echo half_duplex, or none with headphones."
            ) from error
        self._canceller = library.EchoCanceller(sample_rate=USER_RATE_HZ, num_channels=1)

    def process(self, near: Samples, far: Samples) -> Samples:
        """[320], [320] -> [320] with the far side's echo removed; 0.14 ms of work."""
        _check(near, far)
        clean = self._canceller.process(np.ascontiguousarray(near, np.float32), np.ascontiguousarray(far, np.float32))
        return np.asarray(clean, np.float32)

    def reset(self) -> None:
        """Forget the room."""
        self._canceller.reset()


def choose_echo(kind: str, config: EchoConfig | None = None) -> EchoCanceller:
    """The canceller of that name; `auto` is webrtc, or half_duplex with a logged warning where the library is missing.

    Raises ConfigError for an unknown name, and for `webrtc` without its library.
    """
    if kind not in get_args(EchoKind):
        raise ConfigError(f"echo must be one of {', '.join(get_args(EchoKind))}, not {kind!r}.")
    if kind == "none":
        return NoEcho()
    if kind == "half_duplex":
        return HalfDuplex(config)
    try:
        return WebRtcEcho()
    except ConfigError as error:
        if kind == "webrtc":
            raise
        log.warning("%s Going on with half_duplex: the agent cannot be interrupted by voice while it speaks.", error)
        return HalfDuplex(config)


class WarmUpGuard:
    """Says whether the canceller has heard enough of the far side to be believed.

    While `trusted` is False, voice activity alone must not interrupt the agent: it may well be the agent's own echo.
    """

    def __init__(self, config: EchoConfig | None = None) -> None:
        self._config = config or EchoConfig()
        self._audible_ms = 0

    def hear(self, far: Samples | None) -> None:
        """Count one far frame [320]; None (no echo path) counts as nothing."""
        if far is not None and level_db(far) > self._config.audible_db:
            self._audible_ms += FRAME_MS

    @property
    def trusted(self) -> bool:
        """Whether `trust_after_ms` of audible far side were heard since the start or the last reset."""
        return self._audible_ms >= self._config.trust_after_ms

    def reset(self) -> None:
        """Begin again, as the canceller does."""
        self._audible_ms = 0


class ErleMeter:
    """Echo return loss enhancement: how many dB of echo the canceller removes, smoothed over frames with only the far side."""

    def __init__(self, config: EchoConfig | None = None) -> None:
        self._config = config or EchoConfig()
        self._before = 0.0
        self._after = 0.0

    def hear(self, near: Samples, clean: Samples, far: Samples, *, user_speaking: bool) -> None:
        """Take one frame [320] of each; frames with the user's voice or a silent far side are left out."""
        if user_speaking or level_db(far) <= self._config.audible_db:
            return
        keep = 0.5 ** (FRAME_MS / self._config.erle_half_life_ms)
        self._before = keep * self._before + (1 - keep) * _power(near)
        self._after = keep * self._after + (1 - keep) * _power(clean)

    @property
    def erle_db(self) -> float | None:
        """dB removed, at most 80; None before the far side was heard in the microphone."""
        if self._before < 1e-9:
            return None
        return float(min(80.0, 10 * np.log10(self._before / max(self._after, 1e-12))))

    def reset(self) -> None:
        """Forget what was measured."""
        self._before = 0.0
        self._after = 0.0


class EchoControl:
    """All that a conversation asks about echo: the cleaned microphone, whether to believe it, and how well it works."""

    def __init__(self, canceller: EchoCanceller, config: EchoConfig | None = None) -> None:
        self._canceller = canceller
        self.kind: EchoKind = _kind(canceller)
        """Which canceller is in use."""
        # half duplex leaves no echo over, and whoever chose none has told us that there is none
        self._guard = None if isinstance(canceller, HalfDuplex | NoEcho) else WarmUpGuard(config)
        self._meter = ErleMeter(config)

    def process(self, near: Samples, far: Samples, *, user_speaking: bool = False) -> Samples:
        """[320], [320] of the same 20 ms -> [320] without echo. `user_speaking`, as far as known, keeps the meter honest."""
        clean = self._canceller.process(near, far)
        if self._guard is not None:
            self._guard.hear(far)
        self._meter.hear(near, clean, far, user_speaking=user_speaking)
        return clean

    @property
    def trusted(self) -> bool:
        """Whether voice in the cleaned microphone may interrupt the agent by itself."""
        return self._guard is None or self._guard.trusted

    @property
    def erle_db(self) -> float | None:
        """dB of echo removed of late; None before there was any."""
        return self._meter.erle_db

    def reset(self) -> None:
        """Forget the room."""
        self._canceller.reset()
        self._meter.reset()
        if self._guard is not None:
            self._guard.reset()


def _kind(canceller: EchoCanceller) -> EchoKind:
    """The name under which `choose_echo` makes it; one of somebody's own does webrtc's work."""
    match canceller:
        case NoEcho():
            return "none"
        case HalfDuplex():
            return "half_duplex"
        case _:
            return "webrtc"


def _power(samples: Samples) -> float:
    return float(np.dot(samples, samples)) / max(1, len(samples))


def _check(near: Samples, far: Samples) -> None:
    if near.shape != (USER_FRAME,) or far.shape != (USER_FRAME,):
        raise ValueError(f"A canceller takes two frames of [{USER_FRAME}] samples, not {near.shape} and {far.shape}.")
