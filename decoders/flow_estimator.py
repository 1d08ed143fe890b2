"""The network of the flow: noisy frames, their conditions and a moment in, a direction for every frame out. A causal U-Net of one level.

Notable: channels are last everywhere, so a convolution over three frames is one matrix product and nothing is transposed. What depends
on the moment alone, one shift per residual block, is computed for all moments of the solver at once (`shifts`).

Source: CosyVoice2-0.5B `flow.pt`, keys `decoder.estimator.*`; Mehta et al. 2024, "Matcha-TTS", for the shape of the network.

Shapes: B rows, n frames now, m frames in all, M mel bands, I input channels, C channels, h heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoders.flow_streaming import KeyValues, Past, causal


@dataclass(frozen=True, slots=True)
class FlowEstimatorConfig:
    """Sizes of the estimator; the defaults are CosyVoice2's."""

    channels: int = 256
    """Channels of every stage."""
    blocks: int = 4
    """Transformer blocks of each stage."""
    mid_stages: int = 12
    """Stages between the first and the last."""
    heads: int = 8
    """Attention heads."""
    head_width: int = 64
    """Channels of a head; heads times this may differ from `channels`."""
    spans: bool = False
    """Whether the length of a step is an input beside its moment: a flow of few steps answers with the mean direction over it."""

    def __post_init__(self) -> None:
        for name in ("channels", "heads", "head_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"flow.estimator.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("blocks", "mid_stages"):
            if getattr(self, name) < 0:
                raise ValueError(f"flow.estimator.{name} must be at least 0, not {getattr(self, name)}")


@dataclass(slots=True)
class StageMemory:
    """What one stage keeps: the last two inputs of its convolutions, keys and values of its blocks."""

    first: Past = field(default_factory=Past)
    second: Past = field(default_factory=Past)
    last: Past = field(default_factory=Past)
    blocks: list[KeyValues] = field(default_factory=list)

    def fork(self) -> StageMemory:
        """The same content, to go on independently."""
        return StageMemory(self.first.fork(), self.second.fork(), self.last.fork(), [block.fork() for block in self.blocks])


@dataclass(slots=True)
class EstimatorMemory:
    """What the estimator keeps of a sequence at one moment of the solver."""

    stages: list[StageMemory]
    final: Past = field(default_factory=Past)

    def fork(self) -> EstimatorMemory:
        """The same content, to go on independently."""
        return EstimatorMemory([stage.fork() for stage in self.stages], self.final.fork())


class CausalBlock(nn.Module):
    """Causal convolution over three frames, norm over channels, Mish."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"0": nn.Conv1d(inputs, outputs, 3), "2": nn.LayerNorm(outputs)})

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        """[B, n, inputs] -> [B, n, outputs]."""
        conv = self.block["0"]
        assert isinstance(conv, nn.Conv1d)
        return F.mish(self.block["2"](causal(conv, x, past)))


class Resnet(nn.Module):
    """Two causal blocks with the moment's shift between them, beside a residual."""

    def __init__(self, inputs: int, outputs: int, time_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_width, outputs))
        self.block1 = CausalBlock(inputs, outputs)
        self.block2 = CausalBlock(outputs, outputs)
        self.res_conv = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor, shift: Tensor, memory: StageMemory | None) -> Tensor:
        """[B, n, inputs] and shift [B or 1, 1, outputs] -> [B, n, outputs]."""
        hidden = self.block1(x, memory.first if memory else None) + shift
        hidden = self.block2(hidden, memory.second if memory else None)
        return hidden + causal(self.res_conv, x, None)


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values have no bias."""

    def __init__(self, channels: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Tensor, mask: Tensor | None, memory: KeyValues | None) -> Tensor:
        """[B, n, C] -> [B, n, C]."""
        query, key, value = (
            linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, h, n, d]
            for linear in (self.to_q, self.to_k, self.to_v)
        )
        if memory is not None:
            key, value = memory.extend(key, value)  # [B, h, m, d]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))  # [B, n, h * d] -> [B, n, C]


class Gelu(nn.Module):
    """A linear layer and its exact GELU; a module of its own because the checkpoints' names have it so."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, inputs] -> [B, n, outputs]."""
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    """Four times wider and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"0": Gelu(channels, 4 * channels), "2": nn.Linear(4 * channels, channels)})

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, C] -> [B, n, C]."""
        return self.net["2"](self.net["0"](x))


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each behind its norm and beside a residual."""

    def __init__(self, config: FlowEstimatorConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.channels)
        self.attn1 = Attention(config.channels, config.heads, config.head_width)
        self.norm3 = nn.LayerNorm(config.channels)
        self.ff = FeedForward(config.channels)

    def forward(self, x: Tensor, mask: Tensor | None, memory: KeyValues | None) -> Tensor:
        """[B, n, C] -> [B, n, C]."""
        x = x + self.attn1(self.norm1(x), mask, memory)
        return x + self.ff(self.norm3(x))


class Stage(nn.ModuleList):
    """A residual block and its transformer blocks; the convolution that may follow is the caller's to run (`join`)."""

    def __init__(self, config: FlowEstimatorConfig, inputs: int, *, joined: bool) -> None:
        """joined: whether a causal convolution ends the stage."""
        resnet = Resnet(inputs, config.channels, 4 * config.channels)
        blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.blocks))
        super().__init__([resnet, blocks, *([nn.Conv1d(config.channels, config.channels, 3)] if joined else [])])

    def forward(self, x: Tensor, shift: Tensor, mask: Tensor | None, memory: StageMemory | None) -> Tensor:
        """[B, n, inputs] -> [B, n, C]."""
        x = self[0](x, shift, memory)
        blocks = self[1]
        assert isinstance(blocks, nn.ModuleList)
        for index, block in enumerate(blocks):
            x = block(x, mask, memory.blocks[index] if memory else None)
        return x

    def join(self, x: Tensor, memory: StageMemory | None) -> Tensor:
        """[B, n, C] -> [B, n, C]."""
        conv = self[2]
        assert isinstance(conv, nn.Conv1d)
        return causal(conv, x, memory.last if memory else None)


