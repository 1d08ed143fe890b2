"""HiFi-GAN as an ONNX graph that goes on where it stopped, so that no frame is computed twice.

Notable: every convolution keeps the last inputs that it still needs and gives what it can already give; zeros are put before the first
input and behind the last one of each layer, just where the whole graph puts them. So what comes out in pieces is what comes out in one
run, and the price of looking ahead is paid once, as delay: `lookahead` samples. Showing the whole graph ten frames on both sides of every
piece gives the same sound, for twice the work in pieces of twenty frames.

Kong et al. 2020, "HiFi-GAN"; weights and layout as in `vits_sound.Generator`.

Shapes: C latent channels, T new frames, hop 256 samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from decoders.vits_sound import BLOCKS, STAGES
from duplex.audio import Samples
from duplex.errors import WeightsError

if TYPE_CHECKING:
    import onnx

Array = NDArray[np.float32]


@dataclass(slots=True)
class GanState:
    """One reply on its way: what each layer still needs, by name."""

    layers: dict[str, Array]
    waiting: Array
    """[C, t] frames that came before there were enough to begin."""
    begun: bool = False
    ended: bool = False


class StreamingGan:
    """Latents to sound, piece by piece. Holds no state of a reply; threads may share it."""

    def __init__(self, weights: Mapping[str, Array], threads: int = 1) -> None:
        """weights: by the checkpoint's names, `dec.*`. Raises WeightsError when one is missing."""
        graph = _Graph(weights)
        try:
            model = graph.build()
        except KeyError as error:
            raise WeightsError(f"The voice lacks {error}; fetch it again.") from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._begin = graph.begin
        self._outputs = [value.name for value in self._session.get_outputs()]
        self.channels = int(weights["dec.conv_pre.weight"].shape[1])
        self.lookahead = lookahead()
        """Samples that are held back until what follows is known."""

    @classmethod
    def load(cls, decoder: Path, threads: int = 1) -> StreamingGan:
        """From the decoder graph that `vits.split_vits` wrote. Raises WeightsError when it is missing or damaged."""
        import onnx
        from onnx import numpy_helper

        try:
            model = onnx.load(str(decoder))
        except Exception as error:  # protobuf's own DecodeError, of a class that differs between versions
            raise WeightsError(f"{decoder} is missing or damaged ({error}); fetch the voice again.") from error
        return cls({one.name: np.array(numpy_helper.to_array(one), np.float32) for one in model.graph.initializer}, threads)

    def open(self) -> GanState:
        """A fresh state for one reply."""
        return GanState(dict(self._begin), np.zeros((self.channels, 0), np.float32))

    def step(self, state: GanState, latents: Array, final: bool = False) -> Samples:
        """Latents [C, T] that follow -> the samples that can be known by now, [n]; in all, 256 a frame.

        Raises ValueError when the reply has ended.
        """
        if state.ended:
            raise ValueError("this reply has ended; open a new state for the next one")
        state.ended = final
        if not state.begun:
            latents = np.concatenate((state.waiting, latents), axis=1)
            if latents.shape[1] < least_frames() and not final:
                state.waiting = latents
                return np.zeros(0, np.float32)
        if latents.shape[1] == 0 and not (final and state.begun):
            return np.zeros(0, np.float32)
        state.begun = True
        feed: dict[str, Any] = {
            "latents": np.ascontiguousarray(latents[None], np.float32),
            "ending": np.array([1, 1, int(final)], np.int64),
            **state.layers,
        }
        samples, *layers = self._session.run(self._outputs, feed)
        state.layers = dict(zip(self._begin, layers, strict=True))
        flat: Samples = samples.reshape(-1)
        return flat


