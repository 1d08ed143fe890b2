"""Sound for ears that hear nonsense, and a way to feed it to them."""

from __future__ import annotations

import numpy as np


def babble(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise in bursts of 300 ms with gaps of 100 ms."""
    n = round(seconds * 16_000)
    gate = (np.arange(n) % 6400) < 4800
    return (np.random.default_rng(seed).standard_normal(n) * 0.1 * gate).astype(np.float32)


def hear(ears, audio, chunk, turn_at=0, begin=0):
    """Feed in chunks; the turn that starts at `begin` is announced when `turn_at` samples were heard."""
    state, begun = ears.open(), False
    for at in range(0, len(audio), chunk):
        if not begun and at >= turn_at:
            ears.begin_turn(state, begin)
            begun = True
        ears.feed(state, audio[at : at + chunk])
    return state
