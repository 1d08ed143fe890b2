"""Room for what a flow remembers of several replies, side by side in a few large buffers.

Notable: the networks of the flow need not know. What they are handed looks like the memory of one sequence (`flow_streaming`), but
reads and writes the places of several replies, which are tensors, so that no shape depends on how long a reply is. The same buffers,
seen as one reply's own memory, serve `Flow.step` when a reply ends.

Shapes: b replies now, k rows of a pass, n positions now, s positions in all, h heads, d head width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from decoders.flow import Flow, FlowMemory
from decoders.flow_encoder import EncoderMemory
from decoders.flow_estimator import EstimatorMemory, StageMemory
from decoders.flow_streaming import KeyValues, Past


class _Past:
    """As `Past`, of several replies."""

    def __init__(self, buffer: Tensor, slots: Tensor) -> None:
        """buffer: [slots, k, frames, C]; slots: [b]."""
        self._buffer, self._slots = buffer, slots
        self._read: Tensor | None = None

    @property
    def frames(self) -> Tensor:
        if self._read is None:
            self._read = self._buffer.index_select(0, self._slots).flatten(0, 1)  # [b * k, frames, C]
        return self._read

    @frames.setter
    def frames(self, frames: Tensor) -> None:
        self._buffer.index_copy_(0, self._slots, frames.unflatten(0, (len(self._slots), -1)))


@dataclass(slots=True)
class _KeyValues:
    """As `KeyValues`, of several replies."""

    keys: Tensor
    """[slots, k, h, capacity, d]"""
    values: Tensor
    slots: Tensor
    """[b]"""
    at: Tensor
    """[b, n] positions now."""
    span: int

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put [b * k, h, n, d] each at their places; returns the first `span` positions, [b * k, h, s, d] each."""
        return self._put(self.keys, keys), self._put(self.values, values)

    def _put(self, buffer: Tensor, new: Tensor) -> Tensor:
        rows = new.unflatten(0, (len(self.slots), -1)).permute(0, 3, 1, 2, 4)  # [b, n, k, h, d]
        buffer[self.slots[:, None], :, :, self.at] = rows
        return buffer[:, :, :, : self.span].index_select(0, self.slots).flatten(0, 1)