@cache
def lookahead() -> int:
    """Samples behind one sample that it depends on."""
    reach, rate = 3 * 256, 256  # the first convolution sees three frames
    for times, _ in STAGES:
        reach, rate = reach + rate, rate // times  # one input of the stage
        reach += rate * max((kernel - 1) // 2 * sum(dilations) for kernel, dilations in BLOCKS)
    return reach + 3


def least_frames() -> int:
    """Frames from which every layer has something to give."""
    return lookahead() // 256 + 1


@dataclass
class _Graph:
    """The graph in the making."""

    weights: Mapping[str, Array]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    begin: dict[str, Array] = field(default_factory=dict)
    """What each layer's memory is before the first frame, in the order of inputs and outputs."""
    nexts: list[str] = field(default_factory=list)

    def build(self) -> bytes:
        """The serialized graph: latents, ending and memories in; samples and memories out."""
        from onnx import TensorProto, helper

        x = self._conv("latents", "dec.conv_pre")
        for stage, (times, _) in enumerate(STAGES):
            x = self._up(x, f"dec.ups.{stage}", times)
            blocks = [self._block(x, f"dec.resblocks.{len(BLOCKS) * stage + index}", BLOCKS[index]) for index in range(len(BLOCKS))]
            x = self._mean(blocks, f"stage{stage}")
        x = self._conv(x, "dec.conv_post", slope=0.01)
        self._node("Tanh", [x], "samples")
        value, f32 = helper.make_tensor_value_info, TensorProto.FLOAT
        inputs = [value("latents", f32, [1, None, None]), value("ending", TensorProto.INT64, [3])]
        inputs += [value(name, f32, [1, first.shape[1], None]) for name, first in self.begin.items()]
        outputs = [value(name, f32, None) for name in ("samples", *self.nexts)]
        graph = helper.make_graph(self.nodes, "streaming_decoder", inputs, outputs, initializer=self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
        return bytes(model.SerializeToString())

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _tensor(self, name: str, array: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _whole(self, *numbers: int) -> str:
        """A constant of whole numbers."""
        name = "whole_" + "_".join(str(number) for number in numbers)
        if all(one.name != name for one in self.tensors):
            self._tensor(name, np.array(numbers, np.int64))
        return name

    def _slice(self, x: str, begin: str, end: str, output: str) -> str:
        return self._node("Slice", [x, begin, end, self._whole(2)], output)

    def _memory(self, name: str, first: Array, following: str) -> str:
        """An input that holds what the output `following` was in the run before."""
        memory = f"{name}.memory"
        self.begin[memory] = first
        self.nexts.append(following)
        return memory

    def _seen(self, x: str, name: str, channels: int, side: int) -> str:
        """x with what was before it, `side` zeros before the beginning, and as many behind the end."""
        following = f"{name}.next"
        memory = self._memory(name, np.zeros((1, channels, side), np.float32), following)
        shape = self._node("Mul", [self._whole(1, channels, side), "ending"], f"{name}.end_shape")
        end = self._node("ConstantOfShape", [shape], f"{name}.end")
        joined = self._node("Concat", [memory, x, end], f"{name}.seen", axis=2)
        self._slice(joined, self._whole(-2 * side), self._whole(np.iinfo(np.int64).max), following)
        return joined

    def _conv(self, x: str, name: str, dilation: int = 1, slope: float | None = None, residual: bool = False) -> str:
        weight = self.weights[f"{name}.weight"]
        side = (weight.shape[2] - 1) // 2 * dilation
        seen = self._seen(x, name, weight.shape[1], side)
        given = seen if slope is None else self._node("LeakyRelu", [seen], f"{name}.leaky", alpha=slope)
        inputs = [given, self._tensor(f"{name}.weight", weight)]
        if f"{name}.bias" in self.weights:
            inputs.append(self._tensor(f"{name}.bias", self.weights[f"{name}.bias"]))
        out = self._node("Conv", inputs, f"{name}.conv", dilations=[dilation], kernel_shape=[weight.shape[2]])
        if not residual:
            return out
        beside = self._slice(seen, self._whole(side), self._whole(-side), f"{name}.beside")
        return self._node("Add", [beside, out], f"{name}.out")

    def _up(self, x: str, name: str, times: int) -> str:
        """A transposed convolution twice as wide as its stride: each input meets its two neighbours."""
        weight = self.weights[f"{name}.weight"]
        seen = self._seen(x, name, weight.shape[0], 1)
        leaky = self._node("LeakyRelu", [seen], f"{name}.leaky", alpha=0.1)
        parameters = [self._tensor(f"{name}.{kind}", self.weights[f"{name}.{kind}"]) for kind in ("weight", "bias")]
        cut = (weight.shape[2] - times) // 2 + times  # its own padding, and what the outer two inputs give
        shape = {"kernel_shape": [weight.shape[2]], "strides": [times], "pads": [cut, cut]}
        return self._node("ConvTranspose", [leaky, *parameters], f"{name}.up", **shape)

    def _block(self, x: str, name: str, layout: tuple[int, tuple[int, int]]) -> str:
        for index, dilation in enumerate(layout[1]):
            x = self._conv(x, f"{name}.convs.{index}", dilation, slope=0.1, residual=True)
        return x

    def _mean(self, blocks: list[str], name: str) -> str:
        """The mean of blocks that look ahead by different amounts; what the others have not reached yet is kept."""
        *early, last = blocks
        shape = self._node("Shape", [last], f"{name}.shape")
        count = self._node("Gather", [shape, self._whole(2)], f"{name}.count", axis=0)
        total = last
        channels = int(self.weights[f"dec.resblocks.{len(BLOCKS) * int(name[-1])}.convs.0.weight"].shape[0])
        for index, block in enumerate(early):
            kept = f"{name}.kept{index}"
            memory = self._memory(kept, np.zeros((1, channels, 0), np.float32), f"{kept}.next")
            joined = self._node("Concat", [memory, block], f"{kept}.joined", axis=2)
            part = self._slice(joined, self._whole(0), count, f"{kept}.part")
            self._slice(joined, count, self._whole(np.iinfo(np.int64).max), f"{kept}.next")
            total = self._node("Add", [total, part], f"{kept}.sum")
        return self._node("Div", [total, self._tensor(f"{name}.blocks", np.array(len(blocks), np.float32))], f"{name}.mean")
