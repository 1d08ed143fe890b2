"""Drawing the next token: temperature, top-k, top-p and a repetition penalty, from a seeded generator.

A `Sampler` belongs to one response: it owns its random generator and remembers the tokens it drew, which is what the penalty reads.
The same seed, logits and history give the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class SamplingConfig:
    """How replies are drawn."""

    temperature: float = 0.3
    """Flattens (above 1) or sharpens (below 1) the choice; 0 always takes the likeliest token."""
    top_k: int = 20
    """Only the k likeliest tokens may be drawn."""
    top_p: float = 0.8
    """Of those, only the likeliest whose probabilities add up to this."""
    repetition_penalty: float = 1.1
    """Divides the (positive) score of every token that this reply already contains; 1 does nothing."""
    seed: int = 0
    """Start of the random generator."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise ValueError(f"temperature is {self.temperature}; choose 0 (no chance) or more, 0.3 is usual here")
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; choose 1 or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; choose more than 0 and at most 1")
        if not self.repetition_penalty >= 1.0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; choose 1 (no penalty) or more")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; choose 0 or more")


class Sampler:
    """The draws of one response."""

    def __init__(
        self, config: SamplingConfig, banned: Sequence[int] = (), exempt: Sequence[int] = (), seed: int | None = None
    ) -> None:
        """banned: ids never drawn. exempt: ids that the penalty leaves alone (the ends of a reply). seed replaces config.seed."""
        self.config = config
        self.drawn: list[int] = []
        self._banned = torch.as_tensor(list(banned), dtype=torch.long)
        self._exempt = frozenset(exempt)
        self._random = np.random.default_rng(config.seed if seed is None else seed)

    def draw(self, logits: Tensor) -> int:
        """One token id from logits [vocabulary] float32, which are left as they were."""
        return draw_together([self], logits[None])[0]

    def banned_on(self, device: torch.device) -> Tensor:
        """The ids never drawn, where the logits are."""
        if self._banned.device != device:
            self._banned = self._banned.to(device)
        return self._banned

    def penalised(self) -> list[int]:
        """The ids whose scores are divided by the penalty."""
        if self.config.repetition_penalty == 1.0:
            return []
        return [token for token in dict.fromkeys(self.drawn) if token not in self._exempt]

    def choose(self, best: NDArray[np.float64], ids: NDArray[np.int64]) -> int:
        """One of the likeliest ids, sorted with the likeliest first; it counts as drawn."""
        kept = min(self.config.top_k, len(ids))
        scores = best[:kept] / max(self.config.temperature, 1e-6)
        weights = np.exp(scores - scores[0])
        weights /= weights.sum()
        before = np.cumsum(weights) - weights
        weights = np.where(before < self.config.top_p, weights, 0.0)  # the first is always kept
        greedy = self.config.temperature == 0.0
        token = int(ids[0 if greedy else self._random.choice(kept, p=weights / weights.sum())])
        self.drawn.append(token)
        return token


def draw_together(samplers: Sequence[Sampler], logits: Tensor) -> list[int]:
    """One token id for each sampler from logits [n, vocabulary] on any device, which are left as they were.

    All of the vocabulary stays where it is: what is copied are the likeliest few, once for all.
    """
    scores = logits.detach().to(torch.float32, copy=True)
    rows: list[int] = []
    ids: list[int] = []
    penalties: list[float] = []
    for row, sampler in enumerate(samplers):
        scores[row].index_fill_(0, sampler.banned_on(scores.device), float("-inf"))
        seen = sampler.penalised()
        rows += [row] * len(seen)
        ids += seen
        penalties += [sampler.config.repetition_penalty] * len(seen)
    if ids:
        places = torch.tensor([rows, ids], device=scores.device)
        penalty = torch.tensor(penalties, device=scores.device)
        values = scores[places[0], places[1]]
        scores[places[0], places[1]] = torch.where(values > 0, values / penalty, values * penalty)
    kept = min(max(sampler.config.top_k for sampler in samplers), scores.shape[1])
    best, found = torch.topk(scores, kept)  # sorted, likeliest first
    best_np, found_np = best.double().cpu().numpy(), found.cpu().numpy()
    if any(sampler.config.temperature == 0.0 for sampler in samplers):  # of equals the first, which topk does not promise
        found_np[:, 0] = torch.where(
            torch.tensor([sampler.config.temperature == 0.0 for sampler in samplers]), scores.argmax(-1).cpu(), found[:, 0].cpu()
        ).numpy()
    return [sampler.choose(best_np[row], found_np[row]) for row, sampler in enumerate(samplers)]
