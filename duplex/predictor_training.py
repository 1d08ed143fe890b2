"""Teaching the predictor: built conversations as tensors, a weighted cross entropy, checkpoints that training goes on from.

Each tick counts by what hangs on it: silences after speech and sounds over the agent's voice fully, everything else a little.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from duplex.audio import TICK, Samples
from duplex.errors import WeightsError
from duplex.predictor_features import BANDS, FRAMES, STATE, WORDS, FeatureState, Heard, sound_features, state_features
from duplex.predictor_net import FloorNet, NetConfig
from duplex.scenario import KEEP, RESPOND, YIELD, Event
from duplex.scenario_probe import area


@dataclass(frozen=True)
class TrainingConfig:
    """How the network is taught."""

    epochs: int = 14
    """Passes over the conversations."""
    batch: int = 12
    """Pieces of conversation per step."""
    ticks: int = 200
    """Length of a piece."""
    rate: float = 2e-3
    """Peak learning rate."""
    decay: float = 0.02
    """Weight decay."""
    idle: float = 0.15
    """Weight of ticks on which little hangs."""
    words_lost: float = 0.1
    """Share of pieces whose words are blanked."""
    seed: int = 0
    """Of the first weights and of the order."""
    save_every_s: float = 120.0
    """Time between checkpoints."""


@dataclass(frozen=True, slots=True)
class Examples:
    """One conversation as the network sees it."""

    mel: NDArray[np.float16]
    """[t, 8, 40]"""
    beside: NDArray[np.float16]
    """[t, s]"""
    labels: NDArray[np.int8]
    """[t]"""
    weights: NDArray[np.float16]
    """[t]"""


def examples(
    sound: Samples, labels: NDArray[np.int8], events: Sequence[Event], heard: Sequence[Heard], idle: float = 0.15
) -> Examples:
    """A conversation [n] of samples, its labels [t] and events, and what was heard of it on each tick -> tensors."""
    state, ticks = FeatureState(), len(labels)
    mel, pitch = sound_features(state, sound[: ticks * TICK])
    beside = np.concatenate([pitch, np.stack([state_features(state, tick) for tick in heard])], 1)
    weights = np.full(ticks, idle)
    weights[np.isin(labels, (RESPOND, YIELD, KEEP))] = 1.0
    at = (np.arange(ticks) + 1) * TICK
    for event in events:
        if event.kind == "pause":
            weights[(at > event.start) & (at <= event.end)] = 1.0
    return Examples(mel.astype(np.float16), beside.astype(np.float16), labels, weights.astype(np.float16))


def _batch(data: Sequence[Examples], chosen: Sequence[int], config: TrainingConfig, rng: np.random.Generator) -> tuple[Tensor, ...]:
    count, ticks = len(chosen), config.ticks
    mel = np.full((count, ticks, FRAMES, BANDS), -2.0, np.float32)
    beside = np.zeros((count, ticks, STATE), np.float32)
    labels, weights = np.zeros((count, ticks), np.int64), np.zeros((count, ticks), np.float32)
    for row, index in enumerate(chosen):
        one = data[index]
        start = int(rng.integers(0, max(len(one.labels) - ticks, 0) + 1))
        part = slice(start, start + ticks)
        n = len(one.labels[part])
        mel[row, :n], beside[row, :n] = one.mel[part], one.beside[part]
        labels[row, :n], weights[row, :n] = one.labels[part], one.weights[part]
        if rng.random() < config.words_lost:
            beside[row, :, -WORDS:] = 0
        mel[row] += rng.normal(0, 0.1) + rng.normal(0, 0.08, BANDS)  # another microphone
    return torch.from_numpy(mel), torch.from_numpy(beside), torch.from_numpy(labels), torch.from_numpy(weights)


@dataclass(slots=True)
class Progress:
    """Where training is."""

    step: int
    steps: int
    loss: float
    seconds: float


def train(
    data: Sequence[Examples],
    net_config: NetConfig,
    config: TrainingConfig,
    checkpoint: Path,
    tell: Callable[[Progress], None],
    may_go_on: Callable[[], None] = lambda: None,
) -> FloorNet:
    """Teach a network; goes on from `checkpoint` when it is there, and leaves the newest state in it.

    may_go_on: called before each step; may wait. Raises WeightsError for a checkpoint that does not fit.
    """
    torch.manual_seed(config.seed)
    net = FloorNet(net_config)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.rate, weight_decay=config.decay, betas=(0.9, 0.98))
    per_epoch = max(len(data) // config.batch, 1)
    steps, step = per_epoch * config.epochs, 0
    if checkpoint.exists():
        step = _resume(checkpoint, net, optimizer)
    began = saved = time.monotonic()
    net.train()
    average = float("nan")
    while step < steps:
        may_go_on()
        epoch, within = divmod(step, per_epoch)
        order = np.random.default_rng((config.seed, epoch)).permutation(len(data))
        chosen = order[within * config.batch : (within + 1) * config.batch]
        mel, beside, labels, weights = _batch(data, chosen.tolist(), config, np.random.default_rng((config.seed, epoch, within)))
        for group in optimizer.param_groups:
            warm = min((step + 1) / 50, 1.0)
            group["lr"] = config.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        logits = net(net.open(len(chosen)), mel, beside)
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", label_smoothing=0.02)
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        average = float(loss.detach()) if math.isnan(average) else 0.97 * average + 0.03 * float(loss.detach())
        if step % 20 == 0 or step == steps:
            tell(Progress(step, steps, average, time.monotonic() - began))
        if time.monotonic() - saved > config.save_every_s or step == steps:
            _save(checkpoint, net, optimizer, step)
            saved = time.monotonic()
    return net.eval()


def _save(file: Path, net: FloorNet, optimizer: torch.optim.Optimizer, step: int) -> None:
    part = file.with_suffix(".part")
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "config": asdict(net.config)}, part)
    os.replace(part, file)


def _resume(file: Path, net: FloorNet, optimizer: torch.optim.Optimizer) -> int:
    try:
        kept = torch.load(file, weights_only=True)
        net.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
        return int(kept["step"])
    except (KeyError, ValueError, RuntimeError, OSError, EOFError, UnpicklingError) as error:
        raise WeightsError(f"{file} is no checkpoint that training can go on from ({error}); delete it to begin anew.") from error


@dataclass(frozen=True, slots=True)
class Judgement:
    """How well a network tells apart what it must, over all ticks of weight 1."""

    turn_end_auc: float
    """Silences after a turn's end against pauses."""
    interruption_auc: float
    """Interruptions against everything else over the agent's voice."""
    ends_surely: float
    """log odds of a turn's end that one pause tick in 33 exceeds."""
    ends_hardly: float
    """log odds that one tick in 20 after a turn's end stays below."""


