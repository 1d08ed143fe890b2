"""Voice activity: silero's model gives a probability per 32 ms, a pure state machine turns probabilities into starts and stops.

Notable: `Vad` needs onnxruntime and no torch; everything that must be remembered is in `VadState`. `VoiceActivity` has no model
and no I/O. It reports *where* voice began and ended, not when it noticed: the start is pulled back over the windows that led to
it, the end is the last voiced sample. A window counts as voiced only when it is also loud enough, so digital silence and hiss
never count whatever the model says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duplex.audio import USER_RATE_HZ, Samples
from duplex.errors import WeightsError
from duplex.levels import SILENCE_DB

WINDOW_SAMPLES = 512  # 32 ms, what silero's 16 kHz model was trained on
WINDOW_MS = 1000 * WINDOW_SAMPLES // USER_RATE_HZ
CONTEXT_SAMPLES = 64  # of the window before, put in front of each window


@dataclass(slots=True)
class VadState:
    """What the model remembers of one conversation."""

    memory: NDArray[np.float32] = field(default_factory=lambda: np.zeros((2, 1, 128), np.float32))
    """The network's recurrent state, [2, 1, 128]."""
    context: Samples = field(default_factory=lambda: np.zeros(CONTEXT_SAMPLES, np.float32))
    """[64], the end of the last window."""
    rest: Samples = field(default_factory=lambda: np.empty(0, np.float32))
    """[< 512], samples that do not make a window yet."""
    end: int = 0
    """User sample up to which windows are done."""


