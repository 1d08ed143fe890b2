"""The duplex predictor's network: a small causal convolution over the user's sound, one transformer layer, a softmax.

    mel [b, t, 8, 40] -> conv, conv -> [b, t, d]   the front: 80 ms of sound as one vector, reaching back 70 ms further
    beside [b, t, s]  (pitch, level, voice, agent, words)
      both -> linear -> one transformer layer over the last `window` ticks -> logits [b, t, 4] (duplex.scenario: WAIT, RESPOND, YIELD, KEEP)

Offline is one long step of a fresh state: `forward(state, mel, beside)` takes any number of ticks and gives what single ticks give. The
state is the caller's; distance in time is told to attention by a slope per head (ALiBi), so a conversation has no end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from duplex.errors import ConfigError
from duplex.predictor_features import BANDS, FRAMES, STATE

CLASSES = 4


@dataclass(frozen=True)
class NetConfig:
    """Shape of the network; part of the weights' file."""

    width: int = 128
    """Width of the transformer layer."""
    heads: int = 4
    """Attention heads."""
    inner: int = 384
    """Width of the feed-forward part."""
    front: int = 48
    """Channels of the first convolution."""
    window: int = 64
    """Ticks that attention reaches back, the present one included."""
    dropout: float = 0.1
    """In training."""

    def __post_init__(self) -> None:
        if self.width % self.heads or self.window < 2 or min(self.width, self.inner, self.front) < 1:
            raise ConfigError("predictor net: width must be a multiple of heads, window at least 2, and all sizes positive.")


@dataclass(slots=True)
class NetState:
    """What the network remembers of b conversations."""

    frames: Tensor
    """[b, 40, 3] the newest mel frames."""
    halves: Tensor
    """[b, front, 4] the newest results of the first convolution."""
    keys: Tensor
    """[b, h, w, e] of the newest ticks; w at most window - 1."""
    values: Tensor
    """[b, h, w, e]"""


class FloorNet(nn.Module):
    """Shapes: b conversations, t ticks, d width, h heads, e = d / h."""

    slopes: Tensor

    def __init__(self, config: NetConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or NetConfig()
        self.conv1 = nn.Conv1d(BANDS, c.front, 5, stride=2)
        self.conv2 = nn.Conv1d(c.front, c.width, 8, stride=4)
        self.enter = nn.Linear(c.width + STATE, c.width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(c.width) for _ in range(3))
        self.qkv = nn.Linear(c.width, 3 * c.width)
        self.out = nn.Linear(c.width, c.width)
        self.up, self.down = nn.Linear(c.width, c.inner), nn.Linear(c.inner, c.width)
        self.head = nn.Linear(c.width, CLASSES)
        self.drop = nn.Dropout(c.dropout)
        self.register_buffer("slopes", 2.0 ** -(2.0 * torch.arange(c.heads) + 1), persistent=False)

    def open(self, batch: int = 1) -> NetState:
        """A fresh state."""
        c, like = self.config, self.head.weight
        nothing = like.new_zeros(batch, c.heads, 0, c.width // c.heads)
        return NetState(like.new_zeros(batch, BANDS, 3), like.new_zeros(batch, c.front, 4), nothing, nothing)

    def forward(self, state: NetState, mel: Tensor, beside: Tensor) -> Tensor:
        """mel [b, t, 8, 40], beside [b, t, s] -> logits [b, t, 4]; the state moves on."""
        x = self.drop(functional.gelu(self.enter(torch.cat([self._front(state, mel), beside], -1))))
        x = x + self.drop(self._attend(state, self.norm1(x)))
        x = x + self.drop(self.down(functional.gelu(self.up(self.norm2(x)))))
        logits: Tensor = self.head(self.norm3(x))
        return logits

    def _front(self, state: NetState, mel: Tensor) -> Tensor:
        batch, ticks = mel.shape[:2]
        frames = torch.cat([state.frames, mel.reshape(batch, ticks * FRAMES, BANDS).transpose(1, 2)], -1)  # [b, 40, 3 + 8 t]
        halves = torch.cat([state.halves, functional.gelu(self.conv1(frames))], -1)  # [b, front, 4 + 4 t]
        state.frames, state.halves = frames[:, :, -3:].detach(), halves[:, :, -4:].detach()
        return functional.gelu(self.conv2(halves)).transpose(1, 2)  # [b, t, d]

    def _attend(self, state: NetState, x: Tensor) -> Tensor:
        c, (batch, ticks) = self.config, x.shape[:2]
        q, k, v = self.qkv(x).view(batch, ticks, 3, c.heads, -1).permute(2, 0, 3, 1, 4)  # each [b, h, t, e]
        keys, values = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)  # [b, h, w + t, e]
        past = keys.shape[2] - ticks
        back = torch.arange(past, past + ticks)[:, None] - torch.arange(past + ticks)[None]  # [t, w + t] ticks ago
        bias = -self.slopes[:, None, None] * back
        bias = bias.masked_fill((back < 0) | (back >= c.window), float("-inf"))
        seen = functional.scaled_dot_product_attention(q, keys, values, attn_mask=bias.to(q.dtype)[None])
        state.keys, state.values = (kept[:, :, 1 - c.window :].detach() for kept in (keys, values))
        mixed: Tensor = self.out(seen.transpose(1, 2).reshape(batch, ticks, c.width))
        return mixed
