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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from decoders.onnx_builder import END, Array, GraphBuilder
from decoders.vits_sound import BLOCKS, STAGES
from duplex.audio import Samples
from duplex.errors import WeightsError


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
        gan = _Gan(weights)
        try:
            output = gan.build()
        except KeyError as error:
            raise WeightsError(f"The voice lacks {error}; fetch it again.") from error
        self._session = gan.graph.session(output, threads)
        self._begin = gan.graph.begin
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


class _Gan:
    """The network, written into a graph: latents and `ending` in, samples out."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights, self.graph = weights, GraphBuilder()

    def build(self) -> str:
        """The whole; returns the output's name. Raises KeyError when a weight is missing."""
        x = self.graph.input("latents", 3)
        self.graph.input("ending", 1, whole=True)  # 1, 1, and whether these are the last frames: what zeros at the end are made of
        x = self._conv(x, "dec.conv_pre")
        for stage, (times, _) in enumerate(STAGES):
            x = self._up(x, f"dec.ups.{stage}", times)
            first = len(BLOCKS) * stage
            blocks = [self._block(x, f"dec.resblocks.{first + index}", block[1]) for index, block in enumerate(BLOCKS)]
            x = self._mean(blocks, f"stage{stage}", len(self.weights[f"dec.resblocks.{first}.convs.0.bias"]))
        return self.graph.node("Tanh", [self._conv(x, "dec.conv_post", slope=0.01)], "samples")

    def _seen(self, x: str, name: str, channels: int, side: int) -> str:
        """x with what was before it, `side` zeros before the beginning, and as many behind the end."""
        graph, following = self.graph, f"{name}.next"
        memory = graph.memory(name, np.zeros((1, channels, side), np.float32), following)
        shape = graph.node("Mul", [graph.whole(1, channels, side), "ending"], f"{name}.end_shape")
        end = graph.node("ConstantOfShape", [shape], f"{name}.end")
        joined = graph.node("Concat", [memory, x, end], f"{name}.seen", axis=2)
        graph.slice(joined, -2 * side, END, 2, following)
        return joined

    def _parameters(self, name: str) -> list[str]:
        kinds = [kind for kind in ("weight", "bias") if f"{name}.{kind}" in self.weights or kind == "weight"]
        return [self.graph.constant(f"{name}.{kind}", self.weights[f"{name}.{kind}"]) for kind in kinds]

    def _conv(self, x: str, name: str, dilation: int = 1, slope: float | None = None, residual: bool = False) -> str:
        graph, weight = self.graph, self.weights[f"{name}.weight"]
        side = (weight.shape[2] - 1) // 2 * dilation
        seen = self._seen(x, name, weight.shape[1], side)
        given = seen if slope is None else graph.node("LeakyRelu", [seen], f"{name}.leaky", alpha=slope)
        shape = {"dilations": [dilation], "kernel_shape": [weight.shape[2]]}
        out = graph.node("Conv", [given, *self._parameters(name)], f"{name}.conv", **shape)
        if not residual:
            return out
        return graph.node("Add", [graph.slice(seen, side, -side, 2, f"{name}.beside"), out], f"{name}.out")

    def _up(self, x: str, name: str, times: int) -> str:
        """A transposed convolution twice as wide as its stride: each input meets its two neighbours."""
        weight = self.weights[f"{name}.weight"]
        leaky = self.graph.node("LeakyRelu", [self._seen(x, name, weight.shape[0], 1)], f"{name}.leaky", alpha=0.1)
        cut = (weight.shape[2] - times) // 2 + times  # its own padding, and what the outer two inputs give
        shape = {"kernel_shape": [weight.shape[2]], "strides": [times], "pads": [cut, cut]}
        return self.graph.node("ConvTranspose", [leaky, *self._parameters(name)], f"{name}.up", **shape)

    def _block(self, x: str, name: str, dilations: tuple[int, int]) -> str:
        for index, dilation in enumerate(dilations):
            x = self._conv(x, f"{name}.convs.{index}", dilation, slope=0.1, residual=True)
        return x

    def _mean(self, blocks: list[str], name: str, channels: int) -> str:
        """The mean of blocks that look ahead by different amounts; what the others have not reached yet is kept."""
        graph, (*early, last) = self.graph, blocks
        shape = graph.node("Shape", [last], f"{name}.shape")
        count = graph.node("Gather", [shape, graph.whole(2)], f"{name}.count", axis=0)
        total = last
        for index, block in enumerate(early):
            kept = f"{name}.kept{index}"
            memory = graph.memory(kept, np.zeros((1, channels, 0), np.float32), f"{kept}.next")
            joined = graph.node("Concat", [memory, block], f"{kept}.joined", axis=2)
            part = graph.node("Slice", [joined, graph.whole(0), count, graph.whole(2)], f"{kept}.part")
            graph.node("Slice", [joined, count, graph.whole(END), graph.whole(2)], f"{kept}.next")
            total = graph.node("Add", [total, part], f"{kept}.sum")
        return graph.node("Div", [total, graph.constant("blocks", np.array(len(blocks), np.float32))], f"{name}.mean")
