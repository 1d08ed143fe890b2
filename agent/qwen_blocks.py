"""Qwen's weights in the quantised blocks of its GGUF: small enough to carry to another machine, and read there without the gguf package.

A GGUF keeps a matrix as rows of blocks of 32 or 256 weights that share their scales. `read_blocks` takes the blocks out as they are;
`dequantize` makes floats of them, bit for bit as ggml does. Of the (tied) embedding only chosen rows are kept: a reply in English needs a
quarter of Qwen's 151,936 tokens, and whoever samples among those rows alone writes nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from agent.int8 import quantize_rows
from duplex.errors import WeightsError

BLOCK_BYTES = {"Q4_K": (256, 144), "Q5_0": (32, 22), "Q6_K": (256, 210), "Q8_0": (32, 34)}
"""kind: (weights of a block, bytes of a block)"""
EMBEDDING = "output.weight"


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    rope_base: float
    epsilon: float


@dataclass(frozen=True)
class Blocks:
    """A model as its file keeps it."""

    shape: Shape
    kinds: dict[str, str]
    """GGUF tensor name -> "F32" or one of `BLOCK_BYTES`."""
    tensors: dict[str, NDArray[Any]]
    """[rows, bytes] uint8 blocks, or [n] float32."""
    ids: NDArray[np.int32]
    """[R] ids of the embedding's rows, rising."""

    def weight(self, name: str, device: str = "cpu") -> Tensor:
        """A tensor as float32 [rows, in] or [n]."""
        raw, kind = self.tensors[name], self.kinds[name]
        if kind == "F32":
            return torch.from_numpy(np.array(raw, np.float32)).to(device)
        return dequantize(torch.from_numpy(np.array(raw)).to(device), kind)

    def embedding(self) -> tuple[Tensor, Tensor]:
        """The kept rows as the agent's own int8 model has them: int8 [R, d] and their scales float32 [R]."""
        return quantize_rows(self.weight(EMBEDDING))


def read_blocks(gguf: Path, ids: Sequence[int]) -> Blocks:
    """The blocks of a GGUF, and of its embedding the rows `ids`.

    Raises:
        WeightsError: the file is no Qwen2, or quantised in a way that is not known here.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf)

    def number(key: str) -> Any:
        field = reader.get_field(key)
        if field is None:
            raise WeightsError(f"{gguf} has no field {key}, so it is not a Qwen2 model.")
        return field.contents()

    shape = Shape(
        hidden=int(number("qwen2.embedding_length")),
        layers=int(number("qwen2.block_count")),
        heads=int(number("qwen2.attention.head_count")),
        kv_heads=int(number("qwen2.attention.head_count_kv")),
        rope_base=float(number("qwen2.rope.freq_base")),
        epsilon=float(number("qwen2.attention.layer_norm_rms_epsilon")),
    )
    rows = np.unique(np.asarray(ids, np.int32))
    kinds: dict[str, str] = {}
    tensors: dict[str, NDArray[Any]] = {}
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight":
            continue
        kind = tensor.tensor_type.name
        if kind != "F32" and kind not in BLOCK_BYTES:
            raise WeightsError(f"{tensor.name} is quantised as {kind}; only {', '.join(BLOCK_BYTES)} are read here.")
        kinds[tensor.name] = kind
        tensors[tensor.name] = np.array(tensor.data[rows] if tensor.name == EMBEDDING else tensor.data)
    if EMBEDDING not in tensors:
        raise WeightsError(f"{gguf} has no {EMBEDDING}; the embedding in five bits alone is too coarse.")
    return Blocks(shape, kinds, tensors, rows)


def save_blocks(blocks: Blocks, path: Path) -> None:
    """One safetensors file that `load_blocks` reads."""
    metadata = {"kinds": json.dumps(blocks.kinds), "shape": json.dumps(blocks.shape.__dict__)}
    save_file({**blocks.tensors, "ids": blocks.ids}, path, metadata)


def load_blocks(path: Path) -> Blocks:
    """Raises WeightsError when the file is missing or not as written."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Blocks(Shape(**json.loads(metadata["shape"])), json.loads(metadata["kinds"]), tensors, tensors.pop("ids"))
    except Exception as error:  # safetensors raises its own kind
        raise WeightsError(f"{path} holds no language model in blocks ({error}); write it again with --pack.") from error


def dequantize(raw: Tensor, kind: str) -> Tensor:
    """[rows, bytes] uint8 -> [rows, in] float32. KeyError for a kind not in `BLOCK_BYTES`."""
    weights, size = BLOCK_BYTES[kind]
    blocks = raw.reshape(-1, size)  # [n, bytes of a block]
    made = {"Q4_K": _q4_k, "Q5_0": _q5_0, "Q6_K": _q6_k, "Q8_0": _q8_0}[kind](blocks)
    return made.reshape(raw.shape[0], raw.shape[1] // size * weights)


def _half(pair: Tensor) -> Tensor:
    """[n, 2] bytes -> [n, 1] float32."""
    return pair.contiguous().view(torch.float16).float()


def _q8_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * b[:, 2:].contiguous().view(torch.int8).float()


def _q5_0(b: Tensor) -> Tensor:
    low = torch.cat([b[:, 6:] & 15, b[:, 6:] >> 4], 1).float()  # [n, 32]
    bit = torch.arange(8, device=b.device, dtype=torch.uint8)
    high = ((b[:, 2:6, None] >> bit) & 1).reshape(len(b), 32).float()
    return _half(b[:, :2]) * (low + 16 * high - 16)


def _q4_k(b: Tensor) -> Tensor:
    d, least = _half(b[:, :2]), _half(b[:, 2:4])
    a, m, both = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scale = torch.cat([a & 63, (both & 15) | ((a >> 2) & 48)], 1).float() * d  # [n, 8]
    minimum = torch.cat([m & 63, (both >> 4) | ((m >> 2) & 48)], 1).float() * least
    q = b[:, 16:].reshape(-1, 4, 32)
    q = torch.stack([q & 15, q >> 4], 2).reshape(-1, 8, 32).float()
    return scale[:, :, None] * q - minimum[:, :, None]


def _q6_k(b: Tensor) -> Tensor:
    low, high, scale, d = b[:, :128], b[:, 128:192], b[:, 192:208], _half(b[:, 208:])
    low = low.reshape(-1, 2, 64)
    low = torch.stack([low & 15, low >> 4], 2).reshape(-1, 8, 32)
    high = high.reshape(-1, 2, 32)
    high = torch.stack([(high >> shift) & 3 for shift in (0, 2, 4, 6)], 2).reshape(-1, 8, 32)
    q = (low.float() + 16 * high.float() - 32).reshape(-1, 16, 16)
    return (d * scale.contiguous().view(torch.int8).float())[:, :, None] * q
