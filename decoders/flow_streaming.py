"""What a causal network remembers between steps, so that a hop costs the same at the end of a long reply as at its start.

Notable: both memories are append-only and hold nothing but what the network itself computed, so a network that runs over a sequence
in pieces gives what it gives in one go. A fork shares what is there at no cost: keys and values are copied when the fork first adds
to them. Attention is block-causal on an absolute grid: a position sees its whole chunk and everything before it, so what was
computed for a complete chunk never changes. With a window it sees its chunk and that many positions before it; older ones are forgotten.

Shapes: B rows, n positions now, m positions in all, C channels, h heads, d head width, k kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(slots=True)
class Past:
    """The last frames that came into a causal convolution."""

    frames: Tensor | None = None
    """[B, k - 1, C]; None before the first, where silence (zeros) is seen."""

    def fork(self) -> Past:
        """A memory with the same content; the tensor is replaced at each step, never written, so it is shared."""
        return Past(self.frames)


@dataclass(slots=True)
class KeyValues:
    """Keys and values of one attention layer, in buffers that are longer than what is in use."""

    keys: Tensor | None = None
    """[B, h, capacity, d]"""
    values: Tensor | None = None
    """[B, h, capacity, d]"""
    length: int = 0
    """Positions in use; rows at and after it are meaningless."""
    most: int = 0
    """Newest positions that are kept from one step to the next; 0 for all."""

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add [B, h, n, d] each; returns all that are kept and these, [B, h, m, d] each."""
        if self.most:
            if self.keys is not None and self.values is not None:
                keys, values = torch.cat((self.keys, keys), dim=2), torch.cat((self.values, values), dim=2)
            self.keys, self.values = (
                keys[:, :, -self.most :],
                values[:, :, -self.most :],
            )  # replaced, never written, so a fork shares them
            self.length = self.keys.shape[2]
            return keys, values
        start, self.length = self.length, self.length + keys.shape[2]
        if self.keys is None or self.values is None or self.length > self.keys.shape[2]:
            capacity = self.length + self.length // 4
            self.keys = _grown(self.keys, keys, start, capacity)
            self.values = _grown(self.values, values, start, capacity)
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def fork(self) -> KeyValues:
        """A memory with the same content. Its buffers have no room left, so its first `extend` moves it to buffers of its own."""
        if self.keys is None or self.values is None:
            return KeyValues(most=self.most)
        return KeyValues(self.keys[:, :, : self.length], self.values[:, :, : self.length], self.length, self.most)


def _grown(old: Tensor | None, new: Tensor, length: int, capacity: int) -> Tensor:
    buffer = new.new_empty((*new.shape[:2], capacity, new.shape[3]))
    if old is not None:
        buffer[:, :, :length] = old[:, :, :length]
    return buffer


def causal(conv: nn.Conv1d, x: Tensor, past: Past | None) -> Tensor:
    """`conv` (stride 1) over [B, n, C], where output i sees inputs i - k + 1 .. i: [B, n, C'].

    past: what was there before x, and is brought up to date; None means zeros before, and nothing kept.
    """
    seen = conv.kernel_size[0] - 1
    if past is None or past.frames is None:
        joined = F.pad(x, (0, 0, seen, 0))
    else:
        joined = torch.cat((past.frames, x), dim=1)  # [B, k - 1 + n, C]
    if past is not None and seen:
        past.frames = joined[:, -seen:].clone()  # a copy: a view would keep all of x alive
    return windowed(conv, joined)


def windowed(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """`conv` without padding, [B, n + k - 1, C] -> [B, n, C'], as one product: short inputs with channels last stay where they are."""
    windows = x.unfold(1, conv.kernel_size[0], 1).flatten(2)  # [B, n, C, k] -> [B, n, C * k]
    return F.linear(windows, conv.weight.flatten(1), conv.bias)


def attention_mask(
    start: int,
    n: int,
    chunk: int | None,
    kept: Tensor | None = None,
    device: torch.device | None = None,
    *,
    window: int = 0,
    first: int = 0,
) -> Tensor | None:
    """Which keys (first .. start + n) each query (start .. start + n) sees, True for those it does: [n, m], or [B, 1, n, m] with `kept`.

    chunk: positions of a block on the absolute grid; None means that all see all. window: positions before its chunk that a query sees;
    0 for all. kept: [B, m], False where a row is padding. None is returned where nothing is hidden, which is the case in every step of
    a single chunk that begins at its beginning.
    """
    mask = None
    one = chunk is None or start // chunk == (start + n - 1) // chunk
    if chunk is not None and n and not (one and (not window or first >= start // chunk * chunk - window)):
        begins = torch.arange(start, start + n, device=device) // chunk * chunk  # [n], where each query's chunk begins
        key = torch.arange(first, start + n, device=device)
        mask = key < (begins + chunk).unsqueeze(1)  # [n, m]
        if window:
            mask &= key >= (begins - window).unsqueeze(1)
    if kept is not None:
        rows = kept[:, None, None, :]  # [B, 1, 1, m]
        mask = rows.expand(-1, 1, n, -1) if mask is None else mask & rows
        if window:
            mask = mask | ~kept[:, None, -n:, None]  # padding far behind its row would see nothing, and nothing is no number
    return mask
