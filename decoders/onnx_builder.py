"""Writing an ONNX graph by hand, for networks that run chunk by chunk: nodes, constants, and memories that go in and come out again.

Notable: a memory is an input that holds what an output was in the run before; `begin` says what it is before the first run. The layers
here have channels last, as in the networks of `flow_*`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

Array = NDArray[np.float32]
OPSET = 17
END = np.iinfo(np.int64).max


@dataclass
class GraphBuilder:
    """A graph in the making; every method returns the name of what it added."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    inputs: list[tuple[str, int, bool]] = field(default_factory=list)
    """Names, numbers of axes, and whether the numbers are whole; memories apart."""
    begin: dict[str, Array] = field(default_factory=dict)
    """What each memory is before the first run, in the order of inputs and outputs."""
    following: list[str] = field(default_factory=list)

    def input(self, name: str, axes: int, *, whole: bool = False) -> str:
        """An input of floating numbers, or a row of whole ones."""
        self.inputs.append((name, axes, whole))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Any operation."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """A constant; one name stands for one array."""
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def whole(self, *numbers: int) -> str:
        """A constant of whole numbers."""
        return self.constant("whole_" + "_".join(str(number) for number in numbers), np.array(numbers, np.int64))

    def slice(self, x: str, begin: int, end: int, axis: int, name: str) -> str:
        """A part of x."""
        return self.node("Slice", [x, self.whole(begin), self.whole(end), self.whole(axis)], name)

    def memory(self, name: str, first: Array, following: str) -> str:
        """An input that is what the output `following` was in the run before."""
        self.begin[f"{name}.memory"] = first
        self.following.append(following)
        return f"{name}.memory"

    def linear(self, x: str, weight: Array, bias: Array | None, name: str) -> str:
        """[..., inputs] -> [..., outputs]; weight as torch keeps it, [outputs, inputs]."""
        out = self.node("MatMul", [x, self.constant(f"{name}.weight", weight.T)], f"{name}.product")
        return out if bias is None else self.node("Add", [out, self.constant(f"{name}.bias", bias)], f"{name}.sum")

    def norm(self, x: str, weight: Array, bias: Array, epsilon: float, name: str) -> str:
        """A norm over the last axis."""
        parameters = [self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
        return self.node("LayerNormalization", [x, *parameters], f"{name}.norm", axis=-1, epsilon=epsilon)

    def windows(self, x: str, kernel: int, name: str) -> str:
        """[1, n + k - 1, C] -> [1, n, k C], each row what a convolution sees, one input after the other."""
        parts = [self.slice(x, index, index - kernel + 1 or END, 1, f"{name}.part{index}") for index in range(kernel)]
        return self.node("Concat", parts, f"{name}.windows", axis=2)

    def window_linear(self, x: str, weight: Array, bias: Array, name: str) -> str:
        """A convolution without padding, [1, n + k - 1, C] -> [1, n, C']; weight as torch keeps it, [C', C, k]."""
        seen = x if weight.shape[2] == 1 else self.windows(x, weight.shape[2], name)
        return self.linear(seen, weight.transpose(0, 2, 1).reshape(len(weight), -1), bias, name)

    def causal(self, x: str, weight: Array, bias: Array, name: str) -> str:
        """The same over what was before x too: [1, n, C] -> [1, n, C']."""
        seen = weight.shape[2] - 1
        if not seen:
            return self.window_linear(x, weight, bias, name)
        following = f"{name}.next"
        memory = self.memory(name, np.zeros((1, seen, weight.shape[1]), np.float32), following)
        joined = self.node("Concat", [memory, x], f"{name}.joined", axis=1)
        self.slice(joined, -seen, END, 1, following)
        return self.window_linear(joined, weight, bias, name)

    def remembered(self, x: str, first: Array, most: int, axis: int, name: str) -> str:
        """x behind what is kept of it from earlier runs, the newest `most`."""
        following = f"{name}.next"
        joined = self.node("Concat", [self.memory(name, first, following), x], f"{name}.joined", axis=axis)
        self.slice(joined, -most, END, axis, following)
        return joined

    def heads(self, x: str, heads: int, perm: tuple[int, ...], name: str) -> str:
        """[1, n, h d] -> the axes (row, n, h, d) in the order of perm."""
        apart = self.node("Reshape", [x, self.whole(1, -1, heads, self._head_width(x, heads))], f"{name}.apart")
        return self.node("Transpose", [apart], f"{name}.heads", perm=list(perm))

    def _head_width(self, x: str, heads: int) -> int:
        """From the product that made x."""
        stem = x.removesuffix(".sum").removesuffix(".product")
        return int(self.constants[f"{stem}.weight"].shape[1]) // heads

    def session(self, output: str, threads: int) -> Any:
        """The graph, to be run: inputs and memories in; the output and what memories become out."""
        from onnx import TensorProto, helper, numpy_helper

        value, f32, i64 = helper.make_tensor_value_info, TensorProto.FLOAT, TensorProto.INT64
        inputs = [value(name, i64 if whole else f32, [None] * axes) for name, axes, whole in self.inputs]
        inputs += [value(name, f32, [None] * first.ndim) for name, first in self.begin.items()]
        outputs = [value(name, f32, None) for name in (output, *self.following)]
        constants = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "chunk", inputs, outputs, initializer=constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
