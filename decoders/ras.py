"""Repetition-aware sampling: how CosyVoice2 draws a speech code (the method is VALL-E 2's, the numbers are CosyVoice2's).

Notable: a code is drawn from the nucleus; if it occurs among the last few, it is banned and one code is drawn from everything
else instead, which leads out of loops without touching the choice in between. All of it happens on the CPU whatever
the model runs on: one copy of the scores per code, which is also the one wait for the device, and a seed means the same everywhere.

Shapes: v outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RasConfig:
    """How codes are drawn."""

    top_p: float = 0.8
    """The nucleus: the likeliest codes, in order, until their probabilities have added up to this."""
    top_k: int = 25
    """At most so many codes are in the nucleus."""
    window: int = 10
    """So many of the last outputs are looked through for a repetition; 0 switches the second draw off."""
    tau: float = 0.1
    """A code is a repetition when at least this share of the window holds it."""
    temperature: float = 1.0
    """Flattens (above 1) or sharpens (below 1) the choice; 0 always takes the likeliest code, repeated or not."""

    def __post_init__(self) -> None:
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; choose more than 0 and at most 1, 0.8 is usual")
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; choose 1 or more, 25 is usual")
        if self.window < 0:
            raise ValueError(f"window is {self.window}; choose 0 (no look for repetitions) or more, 10 is usual")
        if not 0.0 < self.tau <= 1.0:
            raise ValueError(f"tau is {self.tau}; choose more than 0 and at most 1, 0.1 is usual")
        if not self.temperature >= 0.0:
            raise ValueError(f"temperature is {self.temperature}; choose 0 (no chance) or more, 1 is usual")


USUAL = RasConfig()
"""CosyVoice2's numbers."""
GREEDY = RasConfig(temperature=0.0)
"""Always the likeliest code."""


def nucleus(probabilities: Tensor, top_p: float, top_k: int) -> Tensor:
    """The ids [m] of the nucleus of probabilities [v], likeliest first, equals by their id; m is at least 1.

    An id belongs to it while those before it add up to less than top_p, and it is one of the first top_k.
    """
    k = min(top_k, probabilities.numel())
    best, ids = probabilities.topk(min(k + 1, probabilities.numel()))
    ids = ids[:k]
    if bool((best[1:] == best[:-1]).any()):  # equals: which of them, and in what order, is not topk's to say
        ids = (probabilities >= best[k - 1]).nonzero()[:, 0]  # [k, or more where the last place is shared], by id
        ids = ids[probabilities[ids].argsort(descending=True, stable=True)][:k]
    before = probabilities[ids].cumsum(0)[:-1]
    return ids[: 1 + int((before < top_p).sum())]


def draw(scores: Tensor, outputs: Sequence[int], config: RasConfig, generator: torch.Generator) -> int:
    """One id from scores [v] (logits or log-probabilities, -inf where banned; left as they were), on any device.

    outputs: everything drawn so far, of which the last `window` count. generator: of the CPU; it advances by one draw, or by two
    after a repetition, and not at all when the temperature is 0. ValueError when every score is -inf, or one is NaN.
    """
    scores = scores.detach().to("cpu", torch.float32)
    if not math.isfinite(float(scores.max())):
        raise ValueError("the highest score is not finite: all outputs are masked, or the model computed NaN")
    if config.temperature == 0.0:
        return int(scores.argmax())
    if config.temperature != 1.0:
        scores = scores / config.temperature
    probabilities = scores.softmax(0)
    ids = nucleus(probabilities, config.top_p, config.top_k)
    chosen = int(ids[torch.multinomial(probabilities[ids], 1, replacement=True, generator=generator)])
    recent = outputs[len(outputs) - min(config.window, len(outputs)) :]
    if config.window and recent.count(chosen) >= config.window * config.tau:
        others = scores.clone()
        others[chosen] = float("-inf")
        if math.isfinite(float(others.max())):  # otherwise the chosen one is all there is
            chosen = int(torch.multinomial(others.softmax(0), 1, replacement=True, generator=generator))
    return chosen
