"""One token for each of many contexts in one forward pass of `decoders.qwen`, replayed as a CUDA graph where there is a GPU.

Notable: the contexts lie side by side in one pair of buffers, and which of them take part, and how long each is, are tensors. So shapes do
not depend on the conversations: a step is padded to a number of rows and to a span of positions out of a few, and for each pair of these
the kernels are recorded once and replayed at once, which saves a thousand launches per token. Where recording fails, the same kernels
are launched one by one, and `trouble` says why.

A context is still what `Qwen.forward` takes (its buffers are views), so prompts are read as before, and between steps.

Shapes: b rows, s span, n contexts, t positions of a context; d, h, g, r, e as in `decoders.qwen`.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from decoders.qwen import KeyValues, Qwen

ROWS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of rows that a step may have; a larger step is made of several."""
LEAST_SPAN = 256
"""Shortest span of positions; the others are its doubles."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Plan:
    """The tensors of one shape of step. With a graph they are where it reads and writes."""

    x: Tensor
    """[b, d]"""
    places: Tensor
    """[2, b] int64: slots above positions."""
    graph: torch.cuda.CUDAGraph | None = None
    hidden: Tensor | None = None
    """[b, d]"""
    scores: Tensor | None = None
    """[b, outputs] float32"""


class SharedSteps:
    """Room for some contexts of one `Qwen`, and the steps that they take together."""

    def __init__(self, qwen: Qwen, contexts: int, head: Callable[[Tensor], Tensor], graphs: bool = True) -> None:
        """head: final states [b, d] -> scores [b, outputs]. graphs: record steps where there is a GPU. ValueError for no contexts."""
        if contexts < 1:
            raise ValueError(f"contexts is {contexts}; choose 1 or more")
        self.qwen, self.head = qwen, head
        self.recording = graphs and qwen.device.type == "cuda"
        self.trouble = ""
        """Why steps are not replayed as graphs, when that was tried."""
        shape = (qwen.layers, contexts + 1, qwen.kv_heads, qwen.max_tokens, qwen.head_dim)  # the last slot is for rows of padding
        # Zeros, since what is masked is still multiplied: anything finite will do.
        self.keys = torch.zeros(shape, dtype=qwen.dtype, device=qwen.device)
        self.values = torch.zeros_like(self.keys)
        self.hidden = torch.zeros(contexts + 1, qwen.max_tokens, qwen.hidden_size, dtype=qwen.dtype, device=qwen.device)
        self._free = list(range(contexts - 1, -1, -1))
        self._plans: dict[tuple[int, int], _Plan] = {}

    def holds(self, buffers: KeyValues) -> bool:
        """Whether these lie here (and not in buffers of their own, nor where contexts lay before)."""
        return buffers.slot >= 0 and buffers.keys.untyped_storage().data_ptr() == self.keys.untyped_storage().data_ptr()

    @property
    def free(self) -> int:
        """Contexts that may still be opened."""
        return len(self._free)

    def open(self) -> KeyValues:
        """Buffers for one context; of its own when all room is taken. The room is free again when nobody holds them."""
        try:
            slot = self._free.pop()
        except IndexError:
            return self.qwen.buffers()
        buffers = KeyValues(self.keys[:, slot], self.values[:, slot], self.hidden[slot], slot)
        weakref.finalize(buffers, self._free.append, slot).atexit = False
        return buffers

    @torch.inference_mode()
    def run(self, x: Tensor, slots: Sequence[int], starts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Embeddings x [b, d], one per context, at positions `starts` -> final states [b, d], scores [b, outputs] float32.

        Keys, values and states are in the contexts' buffers afterwards. slots: those of their `KeyValues`, all different.
        """
        if len(slots) > ROWS[-1]:
            first = self.run(x[: ROWS[-1]], slots[: ROWS[-1]], starts[: ROWS[-1]])
            rest = self.run(x[ROWS[-1] :], slots[ROWS[-1] :], starts[ROWS[-1] :])
            return torch.cat((first[0], rest[0])), torch.cat((first[1], rest[1]))
        count = len(slots)
        rows = next(rows for rows in ROWS if rows >= count)
        span = LEAST_SPAN
        while span <= max(starts):
            span *= 2
        plan = self._plan(rows, min(span, self.qwen.max_tokens))
        padding = rows - count
        places = torch.tensor([[*slots, *[self.keys.shape[1] - 1] * padding], [*starts, *[0] * padding]])
        plan.x[:count].copy_(x)
        plan.places.copy_(places)
        if plan.graph is None:
            hidden, scores = self._forward(plan.x, plan.places, min(span, self.qwen.max_tokens))
            return hidden[:count], scores[:count]
        plan.graph.replay()
        assert plan.hidden is not None and plan.scores is not None
        return plan.hidden[:count].clone(), plan.scores[:count].clone()

    def prepare(self, rows: int, tokens: int) -> None:
        """Record now what steps of up to `rows` contexts of up to `tokens` positions will replay, so that no conversation waits for it."""
        span = LEAST_SPAN
        spans = [min(span, self.qwen.max_tokens)]
        while span < min(tokens, self.qwen.max_tokens):
            span *= 2
            spans.append(min(span, self.qwen.max_tokens))
        for size in (size for size in ROWS if size < 2 * rows):
            for span in spans:
                self._plan(size, span)

    def _plan(self, rows: int, span: int) -> _Plan:
        plan = self._plans.get((rows, span))
        if plan is None:
            qwen = self.qwen
            places = torch.zeros(2, rows, dtype=torch.long, device=qwen.device)
            places[0] = self.keys.shape[1] - 1
            plan = _Plan(torch.zeros(rows, qwen.hidden_size, dtype=qwen.dtype, device=qwen.device), places)
            if self.recording:
                try:
                    self._record(plan, span)
                except RuntimeError as error:
                    self.recording, self.trouble = False, str(error).splitlines()[0]
                    log.warning("steps of the language model run without CUDA graphs, more slowly: %s", self.trouble)
                    plan.graph = None
            self._plans[rows, span] = plan
        return plan

    @torch.inference_mode()
    def _record(self, plan: _Plan, span: int) -> None:
        with torch.cuda.device(self.qwen.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # once without recording: libraries set themselves up
                self._forward(plan.x, plan.places, span)
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                plan.hidden, plan.scores = self._forward(plan.x, plan.places, span)
            plan.graph = graph

    def _forward(self, x: Tensor, places: Tensor, span: int) -> tuple[Tensor, Tensor]:
        """[b, d], slots and positions [2, b] -> [b, d], [b, outputs]; as `Qwen.forward` for each row."""
        qwen = self.qwen
        rows, half, rotated = x.shape[0], qwen.head_dim // 2, qwen.heads + qwen.kv_heads
        slots, at = places[0], places[1]
        cos, sin = qwen.cos[at], qwen.sin[at]  # [b, h + g, e]
        later = torch.arange(span, device=x.device) > at[:, None]  # [b, s]
        mask = torch.zeros(rows, span, dtype=x.dtype, device=x.device).masked_fill_(later, float("-inf"))
        mask = mask[:, None, None].expand(-1, qwen.kv_heads, qwen.heads // qwen.kv_heads, -1)  # [b, g, r, s]
        for index, layer in enumerate(qwen.model.model.layers):
            h = F.rms_norm(x, (qwen.hidden_size,), layer.input_layernorm.weight, qwen.eps)
            qkv = layer.self_attn.qkv_proj(h).view(rows, -1, qwen.head_dim)  # [b, h + 2g, e]
            qk = qkv[:, :rotated]
            qk = torch.addcmul(qk * cos, qk.roll(half, -1), sin)
            keys, values = self.keys[index], self.values[index]  # [n, g, t, e]
            keys[slots, :, at] = qk[:, qwen.heads :]
            values[slots, :, at] = qkv[:, rotated:]
            q = qk[:, : qwen.heads].reshape(rows, qwen.kv_heads, -1, qwen.head_dim)  # [b, g, r, e]
            seen, said = keys[:, :, :span].index_select(0, slots), values[:, :, :span].index_select(0, slots)  # [b, g, s, e]
            mixed = F.scaled_dot_product_attention(q, seen, said, attn_mask=mask, scale=1.0)  # [b, g, r, e]
            x = x + layer.self_attn.o_proj(mixed.reshape(rows, -1))
            h = F.rms_norm(x, (qwen.hidden_size,), layer.post_attention_layernorm.weight, qwen.eps)
            gate, up = layer.mlp.gate_up_proj(h).chunk(2, dim=-1)
            x = x + layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)
        hidden = F.rms_norm(x, (qwen.hidden_size,), qwen.model.model.norm.weight, qwen.eps)
        self.hidden[slots, at] = hidden
        return hidden, self.head(hidden)
