"""What the input projector is judged by: CTC, the pull towards embeddings, the guide to where a token lies, and the tokens judged against.

Legend: B rows, F frames out, D LLM width, V tokens in use, K tokens that a step is judged against, P phones, L targets.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

GUIDE_BEFORE, GUIDE_AFTER = 2, 5
"""Frames around a token's place in which the guide asks for it."""


def ctc_per_label(odds: Tensor, lengths: Tensor, targets: list[NDArray[np.int64]]) -> Tensor:
    """CTC per label; rows without labels don't count.

    odds: [B, T, 1 + V] logarithms, blank first. lengths: [B] positions that count. targets: [B] labels from 0.
    """
    rows = [row for row, labels in enumerate(targets) if len(labels)]
    if not rows:
        return odds.new_zeros(())
    if len(rows) < len(targets):
        odds, lengths = odds[torch.tensor(rows, device=odds.device)], lengths[torch.tensor(rows)]
    flat = torch.from_numpy(np.concatenate([targets[row] for row in rows]) + 1).to(odds.device)
    sizes = torch.tensor([len(targets[row]) for row in rows])
    lost = functional.ctc_loss(odds.transpose(0, 1), flat, lengths, sizes, blank=0, reduction="none", zero_infinity=True)
    return lost.sum() / int(sizes.sum())


def choose(
    targets: list[NDArray[np.int64]], size: int, drawn: int | None, pick: np.random.Generator, device: torch.device
) -> tuple[Tensor | None, list[NDArray[np.int64]], Tensor | float]:
    """The tokens that a step is judged against (None for all), its targets among them, and what to add to the scores.

    Of those that the step does not say only `drawn` of `size` are; each stands for as many as were not, so that the sum over all is right
    on average.
    """
    said = np.unique(np.concatenate(targets))
    if drawn is None or len(said) + drawn >= size:
        return None, targets, 0.0
    others = np.setdiff1d(pick.choice(size, drawn, replace=False), said, assume_unique=True)
    weight = math.log((size - len(said)) / len(others))
    more = np.concatenate([np.zeros(1 + len(said)), np.full(len(others), weight)]).astype(np.float32)
    chosen = torch.from_numpy(np.concatenate([said, others])).to(device)
    return chosen, [np.searchsorted(said, one) for one in targets], torch.from_numpy(more).to(device)


def pull(vectors: Tensor, odds: Tensor, frames_on: Tensor, table: Tensor, chosen: Tensor | None) -> Tensor:
    """How far the frames that say a token are from its embedding: [B, F, D], [B, F, 1 + K] logarithms, [B] frames that count, [V, D]."""
    with torch.no_grad():
        sure, best = odds.max(2)
        counts = torch.arange(odds.shape[1], device=odds.device)[None, :] < frames_on.to(odds.device)[:, None]
        says = (best > 0) & (sure > math.log(0.5)) & counts
        said = (best - 1).clamp(min=0)
        said = said if chosen is None else chosen[said]
    distance_2 = (vectors.float() - table[said]).pow(2).mean(2)
    return (distance_2 * says).sum() / says.sum().clamp(min=1)


def guide(places: list[NDArray[np.float64]], targets: list[NDArray[np.int64]], odds: Tensor) -> Tensor:
    """Minus the log of how likely each token is within its window, on average over the window; odds: [B, F, 1 + K] logarithms."""
    if not places:
        return odds.new_zeros(())
    rows = np.repeat(np.arange(len(targets)), [len(t) for t in targets])
    frames = np.concatenate(places)[:, None] + np.arange(-GUIDE_BEFORE, GUIDE_AFTER + 1)
    frames = np.clip(np.round(frames), 0, odds.shape[1] - 1).astype(np.int64)
    tokens = np.concatenate(targets) + 1
    where, at, which = (torch.from_numpy(x).to(odds.device) for x in (rows, frames, tokens))
    return math.log(frames.shape[1]) - odds[where[:, None], at, which[:, None]].logsumexp(1).mean()
