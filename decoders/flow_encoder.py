"""Speech codes to frames: the upsampling conformer encoder of CosyVoice2's flow, without its convolution modules, which are off there.

Notable: the relative positions are exact without a table of distances and without shifting. An attention score holds
(q_i + v) . W r(i - j), where r is sines and cosines of the distance; by the addition theorem that is a product of something that
belongs to i and something that belongs to j, so the whole bias is one matrix product, for any start and any number of keys. Angles are
computed in float64, so a position far into a reply is as exact as the first.

Source: CosyVoice2-0.5B `flow.pt`, keys `encoder.*`; Dai et al. 2019, "Transformer-XL", for the attention.

Shapes: B rows, n codes now, m codes in all, C width, h heads, d head width, R frames per code, L codes of look-ahead.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoders.flow_streaming import KeyValues, Past, attention_mask, causal, windowed


@dataclass(frozen=True, slots=True)
class FlowEncoderConfig:
    """Sizes of the encoder; the defaults are CosyVoice2's."""

    width: int = 512
    """Channels throughout; the width of the code embedding too."""
    heads: int = 8
    """Attention heads; they share the width equally."""
    feed_forward: int = 2048
    """Hidden width of the feed-forward layers."""
    blocks: int = 6
    """Layers at the rate of the codes."""
    up_blocks: int = 4
    """Layers at the rate of the frames."""
    lookahead: int = 3
    """Codes of the future that each code is shown."""

    def __post_init__(self) -> None:
        for name in ("width", "heads", "feed_forward", "blocks", "up_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"flow.encoder.{name} must be at least 1, not {getattr(self, name)}")
        if self.width % (2 * self.heads):
            raise ValueError(f"flow.encoder.width must be a multiple of twice the heads ({2 * self.heads}), not {self.width}")
        if self.lookahead < 0:
            raise ValueError(f"flow.encoder.lookahead must be at least 0, not {self.lookahead}")


@dataclass(slots=True)
class EncoderMemory:
    """What the encoder keeps of a sequence: the last inputs of two convolutions, keys and values of every layer."""

    ahead: Past = field(default_factory=Past)
    up: Past = field(default_factory=Past)
    layers: list[KeyValues] = field(default_factory=list)
    up_layers: list[KeyValues] = field(default_factory=list)

    def fork(self) -> EncoderMemory:
        """The same content, to go on independently."""
        return EncoderMemory(
            self.ahead.fork(), self.up.fork(), [kv.fork() for kv in self.layers], [kv.fork() for kv in self.up_layers]
        )


@dataclass(frozen=True, slots=True)
class Places:
    """Sines and cosines of positions."""

    query_sin: Tensor
    """[n, C / 2] of the positions now."""
    query_cos: Tensor
    """[n, C / 2]"""
    keys: Tensor
    """[C, m], cosines above sines, of all positions from 0."""


@functools.lru_cache(maxsize=8)
def waves(width: int, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Cosines beside sines of positions 0 .. length: [length, C]. A table without weights, shared by all."""
    with torch.inference_mode(False):  # so that training can use what a conversation made
        rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float64, device="cpu") * (-math.log(10_000.0) / width))  # [C / 2]
        angles = torch.outer(torch.arange(length, dtype=torch.float64, device="cpu"), rates)  # [length, C / 2]
        return torch.cat((angles.cos(), angles.sin()), dim=1).to(device=device, dtype=dtype)


def places(start: int, n: int, width: int, like: Tensor) -> Places:
    """Positions start .. start + n as queries and 0 .. start + n as keys, on the device and in the type of `like`."""
    length = 1 << max(start + n - 1, 1023).bit_length()  # few lengths, so few tables
    table = waves(width, length, like.device, like.dtype)[: start + n]  # [m, C]
    cos, sin = table[start:].chunk(2, dim=1)
    return Places(sin, cos, table.T)


class RelativeAttention(nn.Module):
    """Attention whose scores know the distance between query and key."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, x: Tensor, at: Places, mask: Tensor | None, memory: KeyValues | None) -> Tensor:
        """[B, n, C] -> [B, n, C]."""
        query, key, value = (
            linear(x).unflatten(2, (self.heads, -1))  # [B, n, h, d]
            for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        key, value = key.transpose(1, 2), value.transpose(1, 2)  # [B, h, n, d]
        if memory is not None:
            key, value = memory.extend(key, value)  # [B, h, m, d]
        bias = self._distance_bias((query + self.pos_bias_v).transpose(1, 2), at)
        if mask is not None:
            bias = bias.masked_fill(~mask, -torch.inf)
        content = (query + self.pos_bias_u).transpose(1, 2)  # [B, h, n, d]
        mixed = F.scaled_dot_product_attention(content, key, value, attn_mask=bias)  # [B, h, n, d]
        return self.linear_out(mixed.transpose(1, 2).flatten(2))

    def _distance_bias(self, query: Tensor, at: Places) -> Tensor:
        """[B, h, n, d] -> [B, h, n, m], scaled as the scores are."""
        per_head = self.linear_pos.weight.unflatten(0, (self.heads, -1))  # [h, d, C]
        wave = query @ (per_head / math.sqrt(query.shape[-1]))  # [B, h, n, C]
        sine, cosine = wave[..., 0::2], wave[..., 1::2]  # what multiplies sin and cos of the distance, [B, h, n, C / 2]
        turned = (sine * at.query_sin + cosine * at.query_cos, cosine * at.query_sin - sine * at.query_cos)
        return torch.cat(turned, dim=-1) @ at.keys


class FeedForward(nn.Module):
    """Two linear layers with SiLU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, hidden)
        self.w_2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, C] -> [B, n, C]."""
        return self.w_2(F.silu(self.w_1(x)))


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each behind its norm and beside a residual."""

    def __init__(self, config: FlowEncoderConfig) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(config.width, config.heads)
        self.feed_forward = FeedForward(config.width, config.feed_forward)
        self.norm_ff = nn.LayerNorm(config.width, eps=1e-12)
        self.norm_mha = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, x: Tensor, at: Places, mask: Tensor | None, memory: KeyValues | None) -> Tensor:
        """[B, n, C] -> [B, n, C]."""
        x = x + self.self_attn(self.norm_mha(x), at, mask, memory)
        return x + self.feed_forward(self.norm_ff(x))


class Embed(nn.Module):
    """Linear, norm, and the scale sqrt(C) by which inputs outweigh positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.scale = math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, C] -> [B, n, C]."""
        return self.out(x) * self.scale


class Lookahead(nn.Module):
    """Two convolutions that show each code the next L, beside a residual."""

    def __init__(self, width: int, lookahead: int) -> None:
        super().__init__()
        self.lookahead = lookahead
        self.conv1 = nn.Conv1d(width, width, lookahead + 1)
        self.conv2 = nn.Conv1d(width, width, 3)

    def forward(self, x: Tensor, ahead: Tensor, past: Past | None) -> Tensor:
        """[B, n, C] and what follows, [B, <= L, C], filled up with zeros -> [B, n, C]."""
        shown = F.pad(torch.cat((x, ahead), dim=1), (0, 0, 0, self.lookahead - ahead.shape[1]))  # [B, n + L, C]
        return x + causal(self.conv2, F.leaky_relu(windowed(self.conv1, shown)), past)


class Upsample(nn.Module):
    """Each code R times, smoothed by a causal convolution over two codes of the past."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv1d(width, width, 2 * ratio + 1)

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        """[B, n, C] -> [B, n * R, C]."""
        return causal(self.conv, x.repeat_interleave(self.ratio, dim=1), past)


class FlowEncoder(nn.Module):
    """Embedded codes to frames, streaming or not."""

    def __init__(self, config: FlowEncoderConfig, ratio: int) -> None:
        """ratio: R."""
        super().__init__()
        self.config, self.ratio = config, ratio
        self.embed = Embed(config.width)
        self.pre_lookahead_layer = Lookahead(config.width, config.lookahead)
        self.encoders = nn.ModuleList(EncoderLayer(config) for _ in range(config.blocks))
        self.up_layer = Upsample(config.width, ratio)
        self.up_embed = Embed(config.width)
        self.up_encoders = nn.ModuleList(EncoderLayer(config) for _ in range(config.up_blocks))
        self.after_norm = nn.LayerNorm(config.width)

    def memory(self, window: int = 0) -> EncoderMemory:
        """Memory of a sequence that has not begun. window: as in `forward`."""
        config = self.config
        return EncoderMemory(
            layers=[KeyValues(most=window) for _ in range(config.blocks)],
            up_layers=[KeyValues(most=window * self.ratio) for _ in range(config.up_blocks)],
        )

    def forward(
        self,
        x: Tensor,
        ahead: Tensor | None = None,
        *,
        start: int = 0,
        chunk: int | None = None,
        window: int = 0,
        kept: Tensor | None = None,
        memory: EncoderMemory | None = None,
    ) -> Tensor:
        """Embedded codes [B, n, C] -> [B, n * R, C].

        ahead: [B, <= L, C], embedded codes that follow and are only looked at; where there are none the sequence ends. start: position
        of the first code; more than 0 needs the `memory` of those before. chunk: codes of a block of the chunk mask; None is full
        attention. window: codes before its chunk that a code sees, 0 for all. kept: [B, n], False where a row is padded at its end
        (start 0 only).
        """
        assert start == 0 or (memory is not None and kept is None), "a later step needs the memory of the earlier ones"
        n = x.shape[1]
        x = self.embed(x)
        ahead = self.embed(ahead) if ahead is not None else x[:, :0]
        if kept is not None:
            x = x * kept.unsqueeze(2)  # so that the end of a padded row looks ahead to zeros, as the end of a whole row does
        x = self.pre_lookahead_layer(x, ahead, memory.ahead if memory else None)
        x = self._run(self.encoders, x, start, chunk, window, kept, memory.layers if memory else None)
        x = self.up_embed(self.up_layer(x, memory.up if memory else None))  # [B, n * R, C]
        assert x.shape[1] == n * self.ratio
        up_kept = None if kept is None else kept.repeat_interleave(self.ratio, dim=1)
        up_chunk = None if chunk is None else chunk * self.ratio
        up_memory = memory.up_layers if memory else None
        x = self._run(self.up_encoders, x, start * self.ratio, up_chunk, window * self.ratio, up_kept, up_memory)
        return self.after_norm(x)

    def _run(
        self,
        layers: nn.ModuleList,
        x: Tensor,
        start: int,
        chunk: int | None,
        window: int,
        kept: Tensor | None,
        memory: list[KeyValues] | None,
    ) -> Tensor:
        first = start - memory[0].length if memory else 0  # the oldest position that is still seen; only distances matter
        at = places(start - first, x.shape[1], self.config.width, x)
        mask = attention_mask(start, x.shape[1], chunk, kept, x.device, window=window, first=first)
        for index, layer in enumerate(layers):
            x = layer(x, at, mask, memory[index] if memory else None)
        return x
