"""One training on several GPUs, by Accelerate.

    torchrun --nproc-per-node 4 -m apps train flow ...

Every process has all of the data and the same weights, draws its own crops, and takes a step with the mean of all gradients, so weights
stay the same everywhere. Only the first one's clock counts, and only it tells of steps and writes. Started as usual, a training is
alone, and nothing of this costs anything.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from duplex.errors import ConfigError


class Ranks:
    """The processes of one training; this is number `index` of `count`."""

    def __init__(self, index: int = 0, count: int = 1, accelerator: Any = None) -> None:
        self.index, self.count = index, count
        self._accelerator = accelerator

    @property
    def first(self) -> bool:
        """Whether this process reports and writes."""
        return self.index == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.count == 1

    def device(self, wanted: torch.device) -> torch.device:
        """This process's own GPU where GPUs are wanted."""
        return wanted if self.alone or wanted.type == "cpu" else torch.device(self._accelerator.device)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        return value if self.alone else self._accelerator.reduce(value, reduction="mean")

    def average_gradients(self, weights: Iterable[Tensor]) -> None:
        """Give every process the mean of all gradients; each weight must have one everywhere, or nowhere."""
        if self.alone:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def agreed(self, value: float) -> float:
        """The first process's value."""
        if self.alone:
            return value
        told = torch.tensor([value if self.first else 0.0], dtype=torch.float64)
        return float(self._accelerator.reduce(told.to(self._accelerator.device), reduction="sum"))

    @contextmanager
    def first_first(self) -> Iterator[None]:
        """What is done inside, the first process does before the others, so that they find what it has made."""
        if self.alone:
            yield
            return
        with self._accelerator.main_process_first():
            yield

    def end(self) -> None:
        """All have come so far."""
        if not self.alone:
            self._accelerator.wait_for_everyone()
            self._accelerator.end_training()


ALONE = Ranks()


def join_ranks(device: torch.device) -> Ranks:
    """The processes that `torchrun` (or `accelerate launch`) has started, on GPUs or, for `cpu`, on the CPU; alone without them.

    Raises ConfigError where Accelerate is not installed.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    try:
        accelerate: Any = importlib.import_module("accelerate")
    except ImportError as error:
        raise ConfigError("Training on several GPUs needs the package accelerate: run `pip install 'duologue[train]'`.") from error
    accelerator = accelerate.Accelerator(cpu=device.type == "cpu")
    return Ranks(accelerator.process_index, accelerator.num_processes, accelerator)
