"""SenseVoiceSmall's network: four query vectors, a SANM encoder of 50 + 20 layers, and a CTC head that also writes four labels.

Notable: SANM is self-attention with a memory beside it: a depthwise convolution (FSMN) over the values, added to what attention found.
The first layer widens nothing back: 560 in, 512 out, so it alone has no residual around its attention. The input is scaled by the root
of the *output* width, positions count from 1, and sines and cosines lie side by side instead of interleaved. Everything is bidirectional:
a stream encodes its turn again (see `sensevoice_ears`), each time with the queries in front and positions from 1.

Attribute names give the keys of the official checkpoint (917 tensors). Nothing but the checkpoint's tensors is kept, so the module may be
built on the meta device and filled.

Legend: B batch, T features (16.67 per second), L = T + 4 positions, F features (560), D width (512), H heads (4), V vocabulary (25055).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

QUERIES = 4
"""Vectors in front of the sound; as many output positions carry labels instead of text."""
LANGUAGE_QUERIES = {"auto": 0, "zh": 3, "en": 4, "yue": 7, "ja": 11, "ko": 12, "nospeech": 13}
"""Rows of `embed` that tell the language, or leave it to be found."""
_EVENT_QUERY, _EMOTION_QUERY = 1, 2
_WITH_ITN_QUERY, _WITHOUT_ITN_QUERY = 14, 15
BLANK = 0


@dataclass(frozen=True, slots=True)
class SenseVoiceConfig:
    """Sizes of the network; the defaults are SenseVoiceSmall's."""

    input_size: int = 560
    """Numbers in a feature."""
    output_size: int = 512
    """Width of the encoder."""
    attention_heads: int = 4
    """Heads of each attention."""
    linear_units: int = 2048
    """Width inside the feed-forward parts."""
    num_blocks: int = 50
    """Layers before the first norm, the one that changes the width among them."""
    tp_blocks: int = 20
    """Layers after it."""
    kernel_size: int = 11
    """Positions that the memory's convolution spans; odd, so that it is centred."""
    vocab_size: int = 25055
    """Outputs of the CTC head."""
    query_rows: int = 16
    """Rows of the table of queries."""

    def __post_init__(self) -> None:
        sizes = (self.output_size, self.attention_heads, self.linear_units, self.num_blocks, self.vocab_size)
        if min(sizes) < 1 or self.tp_blocks < 0:
            raise ValueError("sizes must be at least 1 (tp_blocks 0)")
        if self.output_size % self.attention_heads:
            raise ValueError("output_size must be a multiple of attention_heads")
        if self.input_size % 2 or self.input_size < 4:
            raise ValueError("input_size must be even and at least 4: half of it are sines, half cosines")
        if self.kernel_size % 2 == 0 or self.kernel_size < 1:
            raise ValueError("kernel_size must be odd")
        if self.query_rows <= _WITHOUT_ITN_QUERY:
            raise ValueError(f"query_rows must be above {_WITHOUT_ITN_QUERY}, the last query in use")


