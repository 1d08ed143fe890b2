"""Qwen2 for thousands of replies at once: plain tensors, one static cache, one function a step, so that a step can be recorded as a graph.

The agent's own model (`decoders.qwen`) serves one conversation; this one fills a GPU. The layers are the same: root-mean-square norms,
rotary positions, grouped queries, SwiGLU. Products run in the compute type, sums along the layers in float32, and what is handed out
are the final states after the last norm, as `agent.thinker.Step.hidden` has them.

Shapes: b slots, n tokens, s positions of the cache, d hidden, h query heads, g key/value heads, r = h / g, e head width, v rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.qwen_blocks import EMBEDDING, Blocks


@dataclass(frozen=True)
class Layer:
    """The weights of one layer."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(slots=True)
class Prefix:
    """What all prompts of one kind begin with, computed once."""

    keys: Tensor
    """[layers, g, p, e]"""
    values: Tensor
    """[layers, g, p, e]"""


class BatchNet:
    """The weights, and the cache of `slots` replies of at most `positions` tokens, prompt included."""

    def __init__(self, blocks: Blocks, slots: int, positions: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        shape = blocks.shape
        self.device, self.dtype, self.epsilon = device, dtype, shape.epsilon
        self.heads, self.kv_heads, self.hidden = shape.heads, shape.kv_heads, shape.hidden
        self.width = shape.hidden // shape.heads
        self.positions = positions

        def weight(*names: str) -> Tensor:
            return torch.cat([blocks.weight(name, device).to(dtype) for name in names])

        self.embedding = weight(EMBEDDING)  # [v, d]
        self.final_norm = blocks.weight("output_norm.weight", device)
        self.layers = [
            Layer(
                input_norm=blocks.weight(f"blk.{index}.attn_norm.weight", device),
                qkv=weight(*(f"blk.{index}.attn_{part}.weight" for part in "qkv")),
                qkv_bias=weight(*(f"blk.{index}.attn_{part}.bias" for part in "qkv")),
                out=weight(f"blk.{index}.attn_output.weight"),
                post_norm=blocks.weight(f"blk.{index}.ffn_norm.weight", device),
                gate_up=weight(f"blk.{index}.ffn_gate.weight", f"blk.{index}.ffn_up.weight"),
                down=weight(f"blk.{index}.ffn_down.weight"),
            )
            for index in range(shape.layers)
        ]
        frequency = shape.rope_base ** (-torch.arange(0, self.width, 2, device=device).double() / self.width)
        angle = torch.arange(positions, device=device).double()[:, None] * frequency
        self.cos, self.sin = angle.cos().float(), angle.sin().float()  # [s, e / 2]
        cache = (len(self.layers), slots, self.kv_heads, positions, self.width)
        self.keys = torch.zeros(cache, device=device, dtype=dtype)
        self.values = torch.zeros(cache, device=device, dtype=dtype)
        self._places = torch.arange(positions, device=device)
        self._slots = torch.arange(slots, device=device)

    def prefix(self, rows: Tensor) -> Prefix:
        """The keys and values of a common beginning, rows [p] of the embedding."""
        empty = torch.zeros(len(self.layers), self.kv_heads, 0, self.width, device=self.device, dtype=self.dtype)
        keys, values, _ = self._read(rows[None], Prefix(empty, empty))
        return Prefix(keys[:, 0], values[:, 0])

    def prefill(self, prefix: Prefix, rows: Tensor, lengths: Tensor, slots: Tensor) -> Tensor:
        """Read prompts that go on from `prefix`: rows [n, m] padded at the right, lengths [n], into `slots` [n]. Final states [n, d]."""
        keys, values, x = self._read(rows, prefix)
        before, count = prefix.keys.shape[2], rows.shape[1]
        self.keys[:, slots, :, :before] = prefix.keys[:, None]
        self.values[:, slots, :, :before] = prefix.values[:, None]
        self.keys[:, slots, :, before : before + count] = keys
        self.values[:, slots, :, before : before + count] = values
        return self._norm(x[torch.arange(len(rows), device=self.device), lengths - 1], self.final_norm)

    def states(self, prefix: Prefix, rows: Tensor) -> Tensor:
        """Final states [n, m, d] at every place of texts that go on from `prefix`: rows [n, m], padded at the right."""
        return self._norm(self._read(rows, prefix)[2], self.final_norm)

    def step(self, rows: Tensor, places: Tensor) -> Tensor:
        """One more token in every slot: rows [b], at positions `places` [b]. Final states float32 [b, d]. Safe to record."""
        x = self.embedding[rows].float()
        cos, sin = self.cos[places][:, None], self.sin[places][:, None]
        reach = (self._places <= places[:, None])[:, None, None]  # [b, 1, 1, s]
        mask = torch.where(reach, 0.0, float("-inf")).to(self.dtype)
        mask = mask.expand(-1, self.kv_heads, self.heads // self.kv_heads, -1)
        for index, layer in enumerate(self.layers):
            q, k, v = self._heads(layer, x, cos, sin)  # [b, h or g, e]
            self.keys[index, self._slots, :, places] = k
            self.values[index, self._slots, :, places] = v
            # The r query heads that share a key head stand where the queries of a sequence would.
            grouped = q.reshape(len(q), self.kv_heads, -1, self.width)  # [b, g, r, e]
            y = F.scaled_dot_product_attention(grouped, self.keys[index], self.values[index], attn_mask=mask)
            x = self._rest(layer, x, y.reshape(len(y), -1))
        return self._norm(x, self.final_norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final states [n, d] -> float32 [n, v]."""
        return F.linear(hidden.to(self.dtype), self.embedding).float()

    def _read(self, rows: Tensor, prefix: Prefix) -> tuple[Tensor, Tensor, Tensor]:
        """Whole prompts [n, m]: keys and values [layers, n, g, m, e], and states before the last norm [n, m, d]."""
        n, m = rows.shape
        before = prefix.keys.shape[2]
        x = self.embedding[rows.reshape(-1)].float()  # [n m, d]
        places = torch.arange(before, before + m, device=self.device)
        cos, sin = self.cos[places].repeat(n, 1)[:, None], self.sin[places].repeat(n, 1)[:, None]
        mask = self._places[None, : before + m] <= places[:, None]  # [m, p + m]
        shared = self.heads // self.kv_heads
        all_keys, all_values = [], []
        for index, layer in enumerate(self.layers):
            q, k, v = (part.reshape(n, m, -1, self.width).transpose(1, 2) for part in self._heads(layer, x, cos, sin))
            all_keys.append(k)
            all_values.append(v)
            keys = torch.cat([prefix.keys[index].expand(n, -1, -1, -1), k], 2).repeat_interleave(shared, 1)
            values = torch.cat([prefix.values[index].expand(n, -1, -1, -1), v], 2).repeat_interleave(shared, 1)
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)  # [n, h, m, e]
            x = self._rest(layer, x, y.transpose(1, 2).reshape(n * m, -1))
        return torch.stack(all_keys), torch.stack(all_values), x.reshape(n, m, -1)

    def _heads(self, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States [n, d] -> turned queries [n, h, e], turned keys [n, g, e], values [n, g, e]."""
        joined = F.linear(self._norm(x, layer.input_norm).to(self.dtype), layer.qkv, layer.qkv_bias)
        joined = joined.reshape(len(x), -1, self.width)
        turned, v = joined[:, : -self.kv_heads].float(), joined[:, -self.kv_heads :]
        first, second = turned.chunk(2, -1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(self.dtype)
        return turned[:, : self.heads], turned[:, self.heads :], v

    def _rest(self, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
        x = x + F.linear(attended, layer.out).float()
        gate, up = F.linear(self._norm(x, layer.post_norm).to(self.dtype), layer.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, layer.down).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.epsilon)
