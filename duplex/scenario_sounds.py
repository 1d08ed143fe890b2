"""Sounds that are no words, rooms, noise and narrow bands, drawn from a random generator: what makes built conversations less clean."""

from __future__ import annotations

import numpy as np

from duplex.audio import USER_RATE_HZ, Samples
from duplex.resample import resample

KINDS = ("cough", "laugh", "slam", "clicks", "hiss")
"""Sounds that `sound` can make."""


def _filtered(rng: np.random.Generator, count: int, low_hz: float, high_hz: float) -> Samples:
    """[count] noise within a band, with soft edges, of unit deviation."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    hz = np.fft.rfftfreq(count, 1 / USER_RATE_HZ)
    with np.errstate(divide="ignore"):
        gain = 1 / np.sqrt((1 + (low_hz / np.maximum(hz, 1e-3)) ** 4) * (1 + (hz / high_hz) ** 4))
    made = np.fft.irfft(spectrum * gain, count)
    return np.asarray(made / max(float(made.std()), 1e-9), np.float32)


def _decay(count: int, attack_s: float, fall_s: float) -> Samples:
    t = np.arange(count) / USER_RATE_HZ
    return np.asarray(np.minimum(t / attack_s, 1.0) * np.exp(-np.maximum(t - attack_s, 0) / fall_s), np.float32)


def sound(kind: str, rng: np.random.Generator) -> Samples:
    """One sound of a kind, [n], peak 0.5."""
    if kind == "cough":
        count = round(rng.uniform(0.15, 0.3) * USER_RATE_HZ)
        bursts = []
        for _ in range(rng.integers(1, 4)):
            bursts.append(_filtered(rng, count, rng.uniform(250, 600), rng.uniform(1500, 3500)) * _decay(count, 0.012, 0.06))
        made = np.concatenate(bursts)
    elif kind == "laugh":
        pitch = rng.uniform(110, 320)
        count = round(rng.uniform(0.14, 0.22) * USER_RATE_HZ)
        t = np.arange(count) / USER_RATE_HZ
        bursts = []
        for step in range(rng.integers(2, 7)):
            f0 = pitch * 0.96**step
            harmonics = [np.sin(2 * np.pi * f0 * k * t) / k**0.8 * np.exp(-(((k * f0 - 750) / 900) ** 2)) for k in range(1, 12)]
            breath = _filtered(rng, count, 500, 3000) * 0.3
            bursts.append((np.sum(harmonics, axis=0) + breath) * np.sin(np.pi * np.arange(count) / count) ** 0.7)
        made = np.concatenate(bursts)
    elif kind == "slam":
        count = round(rng.uniform(0.15, 0.5) * USER_RATE_HZ)
        made = _filtered(rng, count, 40, rng.uniform(300, 1200)) * _decay(count, 0.003, rng.uniform(0.03, 0.1))
    elif kind == "clicks":
        count = round(rng.uniform(0.4, 1.5) * USER_RATE_HZ)
        made = np.zeros(count)
        for at in rng.integers(0, count - 400, rng.integers(3, 12)):
            made[at : at + 400] += _filtered(rng, 400, 1000, 6000) * _decay(400, 0.001, 0.004)
    elif kind == "hiss":
        count = round(rng.uniform(0.3, 1.2) * USER_RATE_HZ)
        made = _filtered(rng, count, rng.uniform(100, 1500), rng.uniform(2500, 7000)) * np.hanning(count)
    else:
        raise ValueError(f"there is no sound called {kind}; choose one of {', '.join(KINDS)}")
    return np.asarray(0.5 * made / max(float(np.abs(made).max()), 1e-6), np.float32)


def room(rng: np.random.Generator) -> Samples:
    """An impulse response: a direct path and a decaying tail, RT60 of 0.1 to 0.6 s, [n], of unit energy."""
    rt60_s = rng.uniform(0.1, 0.6)
    count = round(rt60_s * 0.7 * USER_RATE_HZ)
    t = np.arange(count) / USER_RATE_HZ
    tail = rng.standard_normal(count) * 10 ** (-3 * t / rt60_s)
    tail[: round(0.002 * USER_RATE_HZ)] = 0
    tail *= 10 ** (rng.uniform(-18, -3) / 20) / np.linalg.norm(tail)
    tail[0] = 1.0
    return np.asarray(tail / np.linalg.norm(tail), np.float32)


def convolve(samples: Samples, response: Samples) -> Samples:
    """[n] through a room, cut to [n]."""
    count = len(samples) + len(response)
    size = 1 << (count - 1).bit_length()
    made = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)[: len(samples)]
    return np.asarray(made, np.float32)


def noise(count: int, rng: np.random.Generator) -> Samples:
    """[count] steady noise of some colour, of unit deviation, slowly swelling."""
    made = _filtered(rng, count, rng.uniform(20, 150), float(np.exp(rng.uniform(np.log(200), np.log(7000)))))
    if rng.random() < 0.4:
        hum_hz = rng.choice((50.0, 60.0, 120.0))
        made += np.sin(2 * np.pi * hum_hz * np.arange(count) / USER_RATE_HZ).astype(np.float32) * rng.uniform(0.2, 1.0)
    swell = 1 + 0.3 * np.sin(2 * np.pi * rng.uniform(0.05, 0.5) * np.arange(count) / USER_RATE_HZ + rng.uniform(0, 6))
    swollen = made * swell
    return np.asarray(swollen / max(float(swollen.std()), 1e-9), np.float32)


def telephone(samples: Samples) -> Samples:
    """[n] through a telephone: 300 to 3400 Hz, 8 kHz and mu-law's steps."""
    narrow = resample(samples, USER_RATE_HZ, 8000)
    squeezed = np.sign(narrow) * np.log1p(255 * np.minimum(np.abs(narrow), 1)) / np.log(256)
    steps = np.round(squeezed * 127) / 127
    wide = np.sign(steps) * (256 ** np.abs(steps) - 1) / 255
    back = resample(np.asarray(wide, np.float32), 8000, USER_RATE_HZ)
    spectrum = np.fft.rfft(np.pad(back, (0, max(len(samples) - len(back), 0)))[: len(samples)])
    hz = np.fft.rfftfreq(len(samples), 1 / USER_RATE_HZ)
    return np.asarray(np.fft.irfft(spectrum / np.sqrt(1 + (300 / np.maximum(hz, 1)) ** 6), len(samples)), np.float32)
