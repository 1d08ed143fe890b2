"""A voice for tests: the three graphs of `vits`, tiny, with seeded random weights, made in memory.

Same inputs, outputs and meaning as the real ones: every phoneme id lasts some frames that its noise can change, latents are the
prior put through one convolution, the decoder turns a frame into `HOP` samples through an overlapping transposed convolution.
What it says is noise. One phoneme a letter, so no lexicon is needed either.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoders.phonemes import BEGIN, END, PAD, SPACE
from decoders.vits import HOP

CHANNELS = 8


def tiny_table() -> dict[str, list[int]]:
    """Ids of letters, punctuation and the three marks of a clause."""
    return {symbol: [index] for index, symbol in enumerate(PAD + BEGIN + END + SPACE + string.ascii_lowercase + "',;:.!?")}


def tiny_phonemes(words: Sequence[str]) -> list[str]:
    """Letters as they are written."""
    return [word.lower() for word in words]


@functools.cache
def tiny_graphs() -> dict[str, bytes]:
    """Serialized text, flow and decoder graphs."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(7)
    i64, f32 = TensorProto.INT64, TensorProto.FLOAT
    value, node = helper.make_tensor_value_info, helper.make_node
    symbols = len(tiny_table())

    def weights(**arrays: NDArray[np.generic]) -> list[Any]:
        return [numpy_helper.from_array(array, name) for name, array in arrays.items()]

    def model(name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], tensors: list[Any]) -> bytes:
        graph = helper.make_graph(nodes, name, inputs, outputs, initializer=tensors)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
        return bytes(made.SerializeToString())

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    text = model(
        "text",
        [
            node("Gather", ["embedding", "input"], ["embedded"]),  # [1, P, C]
            node("Transpose", ["embedded"], ["mean"], perm=[0, 2, 1]),  # [1, C, P]
            node("Mul", ["mean", "small"], ["log_deviation"]),
            node("Slice", ["duration_noise", "zero", "one_index", "axis"], ["noise"]),  # [1, 1, P]
            node("Abs", ["noise"], ["positive"]),
            node("Gather", ["scales", "one_index"], ["length"]),
            node("Gather", ["scales", "two_index"], ["noise_w"]),
            node("Mul", ["positive", "noise_w"], ["jitter"]),
            node("Add", ["jitter", "base"], ["long"]),
            node("Mul", ["long", "length"], ["scaled"]),
            node("Ceil", ["scaled"], ["durations"]),
            node("Identity", ["input_lengths"], ["unused"]),
        ],
        [
            value("input", i64, [1, "P"]),
            value("input_lengths", i64, [1]),
            value("scales", f32, [3]),
            value("duration_noise", f32, [1, 2, "P"]),
        ],
        [
            value("mean", f32, [1, CHANNELS, "P"]),
            value("log_deviation", f32, [1, CHANNELS, "P"]),
            value("durations", f32, [1, 1, "P"]),
        ],
        weights(
            embedding=normal(symbols, CHANNELS),
            small=np.array(0.1, np.float32),
            base=np.array(1.2, np.float32),
            zero=np.array([0], np.int64),
            one_index=np.array([1], np.int64),
            two_index=np.array([2], np.int64),
            axis=np.array([1], np.int64),
        ),
    )
    flow = model(
        "flow",
        [
            node("Mul", ["prior", "mask"], ["masked"]),
            node("Conv", ["masked", "kernel"], ["latents"], kernel_shape=[3], pads=[1, 1]),
        ],
        [value("prior", f32, [1, CHANNELS, "T"]), value("mask", f32, [1, 1, "T"])],
        [value("latents", f32, [1, CHANNELS, "T"])],
        weights(kernel=normal(CHANNELS, CHANNELS, 3) / 4),
    )
    decoder = model(
        "decoder",
        [
            node(
                "ConvTranspose", ["latents", "kernel"], ["wave"], strides=[HOP], kernel_shape=[2 * HOP], pads=[HOP // 2, HOP // 2]
            ),
            node("Mul", ["wave", "quiet"], ["soft"]),
            node("Tanh", ["soft"], ["output"]),
        ],
        [value("latents", f32, [1, CHANNELS, "T"])],
        [value("output", f32, [1, 1, "N"])],
        weights(kernel=normal(CHANNELS, 1, 2 * HOP), quiet=np.array(0.015, np.float32)),
    )
    return {"text": text, "flow": flow, "decoder": decoder}
