"""What the trained predictor is shown on every tick: the newest 80 ms of sound as numbers, and what else is known of both sides.

Notable: everything is causal and streamed; a whole recording is one long step of a fresh state and gives the same numbers. Levels are
given against the loudest sound of late, pitch against the speaker's own mean, so neither microphone nor voice matters much.

Legend: t ticks; per tick 8 mel frames (10 ms) of 40 bands, 4 pitch frames (20 ms).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from duplex.audio import TICK, USER_RATE_HZ, Samples
from duplex.english import is_backchannel, opens_interruption, seems_complete, words_of
from duplex.mel_filters import mel_filters

Floats = NDArray[np.float32]

HOP = 160
WINDOW = 400
FRAMES = TICK // HOP  # 8 mel frames a tick
BANDS = 40
PITCH_HOP = 320
PITCH_WINDOW = 800
PITCHES = TICK // PITCH_HOP  # 4 pitch frames a tick
MEL = FRAMES * BANDS
WORDS = 11
"""So many tell of words and what the recogniser's layers know; they may be missing."""
STATE = 2 * PITCHES + 1 + 6 + WORDS
"""Numbers beside the mel frames: pitch and how periodic, level, voice and agent, words at last."""
PAST = PITCH_WINDOW - PITCH_HOP  # samples before the tick that its first pitch frame reaches back to
LOWEST, HIGHEST = 60.0, 400.0  # Hz, of a speaker's pitch
FALL = 0.01  # decades per tick by which "the loudest sound of late" falls


@dataclass(frozen=True, slots=True)
class Heard:
    """One tick of both sides."""

    sound: Samples
    """[TICK] the newest user samples, echo removed."""
    voice_p: float
    """The largest probability of voice of the windows in it."""
    voiced: bool
    """The user's voice is on."""
    silence_s: float
    """Seconds since the last voiced sample; 0 while voiced."""
    agent_speaking: bool
    """The agent is audible."""
    transcript: str = ""
    """The newest words of the user's turn."""
    fresh: bool = False
    """They cover all that was said."""
    sentence_ends: float | None = None
    """P(the sentence ends here), by the LLM."""
    listening: float | None = None
    """P(the sound asks for nothing), by the ears."""


@dataclass(slots=True)
class FeatureState:
    """What the features remember of one conversation."""

    past: Samples = field(default_factory=lambda: np.zeros(PAST, np.float32))
    """[PAST] the newest samples."""
    loudest: float = -3.0
    """log10 mel power of the loudest sound of late."""
    pitch: float = math.log2(150.0)
    """The speaker's mean, log2 Hz."""
    voiced_ticks: int = 0
    """Ticks of the newest stretch of voice, until it is half a second ago."""
    agent_ticks: int = 0
    """Ticks that the agent has spoken, or (below 0) been silent."""


@cache
def _bank() -> Floats:
    return np.asarray(mel_filters(USER_RATE_HZ, WINDOW, BANDS), np.float32)


@cache
def _hann(count: int) -> Floats:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(count) / count)).astype(np.float32)


def _windows(samples: Samples, size: int, hop: int, count: int) -> Floats:
    """[n] -> [count, size], the last of them ending at n."""
    first = len(samples) - size - (count - 1) * hop
    return np.lib.stride_tricks.sliding_window_view(samples[first:], size)[::hop][:count]


def _pitch(samples: Samples, count: int) -> tuple[Floats, Floats]:
    """The newest `count` pitch frames: log2 Hz and how periodic they are (0 to 1), by autocorrelation."""
    windows = _windows(samples, PITCH_WINDOW, PITCH_HOP, count) * _hann(PITCH_WINDOW)
    size = 2048
    power = np.abs(np.fft.rfft(windows, size)) ** 2
    power[:, : round(50 * size / USER_RATE_HZ)] = 0
    power[:, round(1500 * size / USER_RATE_HZ) :] = 0
    lags = np.fft.irfft(power, size)
    window = np.fft.irfft(np.abs(np.fft.rfft(_hann(PITCH_WINDOW), size)) ** 2)
    low, high = int(USER_RATE_HZ / HIGHEST), int(USER_RATE_HZ / LOWEST)
    scaled = lags[:, low:high] / (window[low:high] / window[0]) * (1 - 0.15 * np.linspace(0, 1, high - low))
    best = scaled.argmax(axis=1)
    periodic = scaled[np.arange(count), best] / np.maximum(lags[:, 0], 1e-6)
    return np.log2(USER_RATE_HZ / (best + low)).astype(np.float32), np.clip(periodic, 0, 1).astype(np.float32)


