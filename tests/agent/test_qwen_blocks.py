"""Quantised blocks become the floats that ggml makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from agent.qwen_blocks import BLOCK_BYTES, EMBEDDING, Blocks, Shape, dequantize, load_blocks, read_blocks, save_blocks
from duplex.errors import WeightsError


@pytest.mark.parametrize("kind", BLOCK_BYTES)
def test_every_kind_is_dequantised_as_ggml_does(kind: str) -> None:
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (6, 4 * BLOCK_BYTES[kind][1]), dtype=np.uint8)
    scales = {"Q4_K": (0, 2), "Q5_0": (0,), "Q6_K": (208,), "Q8_0": (0,)}[kind]
    for block in range(4):
        for at in scales:  # ordinary numbers as scales, or the products are not numbers
            place = block * BLOCK_BYTES[kind][1] + at
            raw[:, place : place + 2] = random.normal(size=(6, 1)).astype(np.float16).view(np.uint8)
    expected = quants.dequantize(raw, GGMLQuantizationType[kind])
    np.testing.assert_array_equal(dequantize(torch.from_numpy(raw), kind).numpy(), expected)


def test_blocks_come_back_from_their_file(tmp_path: Path) -> None:
    raw = np.arange(2 * 34, dtype=np.uint8).reshape(2, 34)
    shape = Shape(hidden=32, layers=1, heads=2, kv_heads=1, rope_base=1e6, epsilon=1e-6)
    blocks = Blocks(
        shape, {EMBEDDING: "Q8_0", "norm": "F32"}, {EMBEDDING: raw, "norm": np.ones(32, np.float32)}, np.array([3, 9], np.int32)
    )
    save_blocks(blocks, tmp_path / "blocks.safetensors")
    again = load_blocks(tmp_path / "blocks.safetensors")
    assert (again.shape, again.kinds, again.ids.tolist()) == (shape, blocks.kinds, [3, 9])
    assert torch.equal(again.weight(EMBEDDING), blocks.weight(EMBEDDING))
    weight, scale = again.embedding()
    assert torch.allclose(weight.float() * scale[:, None], again.weight(EMBEDDING), atol=float(scale.max()))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blocks.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="write it again"):
        load_blocks(tmp_path / "blocks.safetensors")


@pytest.mark.weights
def test_the_real_model_is_read(edge_weights: dict[str, Path]) -> None:
    gguf = next((edge_weights["qwen-int8"].parents[1] / "weights" / "qwen-gguf").glob("*.gguf"), None)
    if gguf is None:
        pytest.skip("the GGUF was removed after its conversion")
    blocks = read_blocks(gguf, [5, 3, 3])
    assert blocks.ids.tolist() == [3, 5]
    assert blocks.weight(EMBEDDING).shape == (2, blocks.shape.hidden)
    assert blocks.weight("blk.0.ffn_down.weight").shape[0] == blocks.shape.hidden