class TimeEmbedding(nn.Module):
    """A moment in [0, 1] as a vector: waves of it, then two linear layers."""

    def __init__(self, waves: int, width: int) -> None:
        super().__init__()
        self.waves = waves
        self.linear_1 = nn.Linear(waves, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """[B] float32 -> [B, 4 C]."""
        half = self.waves // 2
        rates = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10_000.0) / (half - 1)))
        angles = 1000.0 * t.unsqueeze(1) * rates  # [B, half]
        waves = torch.cat((angles.sin(), angles.cos()), dim=1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(waves)))


class FlowEstimator(nn.Module):
    """Conditions and noisy frames to a direction, streaming or not."""

    def __init__(self, config: FlowEstimatorConfig, inputs: int, mel: int) -> None:
        """inputs: I, all condition channels together with the M noisy ones. mel: M."""
        super().__init__()
        self.config = config
        channels = config.channels
        self.time_mlp = TimeEmbedding(inputs, 4 * channels)
        if config.spans:
            self.span_mlp = TimeEmbedding(inputs, 4 * channels)
            nn.init.zeros_(self.span_mlp.linear_2.weight)  # a flow that has learnt directions only goes on as it was
            nn.init.zeros_(self.span_mlp.linear_2.bias)
        self.down_blocks = nn.ModuleList([Stage(config, inputs, joined=True)])
        self.mid_blocks = nn.ModuleList(Stage(config, channels, joined=False) for _ in range(config.mid_stages))
        self.up_blocks = nn.ModuleList([Stage(config, 2 * channels, joined=True)])
        self.final_block = CausalBlock(channels, channels)
        self.final_proj = nn.Conv1d(channels, mel, 1)

    @property
    def stages(self) -> list[Stage]:
        """All stages in the order in which they run."""
        return [stage for stage in (*self.down_blocks, *self.mid_blocks, *self.up_blocks) if isinstance(stage, Stage)]

    def memory(self, window: int = 0) -> EstimatorMemory:
        """Memory of a sequence that has not begun, for one moment of the solver. window: frames kept for attention, 0 for all."""
        return EstimatorMemory(
            [StageMemory(blocks=[KeyValues(most=window) for _ in range(self.config.blocks)]) for _ in self.stages]
        )

    def shifts(self, t: Tensor, spans: Tensor | None = None) -> list[Tensor]:
        """What each stage adds at moments t [B], for steps as long as spans [B] (None: of no length): [B, 1, C] per stage."""
        time = self.time_mlp(t)
        if self.config.spans:
            time = time + self.span_mlp(torch.zeros_like(t) if spans is None else spans)
        return [stage[0].mlp(time).unsqueeze(1) for stage in self.stages]  # type: ignore[operator]

    def forward(
        self, x: Tensor, shifts: Sequence[Tensor], mask: Tensor | None = None, memory: EstimatorMemory | None = None
    ) -> Tensor:
        """[B, n, I], channels in the order noisy frames, encoded codes, speaker, known frames -> direction [B, n, M].

        shifts: of `shifts`, [B or 1, 1, C] per stage. mask: of `attention_mask`, over all m frames. memory: of the frames before, at the
        same moment, brought up to date; None when x is the whole sequence.
        """
        down, *middle, up = self.stages
        down_memory, *middle_memory, up_memory = memory.stages if memory else [None] * len(self.stages)
        down_shift, *middle_shifts, up_shift = shifts
        skipped = down(x, down_shift, mask, down_memory)  # [B, n, C]
        x = down.join(skipped, down_memory)
        for stage, shift, kept in zip(middle, middle_shifts, middle_memory, strict=True):
            x = stage(x, shift, mask, kept)
        x = up.join(up(torch.cat((x, skipped), dim=2), up_shift, mask, up_memory), up_memory)  # [B, n, 2 C] -> [B, n, C]
        return causal(self.final_proj, self.final_block(x, memory.final if memory else None), None)