class SanmAttention(nn.Module):
    """Self-attention with an FSMN memory over its values."""

    def __init__(self, input_size: int, config: SenseVoiceConfig) -> None:
        super().__init__()
        size = config.output_size
        self.heads = config.attention_heads
        self.linear_q_k_v = nn.Linear(input_size, 3 * size)
        self.linear_out = nn.Linear(size, size)
        self.fsmn_block = nn.Conv1d(size, size, config.kernel_size, padding=config.kernel_size // 2, groups=size, bias=False)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """[B, L, in] -> [B, L, D]. valid: [B, L] bool, False on padding; None when there is none."""
        q, k, v = self.linear_q_k_v(x).chunk(3, dim=-1)  # [B, L, D] each
        keys = None if valid is None else valid[:, None, None, :]  # [B, 1, 1, L]
        q, k, vh = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))  # [B, H, L, D/H]
        found = functional.scaled_dot_product_attention(q, k, vh, attn_mask=keys)
        found = found.transpose(1, 2).flatten(2)  # [B, L, D]
        return self.linear_out(found) + self._memory(v, valid)

    def _memory(self, v: Tensor, valid: Tensor | None) -> Tensor:
        mask = None if valid is None else valid[:, :, None].to(v.dtype)  # [B, L, 1]
        v = v if mask is None else v * mask
        memory = self.fsmn_block(v.transpose(1, 2)).transpose(1, 2) + v  # [B, L, D]
        return memory if mask is None else memory * mask


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between."""

    def __init__(self, config: SenseVoiceConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.output_size, config.linear_units)
        self.w_2 = nn.Linear(config.linear_units, config.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        y: Tensor = self.w_2(functional.relu(self.w_1(x)))
        return y


class SanmLayer(nn.Module):
    """A pre-norm layer; where it changes the width, nothing is added to what attention found."""

    def __init__(self, input_size: int, config: SenseVoiceConfig) -> None:
        super().__init__()
        self.self_attn = SanmAttention(input_size, config)
        self.feed_forward = FeedForward(config)
        self.norm1 = nn.LayerNorm(input_size)
        self.norm2 = nn.LayerNorm(config.output_size)
        self.widens = input_size != config.output_size

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """[B, L, in] -> [B, L, D]."""
        y = self.self_attn(self.norm1(x), valid)
        x = y if self.widens else x + y
        return x + self.feed_forward(self.norm2(x))


class SanmEncoder(nn.Module):
    """The stack of layers, with a norm after the first 50 and one at the end."""

    def __init__(self, config: SenseVoiceConfig) -> None:
        super().__init__()
        size = config.output_size
        self.scale = math.sqrt(size)
        self.encoders0 = nn.ModuleList([SanmLayer(config.input_size, config)])
        self.encoders = nn.ModuleList([SanmLayer(size, config) for _ in range(config.num_blocks - 1)])
        self.after_norm = nn.LayerNorm(size)
        self.tp_encoders = nn.ModuleList([SanmLayer(size, config) for _ in range(config.tp_blocks)])
        self.tp_norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """[B, L, F] -> [B, L, D]."""
        x = x * self.scale
        x = x + positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
        for layer in (*self.encoders0, *self.encoders):
            x = layer(x, valid)
        x = self.after_norm(x)
        for layer in self.tp_encoders:
            x = layer(x, valid)
        y: Tensor = self.tp_norm(x)
        return y


def positions(count: int, size: int, device: torch.device) -> Tensor:
    """[L, F] sines (first half) and cosines (second half) of positions 1 to L, float32."""
    rates = torch.exp(torch.arange(size // 2, device=device) * (-math.log(10_000.0) / (size // 2 - 1)))  # [F/2]
    angles = torch.arange(1, count + 1, device=device)[:, None] * rates  # [L, F/2]
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class CtcHead(nn.Module):
    """The linear layer over the vocabulary, under its official name."""

    def __init__(self, config: SenseVoiceConfig) -> None:
        super().__init__()
        self.ctc_lo = nn.Linear(config.output_size, config.vocab_size)

    def forward(self, encoded: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, V] logits."""
        logits: Tensor = self.ctc_lo(encoded)
        return logits


class SenseVoice(nn.Module):
    """The whole network. Holds no state, so any number of conversations and threads share one."""

    def __init__(self, config: SenseVoiceConfig | None = None) -> None:
        super().__init__()
        self.config = config or SenseVoiceConfig()
        self.embed = nn.Embedding(self.config.query_rows, self.config.input_size)
        self.encoder = SanmEncoder(self.config)
        self.ctc = CtcHead(self.config)

    def forward(self, features: Tensor, lengths: Tensor | None = None, language: str = "auto", itn: bool = True) -> Tensor:
        """[B, T, F] normalised features -> [B, T + 4, D]: four label positions, then one position per feature.

        lengths: [B] features that are sound, the rest being padding; None when all are. language: a key of LANGUAGE_QUERIES.
        itn: ask for punctuation and written numbers. Raises ValueError for an unknown language.
        """
        x = self.prefixed(features, language, itn)  # [B, L, F]
        if lengths is None:
            return self.encoder(x, None)
        valid = torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None] + QUERIES  # [B, L]
        return self.encoder(x, valid)

    def prefixed(self, features: Tensor, language: str = "auto", itn: bool = True) -> Tensor:
        """[B, T, F] -> [B, T + 4, F], the query vectors in front. Raises ValueError for an unknown language."""
        if language not in LANGUAGE_QUERIES:
            raise ValueError(f"language must be one of {', '.join(LANGUAGE_QUERIES)}, not {language!r}")
        rows = [LANGUAGE_QUERIES[language], _EVENT_QUERY, _EMOTION_QUERY, _WITH_ITN_QUERY if itn else _WITHOUT_ITN_QUERY]
        queries = self.embed.weight[rows]  # [4, F]
        return torch.cat((queries.expand(len(features), -1, -1), features), dim=1)


def collapse(best: Tensor) -> Tensor:
    """[T] most likely output per position -> [n] ids as CTC reads them: repeats once, blanks dropped."""
    once = torch.unique_consecutive(best)
    return once[once != BLANK]
