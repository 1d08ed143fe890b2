"""Whisper's log-mel spectrogram, offline and as a stream, from one function.

Notable: frame i is centred on sample 160 i of the stream, as Whisper's centred STFT has it, so a stream is "the samples so far,
minus the frames whose right half has not arrived yet". Only the last 399 samples at most are kept between calls. The step that is
not local, Whisper's clamp to eight decades below the loudest value of the window, is a function of its own, applied per window:
`normalise` as published, `level` with a gain besides.

Legend: n samples, t frames (100 per second), m mel bands (80), b FFT bins (201).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from duplex.audio import USER_RATE_HZ, Samples
from duplex.mel_filters import mel_filters

MELS = 80
FFT_SAMPLES = 400  # 25 ms at 16 kHz
HOP_SAMPLES = 160  # 10 ms at 16 kHz
FRAME_RATE_HZ = USER_RATE_HZ // HOP_SAMPLES
HALF_SAMPLES = FFT_SAMPLES // 2
POWER_FLOOR = 1e-10  # log10 of it, -10, is what digital silence becomes

PEAK = 1.5  # log10 power of the loudest mel value in a window of ordinary speech
QUIET = -2.0  # windows whose loudest value is below this are not amplified further; 8 decades below it lies POWER_FLOOR
SILENCE = (PEAK - 8.0 + 4.0) / 4.0  # what `level` makes of silence

Mel = NDArray[np.float32]


def filter_bank() -> Mel:
    """[b, m] the bank shipped with OpenAI's Whisper: 0 to 8 kHz."""
    return mel_filters(USER_RATE_HZ, FFT_SAMPLES, MELS)


@cache
def _hann() -> Mel:
    """[400] periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(FFT_SAMPLES) / FFT_SAMPLES)).astype(np.float32)


def _frames(padded: Samples) -> Mel:
    """[n] samples, of which frame i takes [160 i, 160 i + 400) -> [t, m] log10 mel power, not yet normalised."""
    count = (len(padded) - FFT_SAMPLES) // HOP_SAMPLES + 1
    if count <= 0:
        return np.empty((0, MELS), np.float32)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, FFT_SAMPLES)[: count * HOP_SAMPLES : HOP_SAMPLES]  # [t, 400]
    spectrum = np.fft.rfft(pieces * _hann())  # [t, b]
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
    logs: Mel = np.log10(np.maximum(power @ filter_bank(), POWER_FLOOR), dtype=np.float32)  # [t, m]
    return logs


@dataclass(slots=True)
class MelState:
    """What a mel stream remembers; owned by the caller."""

    fed: int = 0
    """Samples fed so far."""
    made: int = 0
    """Frames handed out so far; frame `made` is the next one."""
    rest: Samples = field(default_factory=lambda: np.empty(0, np.float32))
    """The samples from 160 `made` - 200 on (before the first frame: from sample 0 on)."""


def feed(state: MelState, samples: Samples) -> Mel:
    """Take [n] samples; return the [t, m] frames that became complete, log10 power, not yet normalised.

    The stream begins by reflection, as Whisper's STFT does, so the first frames appear after 201 samples.
    """
    state.rest = np.concatenate((state.rest, samples)).astype(np.float32, copy=False)
    state.fed += len(samples)
    if state.made == 0:
        if len(state.rest) <= HALF_SAMPLES:
            return np.empty((0, MELS), np.float32)
        padded = np.concatenate((state.rest[HALF_SAMPLES:0:-1], state.rest))
    else:
        padded = state.rest
    frames = _frames(padded)
    if len(frames):
        state.made += len(frames)
        state.rest = padded[len(frames) * HOP_SAMPLES :].copy()
    return frames


def tail(state: MelState) -> Mel:
    """The [t, m] frames that `feed` still owes, as if zeros followed: one for each begun hop. The state is left as it is."""
    owed = -(-state.fed // HOP_SAMPLES) - state.made
    if owed <= 0:
        return np.empty((0, MELS), np.float32)
    ended = MelState(state.fed, state.made, state.rest)
    return feed(ended, np.zeros(FFT_SAMPLES + HOP_SAMPLES, np.float32))[:owed]


def log_mel(samples: Samples) -> Mel:
    """[n] samples -> [ceil(n / 160), m] log10 mel power, zeros following the last sample: one long step of a fresh stream."""
    state = MelState()
    body = feed(state, samples)
    return np.concatenate((body, tail(state)))


def normalise(frames: Mel) -> Mel:
    """Whisper's scaling over one window [t, m]: clamp to 8 decades below the window's maximum, then (x + 4) / 4."""
    if not len(frames):
        return frames
    scaled: Mel = (np.maximum(frames, frames.max() - 8.0) + 4.0) / np.float32(4.0)
    return scaled


def level(frames: Mel) -> Mel:
    """`normalise` after a gain that brings the window's maximum to PEAK, where speech at an ordinary level has it.

    So silence is always the same number, SILENCE, and a quiet microphone reads like a loud one. Windows below QUIET (about 35 dB
    under ordinary speech) get no more gain, so that hiss does not become speech.
    """
    if not len(frames):
        return frames
    peak = max(float(frames.max()), QUIET)
    scaled: Mel = (np.maximum(frames, np.float32(peak - 8.0)) + np.float32(PEAK - peak + 4.0)) / np.float32(4.0)
    return scaled
