"""Drawing the next token: temperature, top-k, top-p and a repetition penalty, from a seeded generator.

A `Sampler` belongs to one response: it owns its random generator and remembers the tokens it drew, which is what the penalty reads.
The same seed, logits and history give the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
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
        scores = logits.detach().to("cpu", torch.float32, copy=True)
        scores[self._banned] = float("-inf")
        seen = [token for token in dict.fromkeys(self.drawn) if token not in self._exempt]
        if seen and self.config.repetition_penalty > 1.0:
            values = scores[seen]
            penalty = self.config.repetition_penalty
            scores[seen] = torch.where(values > 0, values / penalty, values * penalty)
        token = self._choose(scores)
        self.drawn.append(token)
        return token

    def _choose(self, scores: Tensor) -> int:
        if self.config.temperature == 0.0:
            return int(scores.argmax())
        best, ids = torch.topk(scores, min(self.config.top_k, scores.shape[0]))  # sorted, likeliest first
        weights = (best.double() / self.config.temperature).softmax(0).numpy()
        before = np.cumsum(weights) - weights
        weights = np.where(before < self.config.top_p, weights, 0.0)  # the first is always kept
        return int(ids[self._random.choice(len(weights), p=weights / weights.sum())])
