"""Conversations that nobody heard: states in which it is plain whether a turn is over and who only listens."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from apps.train_listened import CASTS, Listened, Reading, files_of, save
from duplex.audio import TICK
from duplex.scenario import KEEP, RESPOND, YIELD, Event
from encoders.ears import SoundStates

WIDTH, HIDDEN, TICKS = 12, 32, 60


def heard(seed: int, last: int) -> Listened:
    """A pause, the end of the turn, and a sound over the agent's voice."""
    rng = np.random.default_rng(seed)
    kind = ("interruption", "backchannel")[seed % 2]
    events = (
        Event("pause", 10 * TICK, 15 * TICK, f"said {seed} the", False),
        Event("turn", 2 * TICK, 25 * TICK, f"said {seed} the whole."),
        Event(kind, 40 * TICK, 45 * TICK, f"sound {seed}"),  # type: ignore[arg-type]
    )
    labels = np.zeros(TICKS, np.int8)
    labels[25:30], labels[40:46] = RESPOND, YIELD if seed % 2 == 0 else KEEP
    ticks = np.zeros((TICKS, 4), np.float32)
    ticks[2:10, 1] = ticks[15:25, 1] = 1
    ticks[30:, 3] = 1
    reading, read = np.full(TICKS, -1, np.int32), np.zeros(TICKS, bool)
    readings = []
    for index, (at, tells, words) in enumerate(((12, False, True), (27, True, True), (43, seed % 2 == 1, False))):
        frames, state = rng.normal(0, 1, (20, WIDTH)), rng.normal(0, 1, HIDDEN)
        frames[-3:, 0] += 3 if tells else -3
        state[0] += 1.5 if tells else -1.5
        said = rng.normal(0, 1, last).astype(np.float16) if last else None
        own = SoundStates(frames.astype(np.float32), said)
        readings.append(Reading("some words", at * TICK, own, state.astype(np.float16) if words else None))
        reading[at:], read[at:] = index, words
    sound = (rng.normal(0, 300, TICKS * TICK)).astype(np.int16)
    return Listened(seed, sound, labels, ticks, reading, reading >= 0, read, tuple(readings), events)


def write(folder: Path, heard_by: str, args: argparse.Namespace, last: int) -> None:
    """Files as `train_listened.shards` looks for them."""
    for number, cast in enumerate(CASTS):
        for shard, file in enumerate(files_of(args, folder, heard_by, cast)):
            save(file, [heard(10_000 * number + 100 * shard + n, last) for n in range(50)])
