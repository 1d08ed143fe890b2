"""MinMo's input projector: encoder states, two by two, into the LLM's embedding space.

Notable: neighbours are stacked, a two-layer perceptron takes them to the LLM's width, and a few pre-norm transformer layers without
positions follow, whose feed-forward is narrower than the layer. Norms use 1e-12. Names are those of FunASR's `Transformer` adaptor, so
its checkpoints load, and what is trained here loads there. Padding is cleared first: it reaches neither a half-filled last stack nor
the attention, so a batch gives what its members give alone.

Legend: B batch, T encoder states, K = ceil(T / 2) outputs, E encoder width, M hidden width, D LLM width, H heads (8).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-12


@dataclass(frozen=True, slots=True)
class InputProjectorConfig:
    """Sizes of the projector; the defaults are those of MinMo's public development checkpoints, behind the 1280-wide large encoder."""

    encoder_dim: int = 1280
    """Width of the encoder's states: 512 behind SenseVoiceSmall."""
    llm_dim: int = 3584
    """Width of the LLM's embeddings: 3584 for Qwen2.5-7B."""
    ffn_dim: int = 2048
    """Width between the two linear layers in front."""
    downsample_rate: int = 2
    """States stacked into one output."""
    n_layer: int = 2
    """Transformer layers."""
    attention_heads: int = 8
    """Heads of each attention."""

    def __post_init__(self) -> None:
        sizes = (self.encoder_dim, self.llm_dim, self.ffn_dim, self.downsample_rate, self.attention_heads)
        if min(sizes) < 1 or self.n_layer < 0:
            raise ValueError("sizes must be at least 1 (n_layer 0)")
        if self.llm_dim % self.attention_heads or self.llm_dim % 4:
            raise ValueError("llm_dim must be a multiple of attention_heads and of 4")

    @property
    def block_ffn_dim(self) -> int:
        """Width inside the layers' feed-forward parts, a quarter of the LLM's."""
        return self.llm_dim // 4


class Attention(nn.Module):
    """Multi-head self-attention without positions."""

    def __init__(self, config: InputProjectorConfig) -> None:
        super().__init__()
        size = config.llm_dim
        self.heads = config.attention_heads
        self.linear_q = nn.Linear(size, size)
        self.linear_k = nn.Linear(size, size)
        self.linear_v = nn.Linear(size, size)
        self.linear_out = nn.Linear(size, size)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """[B, K, D] -> [B, K, D]. keys: [B, 1, 1, K] bool, which outputs may be attended to; None for all."""
        q, k, v = (
            linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for linear in (self.linear_q, self.linear_k, self.linear_v)
        )  # [B, H, K, D/H]
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        y: Tensor = self.linear_out(found.transpose(1, 2).flatten(2))  # [B, K, D]
        return y


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between."""

    def __init__(self, config: InputProjectorConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.llm_dim, config.block_ffn_dim)
        self.w_2 = nn.Linear(config.block_ffn_dim, config.llm_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, K, D] -> [B, K, D]."""
        y: Tensor = self.w_2(functional.relu(self.w_1(x)))
        return y


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: InputProjectorConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.feed_forward = FeedForward(config)
        self.norm1 = nn.LayerNorm(config.llm_dim, NORM_EPS)
        self.norm2 = nn.LayerNorm(config.llm_dim, NORM_EPS)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """[B, K, D] -> [B, K, D]."""
        x = x + self.self_attn(self.norm1(x), keys)
        return x + self.feed_forward(self.norm2(x))


class InputProjector(nn.Module):
    """The whole projector. Holds no state."""

    def __init__(self, config: InputProjectorConfig | None = None) -> None:
        super().__init__()
        self.config = config or InputProjectorConfig()
        self.linear1 = nn.Linear(self.config.downsample_rate * self.config.encoder_dim, self.config.ffn_dim)
        self.linear2 = nn.Linear(self.config.ffn_dim, self.config.llm_dim)
        self.blocks = nn.ModuleList([Block(self.config) for _ in range(self.config.n_layer)])

    def forward(self, states: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, T, E] encoder states -> [B, K, D] embeddings, and [B] how many of them are sound: ceil(length / 2).

        lengths: [B] states that are sound, the rest being padding, whose outputs mean nothing; None when all are.
        """
        rate, (batch, count) = self.config.downsample_rate, states.shape[:2]
        given = torch.full((batch,), count, device=states.device) if lengths is None else lengths.to(states.device)
        made = (given + rate - 1).div(rate, rounding_mode="floor")  # [B]
        keys = None
        if lengths is not None:
            padding = torch.arange(count, device=states.device) >= given[:, None]  # [B, T]
            states = states.masked_fill(padding[:, :, None], 0.0)
            outputs = -(-count // rate)
            keys = (torch.arange(outputs, device=states.device) < made[:, None].clamp(min=1))[:, None, None, :]  # [B, 1, 1, K]
        x = functional.pad(states, (0, 0, 0, -count % rate)).unflatten(1, (-1, rate)).flatten(2)  # [B, K, 2 E]
        x = self.linear2(functional.relu(self.linear1(x)))  # [B, K, D]
        for block in self.blocks:
            x = block(x, keys)
        return x, made
