"""Kaldi's log mel filter bank, offline and as a stream, from one function: what SenseVoice and the CAM++ speaker encoder were trained on.

Notable: the numbers come from the kaldi-native-fbank package. With Kaldi's `snip_edges` a frame reads only its own 400 samples, so a
stream is "the samples from the start of the next frame on" and its frames are those of the whole clip bit for bit; at most 559 samples
are kept between calls. Dither is off, so the same sound always gives the same frames.

Legend: n samples, t frames (100 per second), m mel bands (80).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import kaldi_native_fbank
import numpy as np
from numpy.typing import NDArray

from duplex.audio import USER_RATE_HZ, Samples

Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FbankConfig:
    """One flavour of Kaldi's filter bank. The defaults are Kaldi's own, apart from dither (off) and 80 bands."""

    window: Literal["povey", "hamming"] = "povey"
    """The window over each frame: "povey" for CAM++, "hamming" for SenseVoice."""
    scale: float = 1.0
    """Samples in [-1, 1] are multiplied by this first: 32768 for models trained on 16-bit numbers."""
    bands: int = 80
    """Mel bands from `low_hz` to half the sample rate."""
    low_hz: float = 20.0
    """Lower edge of the lowest band."""
    frame_ms: float = 25.0
    """Length of a frame."""
    hop_ms: float = 10.0
    """Distance between the starts of two frames."""
    shrink_short: bool = False
    """A clip shorter than one frame (but longer than 16 ms) makes a single, shorter frame instead of none; offline only."""

    def __post_init__(self) -> None:
        if self.window not in ("povey", "hamming"):
            raise ValueError(f'window must be "povey" or "hamming", not {self.window!r}')
        if not self.scale > 0:
            raise ValueError("scale must be above 0")
        if not 1 <= self.bands <= 128:
            raise ValueError("bands must be in [1, 128]")
        if not 0 <= self.low_hz < USER_RATE_HZ / 2:
            raise ValueError(f"low_hz must be in [0, {USER_RATE_HZ // 2})")
        if not 0 < self.hop_ms <= self.frame_ms <= 100:
            raise ValueError("keep 0 < hop_ms <= frame_ms <= 100")

    @property
    def frame_samples(self) -> int:
        """Samples that a frame reads."""
        return round(self.frame_ms * USER_RATE_HZ / 1000)

    @property
    def hop_samples(self) -> int:
        """Samples from the start of a frame to the start of the next."""
        return round(self.hop_ms * USER_RATE_HZ / 1000)


@dataclass(slots=True)
class FbankState:
    """What a stream of frames remembers; owned by the caller."""

    fed: int = 0
    """Samples fed so far."""
    made: int = 0
    """Frames handed out so far; frame `made` is the next one, and reads from sample `made * hop_samples` on."""
    rest: Samples = field(default_factory=lambda: np.empty(0, np.float32))
    """The samples from the start of frame `made` on."""


def fbank(samples: Samples, config: FbankConfig | None = None) -> Features:
    """[n] samples in [-1, 1] at 16 kHz -> [t, m] log mel power, t = 1 + (n - 400) // 160, or 0 when n < 400.

    Raises ValueError when `samples` has more than one axis.
    """
    config = config or FbankConfig()
    if config.shrink_short and len(samples) < config.frame_samples:
        return _shrunk(samples, config)
    return feed(FbankState(), samples, config)


def feed(state: FbankState, samples: Samples, config: FbankConfig | None = None) -> Features:
    """Take [n] samples that follow what was fed before; return the [t, m] frames that became complete.

    Raises ValueError when `samples` has more than one axis; the state is then as it was.
    """
    config = config or FbankConfig()
    samples = _mono(samples)
    rest = np.concatenate((state.rest, samples))
    count = max(0, (len(rest) - config.frame_samples) // config.hop_samples + 1)
    frames = _frames(rest, config, config.frame_ms)[:count] if count else np.empty((0, config.bands), np.float32)
    assert len(frames) == count, "the package cuts frames otherwise than snip_edges says"
    state.fed += len(samples)
    state.made += count
    state.rest = rest[count * config.hop_samples :].copy()
    return frames


def _mono(samples: Samples) -> Samples:
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1:
        raise ValueError(f"samples must be one channel [n], not {list(samples.shape)}; mix the channels down first")
    return samples


def _shrunk(samples: Samples, config: FbankConfig) -> Features:
    """One frame as long as the clip; none where the clip's FFT is too short for the bands (up to 256 samples for 80 bands)."""
    samples = _mono(samples)
    try:
        return _frames(samples, config, len(samples) * 1000 / USER_RATE_HZ)
    except ValueError:  # the package's word for a band without an FFT bin
        return np.empty((0, config.bands), np.float32)


def _frames(samples: Samples, config: FbankConfig, frame_ms: float) -> Features:
    """[n] samples -> [t, m], all complete frames."""
    options: Any = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = USER_RATE_HZ
    options.frame_opts.window_type = config.window
    options.frame_opts.frame_length_ms = frame_ms
    options.frame_opts.frame_shift_ms = config.hop_ms
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = config.bands
    options.mel_opts.low_freq = config.low_hz
    options.energy_floor = 0.0
    extractor: Any = kaldi_native_fbank.OnlineFbank(options)
    extractor.accept_waveform(USER_RATE_HZ, samples * np.float32(config.scale))
    extractor.input_finished()
    count: int = extractor.num_frames_ready
    if not count:
        return np.empty((0, config.bands), np.float32)
    return np.stack([extractor.get_frame(i) for i in range(count)])  # copies: the package owns its rows
