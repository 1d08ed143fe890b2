"""Teaching the sentence-end head: states after words, and whether the sentence ended there.

Ends are rare among the places of a sentence; both kinds weigh alike in the loss. A place where nobody knows (the end of a sentence inside a
longer text) is left out by whoever gathers them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from duplex.predictor_sentence_end import SentenceEnd
from duplex.scenario_probe import area


@dataclass(frozen=True, slots=True)
class Places:
    """Where sentences could break off."""

    states: NDArray[np.float16]
    """[n, h] the LLM's final-layer state after the word."""
    ends: NDArray[np.bool_]
    """[n] whether the sentence ended there."""

    def __len__(self) -> int:
        return len(self.ends)


@dataclass(frozen=True)
class HeadTraining:
    """How the head learns."""

    inner: int = 48
    epochs: int = 12
    batch: int = 512
    rate: float = 1e-3
    decay: float = 0.05
    seed: int = 0


def train_head(
    places: Places, held: Places, config: HeadTraining, tell: Callable[[int, float, float], None]
) -> tuple[SentenceEnd, list[tuple[float, float]]]:
    """The head of the pass that judged `held` best, and (loss, area under the curve on `held`) of every pass.

    tell: called with (pass, loss, area). Seconds to minutes on one thread.
    """
    torch.manual_seed(config.seed)
    states = torch.from_numpy(places.states.astype(np.float32))
    ends = torch.from_numpy(places.ends.astype(np.float32))
    head = SentenceEnd(states.shape[1], config.inner)
    head.mean.copy_(states.mean(0))
    head.deviation.copy_(states.std(0).clamp(min=1e-3))
    weights = torch.where(ends > 0, 0.5 / ends.mean(), 0.5 / (1 - ends.mean()))
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.rate, weight_decay=config.decay)
    steps = config.epochs * -(-len(places) // config.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best: tuple[float, dict[str, Tensor]] | None = None
    curve = []
    for epoch in range(config.epochs):
        head.train()
        total = 0.0
        order = torch.randperm(len(places))
        for start in range(0, len(places), config.batch):
            chosen = order[start : start + config.batch]
            loss = functional.binary_cross_entropy_with_logits(head(states[chosen]), ends[chosen], weights[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        found = area(scores(head, held), held.ends)
        curve.append((total / len(places), found))
        tell(epoch + 1, *curve[-1])
        if best is None or found > best[0]:
            best = found, {name: value.clone() for name, value in head.state_dict().items()}
    assert best is not None
    head.load_state_dict(best[1])
    return head.eval().requires_grad_(False), curve


def scores(head: SentenceEnd, places: Places) -> NDArray[np.float64]:
    """[n] log odds of an end."""
    head.eval()
    with torch.inference_mode():
        told: NDArray[np.float64] = head(torch.from_numpy(places.states.astype(np.float32))).double().numpy()
    return told