class FlowSlots:
    """The buffers. The last slot is nobody's: rows of padding write there."""

    def __init__(self, flow: Flow, replies: int, codes: int) -> None:
        """codes: room of each reply, its prompt included."""
        config = flow.config
        encoder, sizes = config.encoder, config.estimator
        weight = flow.encoder_proj.weight
        self.flow, self.slots, self.codes = flow, replies + 1, codes
        frames, stages = codes * config.ratio, flow.decoder.estimator.stages
        rows = config.rows

        def buffer(*shape: int) -> Tensor:  # zeros, since what is masked is still multiplied
            return torch.zeros(shape, dtype=weight.dtype, device=weight.device)

        kv = (config.steps, len(stages) * sizes.blocks, self.slots, rows, sizes.heads, frames, sizes.head_width)
        self.keys, self.values = buffer(*kv), buffer(*kv)
        self.pasts: list[dict[str, Tensor]] = []  # per stage, [steps, slots, k, 2, C]
        for stage in stages:
            inputs = cast(Any, stage[0]).block1.block["0"].in_channels
            widths = {"first": inputs, "second": sizes.channels, "last": sizes.channels}
            self.pasts.append({name: buffer(config.steps, self.slots, rows, 2, width) for name, width in widths.items()})
        self.final = buffer(config.steps, self.slots, rows, 2, sizes.channels)
        head = encoder.width // encoder.heads
        low = (encoder.blocks, self.slots, 1, encoder.heads, codes, head)
        high = (encoder.up_blocks, self.slots, 1, encoder.heads, frames, head)
        self.low_keys, self.low_values, self.high_keys, self.high_values = buffer(*low), buffer(*low), buffer(*high), buffer(*high)
        self.ahead = buffer(self.slots, 1, 2, encoder.width)
        self.up = buffer(self.slots, 1, _seen(flow.encoder.up_layer.conv), encoder.width)

    def clear(self, slot: int) -> None:
        """What came before the first frame: silence."""
        for past in (self.ahead, self.up):
            past[slot] = 0
        for past in (self.final, *(past for stage in self.pasts for past in stage.values())):
            past[:, slot] = 0

    def copy(self, source: int, target: int, codes: int) -> None:
        """Let one reply go on like another, which has `codes` codes."""
        frames = codes * self.flow.config.ratio
        for buffer, length in ((self.keys, frames), (self.values, frames)):
            buffer[:, :, target, :, :, :length] = buffer[:, :, source, :, :, :length]
        for buffer, length in (
            (self.low_keys, codes),
            (self.low_values, codes),
            (self.high_keys, frames),
            (self.high_values, frames),
        ):
            buffer[:, target, :, :, :length] = buffer[:, source, :, :, :length]
        for past in (self.ahead, self.up):
            past[target] = past[source]
        for past in (self.final, *(past for stage in self.pasts for past in stage.values())):
            past[:, target] = past[:, source]

    def alone(self, slot: int, codes: int) -> FlowMemory:
        """The memory of one reply of so many codes, as `Flow` keeps it. It lies here: the slot is to be held as long as it is used."""
        frames = codes * self.flow.config.ratio

        def layers(keys: Tensor, values: Tensor, length: int) -> list[KeyValues]:
            return [KeyValues(keys[i, slot], values[i, slot], length) for i in range(keys.shape[0])]

        encoder = EncoderMemory(
            Past(self.ahead[slot].clone()),
            Past(self.up[slot].clone()),
            layers(self.low_keys, self.low_values, codes),
            layers(self.high_keys, self.high_values, frames),
        )
        blocks = self.flow.config.estimator.blocks
        estimator = []
        for step in range(self.flow.config.steps):
            kv = layers(self.keys[step], self.values[step], frames)
            stages = [
                StageMemory(
                    **{name: Past(past[step, slot].clone()) for name, past in pasts.items()},
                    blocks=kv[i * blocks : (i + 1) * blocks],
                )
                for i, pasts in enumerate(self.pasts)
            ]
            estimator.append(EstimatorMemory(stages, Past(self.final[step, slot].clone())))
        return FlowMemory(encoder, estimator)

    def together(self, slots: Tensor, starts: Tensor, span: int) -> FlowMemory:
        """The memories of several replies, for one chunk. slots, starts (in codes): [b]; span: codes looked at, with the chunk."""
        config = self.flow.config
        n = config.chunk
        low = starts[:, None] + torch.arange(n, device=starts.device)  # [b, n]
        high = starts[:, None] * config.ratio + torch.arange(n * config.ratio, device=starts.device)
        frames = span * config.ratio

        def layers(keys: Tensor, values: Tensor, at: Tensor, length: int) -> list[KeyValues]:
            shared = [_KeyValues(keys[i], values[i], slots, at, length) for i in range(keys.shape[0])]
            return cast(list[KeyValues], shared)

        def past(buffer: Tensor) -> Past:
            return cast(Past, _Past(buffer, slots))

        encoder = EncoderMemory(
            past(self.ahead),
            past(self.up),
            layers(self.low_keys, self.low_values, low, span),
            layers(self.high_keys, self.high_values, high, frames),
        )
        blocks = config.estimator.blocks
        estimator = []
        for step in range(config.steps):
            kv = layers(self.keys[step], self.values[step], high, frames)
            stages = [
                StageMemory(
                    **{name: past(buffer[step]) for name, buffer in pasts.items()}, blocks=kv[i * blocks : (i + 1) * blocks]
                )
                for i, pasts in enumerate(self.pasts)
            ]
            estimator.append(EstimatorMemory(stages, past(self.final[step])))
        return FlowMemory(encoder, estimator)


def owned(memory: FlowMemory) -> FlowMemory:
    """A memory of the same content in buffers of its own."""

    def copied(layers: list[KeyValues]) -> list[KeyValues]:
        return [KeyValues(_front(kv.keys, kv.length), _front(kv.values, kv.length), kv.length) for kv in layers]

    encoder = memory.encoder
    return FlowMemory(
        EncoderMemory(encoder.ahead.fork(), encoder.up.fork(), copied(encoder.layers), copied(encoder.up_layers)),
        [
            EstimatorMemory(
                [StageMemory(s.first.fork(), s.second.fork(), s.last.fork(), copied(s.blocks)) for s in moment.stages],
                moment.final.fork(),
            )
            for moment in memory.estimator
        ],
    )


def _front(part: Tensor | None, length: int) -> Tensor:
    assert part is not None
    return part[:, :, :length].clone()


def _seen(conv: nn.Conv1d) -> int:
    return conv.kernel_size[0] - 1
