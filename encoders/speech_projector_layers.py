"""The layers of the speech projector: attention in chunks and convolutions that look back, as streams.

Legend: B batch, T positions, W width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

KeysValues = tuple[Tensor, Tensor]  # [B, H, up to left chunks, W/H] each


class Lookback(nn.Module):
    """A convolution over time that sees what is new and a little before it."""

    def __init__(self, width: int, size: int, stride: int = 1, each: bool = False) -> None:
        """each: every channel by itself."""
        super().__init__()
        self.tail, self.stride, self.each = size - stride, stride, each
        self.weight = nn.Parameter(torch.zeros(size, width) if each else torch.randn(size * width, width) * (size * width) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, tail: Tensor | None, drop: int = 0) -> tuple[Tensor, Tensor]:
        """[B, T, W], the tail of the step before (None at the start) -> [B, T / stride, W], the tail without the newest `drop` of x."""
        before = x.new_zeros(len(x), self.tail, x.shape[2]) if tail is None else tail
        seen = torch.cat((before, x), 1)
        if self.each:
            made = functional.conv1d(seen.transpose(1, 2), self.weight.T[:, None], self.bias, groups=x.shape[2]).transpose(1, 2)
        else:
            size = self.tail + self.stride
            windows = seen.unfold(1, size, self.stride).transpose(2, 3).flatten(2)  # [B, T / stride, size W]
            made = windows @ self.weight + self.bias
        end = seen.shape[1] - drop
        return made, seen[:, end - self.tail : end]


class Adapted(nn.Linear):
    """A linear layer as it was published, and beside it two thin ones that are learnt (LoRA, Hu et al. 2021)."""

    def __init__(self, inside: int, outside: int, rank: int, bias: bool = True) -> None:
        """rank: between the two thin ones; they change nothing at first."""
        super().__init__(inside, outside, bias)
        self.down: nn.Parameter | None = nn.Parameter(torch.randn(rank, inside) * inside**-0.5)
        self.up: nn.Parameter | None = nn.Parameter(torch.zeros(outside, rank))

    def forward(self, x: Tensor) -> Tensor:
        made = functional.linear(x, self.weight, self.bias)
        if self.down is None or self.up is None:
            return made
        return made + functional.linear(functional.linear(x, self.down), self.up)

    @torch.no_grad()
    def fold(self) -> None:
        """Make one layer of the three, which is quicker and can't be taught any more."""
        if self.down is not None and self.up is not None:
            self.weight += self.up @ self.down
            self.down = self.up = None


class Layer(nn.Module):
    """A pre-norm transformer layer over chunks; Whisper's names. turn: rotary positions in the attention. rank: of what is learnt beside
    its linear layers, 0 for nothing.
    """

    def __init__(self, width: int, heads: int, ffn: int, turn: bool, rank: int = 0) -> None:
        super().__init__()

        def linear(inside: int, outside: int, bias: bool = True) -> nn.Linear:
            return Adapted(inside, outside, rank, bias) if rank else nn.Linear(inside, outside, bias)

        self.heads, self.turn = heads, turn
        self.attn_norm = nn.LayerNorm(width)
        self.query = linear(width, width)
        self.key = linear(width, width, bias=False)
        self.value = linear(width, width)
        self.out = linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = linear(width, ffn)
        self.mlp_out = linear(ffn, width)

    def forward(
        self, x: Tensor, past: KeysValues | None, mask: Tensor | None, at: int, keep: int, drop: int = 0, only: slice | None = None
    ) -> tuple[Tensor, KeysValues]:
        """[B, T, W], what came before, mask [T, past + T] bool, position of the first -> [B, T, W], the newest `keep` keys and values.

        drop: the newest positions, whose keys and values are not kept. only: the positions that are asked for, where not all are; the
        mask has rows for these.
        """
        y = self.attn_norm(x)
        x, asked = (x, y) if only is None else (x[:, only], y[:, only])
        q, k, v = self._heads(self.query(asked)), self._heads(self.key(y)), self._heads(self.value(y))  # [B, H, T, W/H]
        if self.turn:
            q, k = _rotated(q, at), _rotated(k, at)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(x))))
        end = k.shape[2] - drop
        return x, (k[:, :, max(end - keep, 0) : end], v[:, :, max(end - keep, 0) : end])

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class OwnLayer(Layer):
    """A layer with rotary positions and a convolution before its attention."""

    def __init__(self, width: int, heads: int, ffn: int, reach: int) -> None:
        super().__init__(width, heads, ffn, turn=True)
        self.near_norm = nn.LayerNorm(width)
        self.near = Lookback(width, reach, each=True)


def chunk_mask(count: int, before: int, left: int, size: int, device: torch.device) -> Tensor | None:
    """[count size, (before + count) size] bool: a position sees its own chunk and `left` before; None where that is everything."""
    if count == 1:
        return None
    rows = torch.arange(count, device=device).repeat_interleave(size)[:, None] + before
    columns = torch.arange(before + count, device=device).repeat_interleave(size)[None, :]
    return (columns <= rows) & (columns >= rows - left)


def _rotated(x: Tensor, at: int) -> Tensor:
    """[B, H, T, d] with rotary positions from `at` on."""
    half = x.shape[3] // 2
    rates = 1000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(at, at + x.shape[2], device=x.device)[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, 3)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), 3)