class Vad:
    """silero-vad (MIT) by onnxruntime: 512-sample windows at 16 kHz, one thread. Holds no conversation; threads may share it."""

    def __init__(self, model: Path) -> None:
        """Load `silero_vad.onnx` of the silero-vad package. Raises WeightsError."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            inputs = {i.name for i in self._session.get_inputs()}
        except Exception as error:  # onnxruntime has a dozen kinds, all of which mean that the file is no good
            raise WeightsError(f"The voice activity model {model} cannot be loaded ({error}); fetch the weights again.") from error
        if not inputs >= {"input", "state", "sr"}:
            raise WeightsError(f"{model} has the inputs {sorted(inputs)}, so it is not silero-vad; fetch the weights again.")
        self._rate = np.array(USER_RATE_HZ, np.int64)

    def open(self) -> VadState:
        """A fresh state for one conversation."""
        return VadState()

    def feed(self, state: VadState, samples: Samples) -> list[tuple[int, float]]:
        """Take [n] user samples that follow what was fed before. NaN counts as 0.

        Returns (user sample after its last one, probability of voice in [0, 1]) for each window of 32 ms that became complete.
        """
        clean = np.clip(np.nan_to_num(np.asarray(samples, np.float32), nan=0.0, posinf=1.0, neginf=-1.0), -1.0, 1.0)
        waiting = np.concatenate((state.rest, clean))
        count = len(waiting) // WINDOW_SAMPLES
        done = []
        for window in waiting[: count * WINDOW_SAMPLES].reshape(count, WINDOW_SAMPLES):
            heard = np.concatenate((state.context, window))[None]  # [1, 576]
            probability, state.memory = self._session.run(None, {"input": heard, "state": state.memory, "sr": self._rate})
            state.context = window[-CONTEXT_SAMPLES:].copy()
            state.end += WINDOW_SAMPLES
            done.append((state.end, float(probability[0, 0])))
        state.rest = waiting[count * WINDOW_SAMPLES :].copy()
        return done


@dataclass(frozen=True, slots=True)
class VoiceActivityConfig:
    """How probabilities become starts and stops."""

    onset_threshold: float = 0.5
    """Windows at or above this probability count toward a start."""
    offset_threshold: float = 0.35
    """While there is voice, windows at or above this go on with it."""
    onset_windows: int = 2
    """So many voiced windows ..."""
    onset_span_windows: int = 3
    """... among the newest so many make a start."""
    offset_ms: int = 160
    """So much without a voiced window makes a stop."""
    fade_ms: int = 64
    """So much without one may become a stop: time to find out what was said."""
    pull_back_ms: int = 64
    """The start is put so long before the first voiced window began, since the model lags and consonants are soft."""
    floor_db: float = -58.0
    """Windows quieter than this (dBFS) never count."""

    def __post_init__(self) -> None:
        if not 0 < self.offset_threshold <= self.onset_threshold < 1:
            raise ValueError("keep 0 < offset_threshold <= onset_threshold < 1")
        if not 1 <= self.onset_windows <= self.onset_span_windows:
            raise ValueError("keep 1 <= onset_windows <= onset_span_windows")
        if self.offset_ms < WINDOW_MS or self.fade_ms < WINDOW_MS or self.pull_back_ms < 0:
            raise ValueError(f"offset_ms and fade_ms must be at least one window ({WINDOW_MS}) and pull_back_ms not negative")
        if not SILENCE_DB < self.floor_db < 0:
            raise ValueError("floor_db is in dBFS; keep it between -100 and 0")


@dataclass(frozen=True, slots=True)
class VoiceStart:
    """Someone began to speak."""

    at: int
    """User sample at which the voice began, by estimate; earlier than the window that showed it."""


@dataclass(frozen=True, slots=True)
class VoiceStop:
    """The voice ended."""

    at: int
    """User sample after the last voiced one, by estimate."""


@dataclass(frozen=True, slots=True)
class VoiceFade:
    """The voice may have ended; a stop or more voice follows."""

    at: int
    """User sample after the last voiced one, by estimate."""


VoiceChange = VoiceStart | VoiceFade | VoiceStop


class VoiceActivity:
    """Hysteresis over windows, fed in order to `update`; starts and stops alternate, and their positions never go back.

    Between a start and its stop there is a fade wherever the voice pauses for a moment.
    """

    def __init__(self, config: VoiceActivityConfig | None = None) -> None:
        self.config = config or VoiceActivityConfig()
        self.active = False
        """Whether there is voice now."""
        self.last_voiced = 0
        """User sample after the newest voiced window while active, or of the newest stop."""
        self._fading = False
        self._recent: list[tuple[int, bool]] = []  # (end, voiced) of the newest windows, while not active

    def update(self, end: int, probability: float, level_db: float = 0.0) -> list[VoiceChange]:
        """Take the window that ends at user sample `end`, its probability and level in dBFS; return what changed, if anything."""
        c = self.config
        loud = level_db >= c.floor_db
        if self.active:
            if loud and probability >= c.offset_threshold:
                self.last_voiced, self._fading = end, False
                return []
            found: list[VoiceChange] = []
            quiet_ms = (end - self.last_voiced) * 1000 // USER_RATE_HZ
            if quiet_ms >= c.fade_ms and not self._fading:
                self._fading = True
                found.append(VoiceFade(self.last_voiced))
            if quiet_ms >= c.offset_ms:
                self.active = False
                found.append(VoiceStop(self.last_voiced))
            return found
        self._recent.append((end, loud and probability >= c.onset_threshold))
        del self._recent[: -c.onset_span_windows]
        voiced = [at for at, yes in self._recent if yes]
        if len(voiced) < c.onset_windows:
            return []
        pulled = voiced[0] - WINDOW_SAMPLES - c.pull_back_ms * USER_RATE_HZ // 1000
        start = max(0, self.last_voiced, pulled)
        self.active, self.last_voiced, self._fading = True, voiced[-1], False
        self._recent.clear()
        return [VoiceStart(start)]

    def finish(self) -> list[VoiceChange]:
        """The audio has ended: a voice that was still going on stops at its last voiced sample."""
        if not self.active:
            return []
        self.active = False
        return [VoiceStop(self.last_voiced)]
