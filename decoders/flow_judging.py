"""How good a flow's frames are, in figures that need no listening: how far from the truth, how lively, how smooth where chunks meet.

Notable: the distance alone would call the mean of all possible answers the best one, though it sounds dull; so liveliness, how much frames
change from one to the next, stands beside it. Both are relative to the true speech.

Shapes: B rows, t frames, M channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Judged:
    """Frames against the true ones."""

    error: float
    """Root of the mean squared difference, in deviations of a channel."""
    liveliness: float
    """Size of the change from frame to frame, as a share of the true one; 1 is right, less is dull."""
    joins: float
    """`join_step`; 1 where chunks meet as smoothly as in the true speech."""


def judge(frames: Tensor, true: Tensor, counted: Tensor, chunk: int) -> Judged:
    """frames, true: [B, t, M]; counted: [B, t] bool, at the beginning of each row; chunk: frames of a chunk."""
    frames, true = frames.float(), true.float()
    both = counted[:, 1:] & counted[:, :-1]
    error = _mean((frames - true).square(), counted).sqrt()
    liveliness = (_mean(frames.diff(dim=1).square(), both) / _mean(true.diff(dim=1).square(), both)).sqrt()
    joins = join_step(frames, chunk, counted) / join_step(true, chunk, counted)
    return Judged(float(error), float(liveliness), joins)


def join_step(frames: Tensor, chunk: int, counted: Tensor | None = None) -> float:
    """How much frames change where chunks meet, as a multiple of how much they change elsewhere.

    frames: [B, t, M] or [t, M], of latents or of a log spectrum; chunk: frames between two joins; counted: as in `judge`. Raises ValueError
    when there is no join.
    """
    frames = frames.unsqueeze(0) if frames.ndim == 2 else frames
    step = frames.float().diff(dim=1).square().mean(dim=2).sqrt()  # [B, t - 1]
    valid = torch.ones_like(step, dtype=torch.bool) if counted is None else counted[:, 1:] & counted[:, :-1]
    join = torch.arange(1, frames.shape[1], device=frames.device) % chunk == 0
    if not bool((valid & join).any()) or not bool((valid & ~join).any()):
        raise ValueError(f"{frames.shape[1]} frames have no join of chunks of {chunk} frames")
    return float(step[valid & join].mean() / step[valid & ~join].mean())


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return (values * counted.unsqueeze(2)).sum() / (counted.sum() * values.shape[2])
