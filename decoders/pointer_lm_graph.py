"""The pointer LM's layers as one ONNX graph, so that a code costs one call instead of three hundred: Python takes longer than the products.

    x [1, n, d], past, total -> inside [1, n, heads * inner], past        (what the first layers of all heads make of the final states)

Notable: onnxruntime's own operators fuse norm and residual, and attend with rotary positions over buffers that stay where they are. The
int8 weights have seven bits and a scale per output: x86 without VNNI adds pairs of products in 16 bits and would saturate. Activations
get one scale per call, which is enough here since they come out of norms.

Shapes: n positions now, d width, e head width, M most positions.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoders.pointer_lm import Block, Head, PointerLM, rotation

_DOMAIN = "com.microsoft"
_EPSILON = 1e-6


class _Graph:
    """Nodes and weights in the making."""

    def __init__(self, int8: bool) -> None:
        from onnx import helper, numpy_helper

        self._node, self._tensor, self._int8 = helper.make_node, numpy_helper.from_array, int8
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, name: str, value: NDArray[Any]) -> str:
        """A constant; returns its name."""
        self.weights.append(self._tensor(np.ascontiguousarray(value), name))
        return name

    def op(self, kind: str, inputs: list[str], outputs: list[str], domain: str = _DOMAIN, **attributes: Any) -> str:
        """A node; returns its first output."""
        self.nodes.append(self._node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def linear(self, name: str, x: str, weight: Tensor, bias: Tensor | None = None) -> str:
        """x times weight [out, in], plus bias."""
        matrix = weight.detach().float().numpy().T
        if not self._int8:
            product = self.op("MatMul", [x, self.weight(f"{name}.weight", matrix)], [f"{name}.product"], "")
            if bias is None:
                return product
            return self.op("Add", [product, self.weight(f"{name}.bias", _floats(bias))], [f"{name}.y"], "")
        scale = np.maximum(np.abs(matrix).max(axis=0), 1e-12) / 63.0  # [out]
        inputs = [
            x,
            self.weight(f"{name}.weight", np.round(matrix / scale).astype(np.int8)),
            self.weight(f"{name}.scale", scale.astype(np.float32)),
            self.weight(f"{name}.zero", np.zeros(len(scale), np.int8)),
            *([] if bias is None else [self.weight(f"{name}.bias", _floats(bias))]),
        ]
        return self.op("DynamicQuantizeMatMul", inputs, [f"{name}.y"])


def _floats(value: Tensor) -> NDArray[np.float32]:
    return cast("NDArray[np.float32]", value.detach().float().numpy())


def build(net: PointerLM, most: int, *, int8: bool) -> bytes:
    """The serialized graph for contexts of at most `most` positions. int8: otherwise exact floats."""
    from onnx import TensorProto, helper

    c, graph = net.config, _Graph(int8)
    width = c.width // c.heads
    cos, sin = rotation(torch.arange(most), width)
    turns = [
        graph.weight("cos", _floats(cos[:, : width // 2])),
        graph.weight("sin", _floats(sin[:, width // 2 :])),
    ]
    x, change = "x", ""
    for index, block in enumerate(cast("list[Block]", list(net.blocks))):
        name = f"layers.{index}"
        normed, x = _normed(graph, f"{name}.attention_norm", x, change, block.attention_norm.weight)
        qkv = graph.linear(f"{name}.qkv", normed, block.qkv.weight)
        inputs = [qkv, "", "", f"keys.{index}", f"values.{index}", "last", "total", *turns]
        outputs = [f"{name}.mixed", f"new_keys.{index}", f"new_values.{index}"]
        how = {"num_heads": c.heads, "kv_num_heads": c.heads, "do_rotary": 1, "scale": width**-0.5}
        mixed = graph.op("GroupQueryAttention", inputs, outputs, **how)
        change = graph.linear(f"{name}.out", mixed, block.out.weight)
        normed, x = _normed(graph, f"{name}.mlp_norm", x, change, block.mlp_norm.weight)
        up = graph.linear(f"{name}.up", normed, block.up.weight, block.up.bias)
        change = graph.linear(f"{name}.down", graph.op("FastGelu", [up], [f"{name}.bent"]), block.down.weight, block.down.bias)
    normed, _ = _normed(graph, "norm", x, change, net.norm.weight)
    heads = cast("list[Head]", list(net.chain.heads))
    inner = torch.cat([head.inner.weight for head in heads]), torch.cat([head.inner.bias for head in heads])
    inside = graph.linear("inner", normed, *inner)
    value, floats, whole = helper.make_tensor_value_info, TensorProto.FLOAT, TensorProto.INT32
    past = [1, c.heads, most, width]
    kept = [f"{kind}.{index}" for index in range(c.layers) for kind in ("keys", "values")]
    made = helper.make_graph(
        graph.nodes,
        "pointer_lm",
        [
            value("x", floats, [1, "n", c.width]),
            value("last", whole, [1]),
            value("total", whole, []),
            *(value(name, floats, past) for name in kept),
        ],
        [value(inside, floats, None), *(value(f"new_{name}", floats, past) for name in kept)],
        initializer=graph.weights,
    )
    sets = [helper.make_opsetid("", 21), helper.make_opsetid(_DOMAIN, 1)]
    return bytes(helper.make_model(made, opset_imports=sets, ir_version=10).SerializeToString())


def _normed(graph: _Graph, name: str, x: str, change: str, gain: Tensor) -> tuple[str, str]:
    """The norm of x + change, and that sum."""
    weight = graph.weight(f"{name}.weight", _floats(gain))
    if not change:
        return graph.op("SimplifiedLayerNormalization", [x, weight], [f"{name}.y"], "", epsilon=_EPSILON, axis=-1), x
    outputs = [f"{name}.y", "", "", f"{name}.sum"]
    return graph.op("SkipSimplifiedLayerNormalization", [x, change, weight], outputs, epsilon=_EPSILON), outputs[3]


class Past:
    """Keys and values of one context, and its binding to the graph."""

    def __init__(self, session: Any, shape: list[int], layers: int) -> None:
        self.binding = session.io_binding()
        for index in range(layers):
            for kind in ("keys", "values"):  # the same memory in and out: nothing is copied
                kept = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
                self.binding.bind_ortvalue_input(f"{kind}.{index}", kept)
                self.binding.bind_ortvalue_output(f"new_{kind}.{index}", kept)


class PointerGraph:
    """The graph, loaded. Holds no context."""

    def __init__(self, net: PointerLM, most: int, *, int8: bool = True, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(build(net, most, int8=int8), options, providers=["CPUExecutionProvider"])
        c = net.config
        self._shape, self._layers = [1, c.heads, most, c.width // c.heads], c.layers
        self._inside = self._session.get_outputs()[0].name

    def open(self) -> Past:
        """Memory of a fresh context."""
        return Past(self._session, self._shape, self._layers)

    def run(self, past: Past, x: NDArray[np.float32], start: int) -> NDArray[np.float32]:
        """Positions x [n, d] from `start` on -> what the heads' first layers make of the last one [heads * inner]."""
        total = start + len(x)
        binding = past.binding
        binding.bind_cpu_input("x", np.ascontiguousarray(x[None]))
        binding.bind_cpu_input("last", np.array([total - 1], np.int32))
        binding.bind_cpu_input("total", np.array(total, np.int32))
        binding.bind_output(self._inside)
        self._session.run_with_iobinding(binding)
        inside: NDArray[np.float32] = binding.get_outputs()[-1].numpy()[0, -1]
        return inside
