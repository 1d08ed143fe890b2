"""Qwen2 made of transformers' own modules, with a key/value cache that can be rolled back for nothing.

The modules, their configuration and their rotary frequencies are transformers'; the loop over the layers is ours. Two reasons. The
cache: keys, values and final states live in buffers allocated once, and a context is a length into them, so a snapshot is a number
and a rollback an assignment. And speed: one token through transformers' forward spends as long in Python as in the kernels.
q, k, v are one product and so are gate and up, which saves calls.

Shapes: n tokens now, t tokens in all, d hidden, h query heads, g key/value heads, r = h / g, e head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM


@dataclass(slots=True, weakref_slot=True)
class KeyValues:
    """The buffers of one context. Rows at and after the context's length are meaningless."""

    keys: Tensor
    """[layers, g, max_tokens, e]"""
    values: Tensor
    """[layers, g, max_tokens, e]"""
    hidden: Tensor
    """[max_tokens, d], the final-layer state after the last norm, at each position."""
    slot: int = -1
    """Where they lie in the buffers of `qwen_steps.SharedSteps`, of which they are views; -1 for buffers of their own."""


def fuse(model: Qwen2ForCausalLM) -> Qwen2ForCausalLM:
    """Join q, k, v and gate, up of a float model, in place: afterwards only `forward` below can run it. Returns it."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        if hasattr(attention, "q_proj"):
            attention.qkv_proj = _join(attention.q_proj, attention.k_proj, attention.v_proj)
            mlp.gate_up_proj = _join(mlp.gate_proj, mlp.up_proj)
            del attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj
    return model


def _join(*parts: nn.Linear) -> nn.Linear:
    weight = torch.cat(tuple(part.weight for part in parts))
    biases = tuple(part.bias for part in parts if part.bias is not None)
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(biases), device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if biases:
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined


class Qwen:
    """The weights, shared by all contexts. Not a context itself: `forward` writes only into the buffers that it is given."""

    def __init__(self, model: Qwen2ForCausalLM, max_tokens: int) -> None:
        """model: fused, by `fuse` or by the int8 loader, in evaluation mode."""
        config: Qwen2Config = model.config
        self.model = model
        model.train(False)
        self.max_tokens = max_tokens
        self.layers = config.num_hidden_layers
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads or self.heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.hidden_size = config.hidden_size
        self.eps = config.rms_norm_eps
        weight = model.model.norm.weight
        self.device, self.dtype = weight.device, weight.dtype
        # Rotary tables for the query and key heads together, the 1/sqrt(e) of attention folded into the query heads. rotate_half is
        # a roll by half the head whose sign is folded into the sine.
        positions = torch.arange(max_tokens, device=self.device)[None]
        cos, sin = model.model.rotary_emb(torch.zeros(1, dtype=torch.float32, device=self.device), positions)
        sign = torch.ones(self.head_dim, device=self.device)
        sign[: self.head_dim // 2] = -1.0
        scale = torch.ones(self.heads + self.kv_heads, 1, device=self.device)
        scale[: self.heads] = self.head_dim**-0.5
        self.cos = (cos[0][:, None] * scale).to(self.dtype)  # [max_tokens, h + g, e]
        self.sin = ((sin[0] * sign)[:, None] * scale).to(self.dtype)

    def buffers(self) -> KeyValues:
        """Fresh buffers for one context (the memory is touched only as the context grows)."""
        shape = (self.layers, self.kv_heads, self.max_tokens, self.head_dim)
        return KeyValues(
            keys=torch.empty(shape, dtype=self.dtype, device=self.device),
            values=torch.empty(shape, dtype=self.dtype, device=self.device),
            hidden=torch.empty(self.max_tokens, self.hidden_size, dtype=self.dtype, device=self.device),
        )

    @torch.inference_mode()
    def embed(self, ids: Tensor) -> Tensor:
        """[n] int64 -> [n, d]."""
        embedded: Tensor = self.model.model.embed_tokens(ids.to(self.device))
        return embedded

    @torch.inference_mode()
    def forward(self, x: Tensor, cache: KeyValues, start: int, places: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run embeddings x [n, d] at positions start .. start + n, reading the cache before `start` and writing it from there.

        places: [n] positions, and mask: [n, start + n] additive, where x is a tree and not what follows.
        """
        n, half = x.shape[0], self.head_dim // 2
        end, groups, rotated = start + n, self.heads // self.kv_heads, self.heads + self.kv_heads
        at = slice(start, end) if places is None else places
        cos, sin = self.cos[at], self.sin[at]
        if mask is None and n > 1:
            mask = _causal_mask(n, start, x)
        for index, layer in enumerate(self.model.model.layers):
            h = F.rms_norm(x, (self.hidden_size,), layer.input_layernorm.weight, self.eps)
            qkv = layer.self_attn.qkv_proj(h).view(n, -1, self.head_dim)  # [n, h + 2g, e]
            qk = qkv[:, :rotated]
            qk = torch.addcmul(qk * cos, qk.roll(half, -1), sin)
            cache.keys[index, :, start:end] = qk[:, self.heads :].transpose(0, 1)
            cache.values[index, :, start:end] = qkv[:, rotated:].transpose(0, 1)
            q = qk[:, : self.heads].view(n, self.kv_heads, groups, self.head_dim).permute(1, 2, 0, 3)
            q = q.reshape(self.kv_heads, groups * n, self.head_dim)  # [g, r * n, e]
            scores = torch.bmm(q, cache.keys[index, :, :end].transpose(1, 2))  # [g, r * n, t]
            if mask is not None:
                scores.view(self.kv_heads, groups, n, end).add_(mask)
            mixed = torch.bmm(scores.softmax(-1), cache.values[index, :, :end])  # [g, r * n, e]
            mixed = mixed.view(self.kv_heads, groups, n, self.head_dim).permute(2, 0, 1, 3).reshape(n, -1)
            x = x + layer.self_attn.o_proj(mixed)
            h = F.rms_norm(x, (self.hidden_size,), layer.post_attention_layernorm.weight, self.eps)
            gate, up = layer.mlp.gate_up_proj(h).chunk(2, dim=-1)
            x = x + layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)
        cache.hidden[start:end] = F.rms_norm(x, (self.hidden_size,), self.model.model.norm.weight, self.eps)

    def states(self, x: Tensor) -> Tensor:
        """The same layers for training: embeddings x [b, n, d] from position 0 -> final states [b, n, d], with gradients, no cache.

        Causal, so sequences of a batch may be padded on the right with anything.
        """
        n, half = x.shape[1], self.head_dim // 2
        rotated = self.heads + self.kv_heads
        cos, sin = self.cos[:n], self.sin[:n]
        for layer in self.model.model.layers:
            h = F.rms_norm(x, (self.hidden_size,), layer.input_layernorm.weight, self.eps)
            qkv = layer.self_attn.qkv_proj(h).unflatten(-1, (-1, self.head_dim))  # [b, n, h + 2g, e]
            qk = qkv[:, :, :rotated]
            qk = (qk * cos + qk.roll(half, -1) * sin).transpose(1, 2)  # [b, h + g, n, e]
            q, k, v = qk[:, : self.heads], qk[:, self.heads :], qkv[:, :, rotated:].transpose(1, 2)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)  # [b, h, n, e]
            x = x + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
            h = F.rms_norm(x, (self.hidden_size,), layer.post_attention_layernorm.weight, self.eps)
            gate, up = layer.mlp.gate_up_proj(h).chunk(2, dim=-1)
            x = x + layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)
        return F.rms_norm(x, (self.hidden_size,), self.model.model.norm.weight, self.eps)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [n, d] -> [n, vocabulary] float32."""
        scores: Tensor = self.model.lm_head(hidden)
        return scores.float()


def _causal_mask(n: int, start: int, like: Tensor) -> Tensor:
    """[n, start + n], -inf where a token would see one after it."""
    return torch.full((n, start + n), float("-inf"), dtype=like.dtype, device=like.device).triu(start + 1)