def judge(net: FloorNet, data: Sequence[Examples]) -> Judgement:
    """Run over whole conversations, with dropout off."""
    silent: list[tuple[float, bool]] = []
    over: list[tuple[float, bool]] = []
    net.eval()
    with torch.no_grad():
        for one in data:
            mel, beside = (torch.from_numpy(x.astype(np.float32))[None] for x in (one.mel, one.beside))
            logs = torch.log_softmax(net(net.open(), mel, beside)[0], -1)
            respond = (logs[:, RESPOND] - torch.log1p(-logs[:, RESPOND].exp().clamp(max=1 - 1e-6))).numpy()
            taken = (logs[:, YIELD] - logs[:, KEEP]).numpy()
            for tick in np.flatnonzero(one.weights > 0.9):
                label = int(one.labels[tick])
                if label in (YIELD, KEEP):
                    over.append((float(taken[tick]), label == YIELD))
                else:
                    silent.append((float(respond[tick]), label == RESPOND))
    pauses, ends = ([s for s, yes in silent if yes is wanted] or [0.0] for wanted in (False, True))
    return Judgement(_area(silent), _area(over), float(np.percentile(pauses, 97)), float(np.percentile(ends, 5)))


def _area(scored: Sequence[tuple[float, bool]]) -> float:
    return area(np.array([score for score, _ in scored]), np.array([yes for _, yes in scored], bool))
