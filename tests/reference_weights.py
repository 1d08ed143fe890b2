"""Weights of the reference tensors, rebuilt from their own names, so that no file of weights has to be kept.

The rule: a generator seeded by the first 8 bytes of sha256("{seed}:{key}") draws each tensor, which is then scaled by what its name and
rank say. Names and shapes are the official checkpoints', at a small size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


def reference_tensor(key: str, shape: Sequence[int], seed: int) -> Tensor:
    """The tensor that belongs to `key`."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") & (2**62 - 1))
    draw = torch.randn(tuple(shape), generator=generator)
    if key.endswith("original0"):
        return draw.abs() * 0.1 + 0.5
    if key.endswith(".alpha"):
        return 1 + 0.2 * draw
    if draw.dim() <= 1:
        return 1 + 0.1 * draw if key.endswith(".weight") else 0.02 * draw
    return draw / (draw.numel() / draw.shape[0]) ** 0.5


def reference_state(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """A whole state dict for names and shapes, e.g. those of `module.state_dict()`."""
    return {key: reference_tensor(key, shape, seed) for key, shape in shapes.items()}


def load_reference(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a reference file by flattened name, and its `info`."""
    with safe_open(path, framework="pt") as file:
        info: dict[str, Any] = json.loads(file.metadata()["info"])
        return {name: file.get_tensor(name) for name in file.keys()}, info  # noqa: SIM118


def read_keys(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an official checkpoint, from lines of `name<TAB>[shape]<TAB>type`."""
    lines = [line.split("\t") for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name: tuple(json.loads(shape)) for name, shape, _ in lines}