def sound_features(state: FeatureState, sound: Samples) -> tuple[Floats, Floats]:
    """[t * TICK] samples that follow what came before -> mel [t, 8, 40] and pitch, periodicity, level [t, 9]."""
    ticks = len(sound) // TICK
    clean = np.nan_to_num(sound[: ticks * TICK], nan=0.0, posinf=0.0, neginf=0.0)
    samples = np.concatenate([state.past, clean])
    spectrum = np.fft.rfft(_windows(samples, WINDOW, HOP, ticks * FRAMES) * _hann(WINDOW))
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32) @ _bank()
    mel = np.log10(np.maximum(power, 1e-8)).reshape(ticks, FRAMES, BANDS)
    pitch, periodic = (x.reshape(ticks, PITCHES) for x in _pitch(samples, ticks * PITCHES))
    more = np.zeros((ticks, 2 * PITCHES + 1), np.float32)
    peaks = np.partition(mel.reshape(ticks, -1), -20, axis=1)[:, -20]
    for tick in range(ticks):
        state.loudest = max(float(peaks[tick]), state.loudest - FALL, -3.0)
        sure = periodic[tick] > 0.6
        if sure.any() and peaks[tick] > state.loudest - 2.0:
            state.pitch += 0.03 * (float(pitch[tick][sure].mean()) - state.pitch)
        more[tick, :PITCHES] = np.where(sure, np.clip(pitch[tick] - state.pitch, -1.5, 1.5), 0)
        more[tick, PITCHES:-1] = periodic[tick]
        more[tick, -1] = peaks[tick] - state.loudest
        mel[tick] -= state.loudest
    state.past = samples[-PAST:].copy()
    return np.maximum(mel, -5.0) / 2.0 + 0.5, more


def state_features(state: FeatureState, heard: Heard) -> Floats:
    """[6 + WORDS] voice, agent and words of one tick."""
    state.voiced_ticks = state.voiced_ticks + 1 if heard.voiced else 0 if heard.silence_s > 0.5 else state.voiced_ticks
    same = (state.agent_ticks > 0) == heard.agent_speaking
    state.agent_ticks = (state.agent_ticks if same else 0) + (1 if heard.agent_speaking else -1)
    agent = min(math.log1p(abs(state.agent_ticks)) / 4, 1.5)
    known = [
        heard.voice_p,
        float(heard.voiced),
        min(heard.silence_s, 3.0),
        math.log1p(state.voiced_ticks) / 4,
        agent if heard.agent_speaking else 0.0,
        0.0 if heard.agent_speaking else agent,
    ]
    return np.array([*known, *_words(heard)], np.float32)


def _words(heard: Heard) -> list[float]:
    text = heard.transcript
    told = [0.0] * WORDS
    if heard.fresh and text and not heard.agent_speaking:
        told[:3] = [1.0, float(text.rstrip().endswith("?")), float(seems_complete(text))]
        if heard.sentence_ends is not None:
            told[3:5] = [1.0, _scaled(heard.sentence_ends)]
    if heard.agent_speaking and text:
        told[5:9] = [1.0, float(is_backchannel(text)), float(opens_interruption(text)), min(len(words_of(text)), 6) / 6]
    if heard.agent_speaking and heard.listening is not None:
        told[9:] = [1.0, _scaled(heard.listening)]
    return told


def _scaled(p: float) -> float:
    """Log odds of a probability, as a number of the size of the others."""
    return min(max(log_odds(p), -8.0), 8.0) / 4


def log_odds(p: float) -> float:
    """Of a probability, up to a million to one either way."""
    q = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(q / (1 - q))
