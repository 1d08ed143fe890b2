"""The pointer LM at work: codes one by one while the text is still being written, on one CPU thread.

Notable: int8 products with the norms' gains folded into them, keys and values in buffers made once, and the last layers of the heads taken
apart, so that a code costs one pass and a few small products. When a block of codes may begin, what the pointer may walk on and when
it must wait are those of training (`pointer_lm_layout`): they depend on the text alone, so codes are the same however the text was pushed.

Each digit and the advance are drawn from their own softmax, sharpened by a temperature.

Shapes: n positions now, t positions in all, d width, e head width, q digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from decoders.int8 import Int8Linear, quantize_rows
from decoders.pointer_lm import CODE, START, TEXT, TEXT_END, Block, Head, PointerLM, PointerLMConfig, rotation

CODE_S = 4 * 256 / 22_050
"""Length of a code."""
REMEMBERED = 10
"""Text positions that are read again when the context was full."""


@dataclass(frozen=True, slots=True)
class PointerDrawConfig:
    """How codes are drawn."""

    temperature: float = 0.8
    """Of the digits; 0 always takes the likeliest, 1 is the network's own distribution."""
    advance_temperature: float = 0.8
    """Of the pointer's advance."""
    top_p: float = 0.95
    """The likeliest values of a digit, until their probabilities have added up to this."""
    longest_phone_s: float = 2.0
    """A phone that lasts this long is left."""
    max_positions: int = 768
    """Room for text and codes of a sequence; beyond it the network goes on with nothing but its newest text."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 2.0 or not 0.0 <= self.advance_temperature <= 2.0:
            raise ValueError("the voice's temperatures must be in 0 to 2")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"the voice's top_p must be above 0 and at most 1, not {self.top_p}")
        if self.longest_phone_s < CODE_S or self.max_positions < 64:
            raise ValueError("the voice needs phones of at least 50 ms and room for 64 positions")


@dataclass(frozen=True, slots=True)
class Written:
    """One code."""

    digits: tuple[int, ...]
    """[q]"""
    phone: int
    """Index of the phone, among those of the sequence, that it begins in."""


@dataclass(slots=True)
class PointerState:
    """One sequence being spoken, owned by the caller."""

    keys: Tensor
    """[layers, heads, e, max]"""
    values: Tensor
    """[layers, heads, max, e]"""
    draws: np.random.Generator
    before: tuple[int, ...]
    """Digits of the code before; the levels for the first."""
    unread: list[Tensor]
    """[n, d] each: the end of the sequence, of which the buffers know nothing yet."""
    length: int = 0
    """Positions in the buffers."""
    text: list[Tensor] = field(default_factory=list)
    """[1, d] each: text positions that are not in the sequence yet."""
    newest: list[Tensor] = field(default_factory=list)
    """The last text positions that are."""
    read: int = 0
    """Text positions in the sequence."""
    text_ended: bool = False
    phones: list[int] = field(default_factory=list)
    need: list[int] = field(default_factory=list)
    """Text positions that must have been read before each phone is known."""
    known: int = 0
    """Phones that are known in this block."""
    pointer: int = 0
    dwell: int = 0
    block: int = 0
    """Codes that may still come in this block."""
    ended: bool = False
    """Nothing more will be said."""


class PointerDecoder:
    """One set of weights, shared by all states; no two threads at once."""

    def __init__(self, net: PointerLM, config: PointerDrawConfig | None = None, engine: str | None = "auto") -> None:
        """net: is taken apart, not kept. engine: of `Int8Linear`; None for plain floats of int8 weights, "float" for exact ones."""
        self.sizes: PointerLMConfig = net.config
        self.config = config or PointerDrawConfig()
        self.most_dwell = math.ceil(self.config.longest_phone_s / CODE_S)
        self.head_width = self.sizes.width // self.sizes.heads

        def linear(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
            weight = weight.detach().float()
            if engine == "float":
                exact = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
                exact.weight = nn.Parameter(weight, requires_grad=False)
                if bias is not None:
                    exact.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
                return exact.forward
            return Int8Linear(*quantize_rows(weight), None if bias is None else bias.detach(), engine).forward

        self.layers = []
        for block in cast(list[Block], list(net.blocks)):
            qkv = block.qkv.weight.detach().float() * block.attention_norm.weight
            qkv[: self.sizes.width] *= self.head_width**-0.5
            up = block.up.weight.detach().float() * block.mlp_norm.weight
            parts = (linear(qkv), linear(block.out.weight), linear(up, block.up.bias), linear(block.down.weight, block.down.bias))
            self.layers.append(parts)
        heads = cast(list[Head], list(net.chain.heads))
        inner = torch.cat([head.inner.weight for head in heads]).detach().float()  # [heads * inner, d]
        self.inner = linear(inner * net.norm.weight, torch.cat([head.inner.bias for head in heads]))
        self.outer = [(head.outer.weight.detach().float().numpy(), head.outer.bias.detach().float().numpy()) for head in heads]
        told = (net.chain.drawn.detach().float() @ inner.T).numpy()  # what each drawn digit adds inside all heads
        starts = np.cumsum((0, *self.sizes.levels))
        self.told = [told[start:end] for start, end in pairwise(starts.tolist())]
        kinds = net.kinds.detach().float()
        self.start, self.text_kind, self.text_end = kinds[START : START + 1], kinds[TEXT], kinds[TEXT_END : TEXT_END + 1]
        self.features, self.code_kind = net.features.detach().float().numpy(), kinds[CODE].numpy()
        self.feature_starts = self.sizes.feature_starts
        cos, sin = rotation(torch.arange(self.config.max_positions), self.head_width)
        self.cos, self.sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [max, 1, e]
        self.projector = net.projector

    @torch.inference_mode()
    def project(self, embeddings: Tensor, hidden: Tensor | None) -> Tensor:
        """The LLM's embeddings and hidden states [n, h] -> text positions [n, d]."""
        rows: Tensor = self.projector(embeddings, hidden) + self.text_kind
        return rows

    def open(self, seed: int = 0) -> PointerState:
        """A fresh sequence."""
        most, layers, heads = self.config.max_positions, len(self.layers), self.sizes.heads
        keys, values = torch.empty(layers, heads, self.head_width, most), torch.empty(layers, heads, most, self.head_width)
        return PointerState(keys, values, np.random.default_rng(seed), self.sizes.levels, unread=[self.start])

    def take_text(self, state: PointerState, rows: Tensor) -> None:
        """Text positions [n, d], from `project`."""
        state.text.extend(rows.split(1))

    def take_phones(self, state: PointerState, phones: Sequence[int], need: int) -> None:
        """Phones that are known once `need` text positions of the sequence have been read. `need` never falls."""
        state.phones.extend(phones)
        state.need.extend([need] * len(phones))

    def end_text(self, state: PointerState) -> None:
        """No more text or phones will come."""
        state.text.append(self.text_end)
        state.text_ended = True

    def step(self, state: PointerState) -> Written | None:
        """The next code; None when it needs more text, or when all has been said (`state.ended`).

        Raises ValueError for a network that computed no number.
        """
        if not self._may_write(state):
            return None
        phone = state.pointer
        with torch.inference_mode():
            inside = self._forward(state, self._code_position(state))
        digits, advance = self._draw(state, inside)
        state.block -= 1
        state.before = digits
        if advance == 0 and state.dwell + 1 >= self.most_dwell:
            advance = 1
        state.dwell = 0 if advance else state.dwell + 1
        state.pointer += advance
        return Written(digits, phone)

    def _may_write(self, state: PointerState) -> bool:
        """Read groups of text until a code may be written; False when that needs more text, or there is no more to say."""
        while not state.ended:
            all_read = state.text_ended and not state.text
            if all_read and state.pointer >= len(state.phones):
                state.ended = True
            elif state.pointer < state.known and (state.block > 0 or all_read):
                return True
            elif len(state.text) >= self.sizes.group or (state.text_ended and state.text):
                self._read_group(state)
            else:
                break
        return False

    def _read_group(self, state: PointerState) -> None:
        group, state.text = state.text[: self.sizes.group], state.text[self.sizes.group :]
        state.unread += group
        state.newest = (state.newest + group)[-REMEMBERED:]
        state.read += len(group)
        state.block = self.sizes.block
        while state.known < len(state.phones) and state.need[state.known] <= state.read:
            state.known += 1

    def _code_position(self, state: PointerState) -> Tensor:
        """[1, d]"""
        sizes = self.sizes
        all_read = state.text_ended and not state.text
        beyond = sizes.nothing if all_read else sizes.unknown
        phones = [
            sizes.nothing if place < 0 else state.phones[place] if place < state.known else beyond
            for place in range(state.pointer - sizes.before, state.pointer + sizes.after + 1)
        ]
        values = (*state.before, *phones, min(state.dwell, sizes.dwell - 1))
        rows = [start + value for start, value in zip(self.feature_starts, values, strict=True)]
        return torch.from_numpy(self.features[rows].sum(0, keepdims=True) + self.code_kind)

    def _forward(self, state: PointerState, position: Tensor) -> NDArray[np.float32]:
        """Run what is unread and one more position [1, d]; what the heads' first layers make of the newest state."""
        if state.length + sum(rows.shape[0] for rows in state.unread) + 1 > self.config.max_positions:
            state.length, state.unread = 0, [self.start, *state.newest]
        x = torch.cat([*state.unread, position]) if state.unread else position
        state.unread = []
        n, start = x.shape[0], state.length
        end, heads = start + n, self.sizes.heads
        cos, sin = self.cos[start:end], self.sin[start:end]
        mask = None if n == 1 else torch.full((n, end), float("-inf")).triu(start + 1)
        for index, (qkv_layer, out, up, down) in enumerate(self.layers):
            qkv = qkv_layer(_normed(x)).view(n, 3 * heads, -1)  # [n, 3 heads, e]
            qk = qkv[:, : 2 * heads]
            qk = torch.addcmul(qk * cos, qk.roll(self.head_width // 2, -1), sin)
            state.keys[index, :, :, start:end] = qk[:, heads:].permute(1, 2, 0)
            state.values[index, :, start:end] = qkv[:, 2 * heads :].transpose(0, 1)
            scores = torch.bmm(qk[:, :heads].transpose(0, 1), state.keys[index, :, :, :end])  # [heads, n, t]
            if mask is not None:
                scores += mask
            mixed = torch.bmm(scores.softmax(-1), state.values[index, :, :end])  # [heads, n, e]
            x = x + out(mixed.transpose(0, 1).reshape(n, -1))
            x = x + down(F.gelu(up(_normed(x)), approximate="tanh"))
        state.length = end
        inside: NDArray[np.float32] = self.inner(_normed(x[-1:]))[0].numpy()
        return inside

    def _draw(self, state: PointerState, inside: NDArray[np.float32]) -> tuple[tuple[int, ...], int]:
        """Digits one after the other, then the advance. inside [heads * inner]."""
        width, last = self.sizes.head_width, len(self.sizes.levels)
        drawn: list[int] = []
        for index, (weight, bias) in enumerate(self.outer):
            x = inside[index * width : (index + 1) * width]
            bent = 0.5 * x * (1.0 + np.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))  # GELU
            scores = weight @ bent + bias
            cold = self.config.temperature if index < last else self.config.advance_temperature
            drawn.append(draw(scores.tolist(), cold, self.config.top_p, state.draws))
            if index < last:
                inside = inside + self.told[index][drawn[-1]]
        return tuple(drawn[:-1]), drawn[-1]


def _normed(x: Tensor) -> Tensor:
    """x [n, d] with a mean square of 1. By hand for one row: torch's own takes three times as long."""
    if x.shape[0] > 1:
        return F.rms_norm(x, (x.shape[1],), None, 1e-6)
    row = x[0]
    return x * (float(torch.dot(row, row)) / x.shape[1] + 1e-6) ** -0.5


def draw(scores: list[float], temperature: float, top_p: float, draws: np.random.Generator) -> int:
    """One of a few values by its scores. Advances `draws` by one, but for a temperature of 0. ValueError for scores that are no numbers."""
    highest = max(scores)
    if not math.isfinite(highest):
        raise ValueError("the voice LM computed no number")
    if temperature == 0.0:
        return scores.index(highest)
    likely = [math.exp((score - highest) / temperature) for score in scores]
    order = sorted(range(len(likely)), key=likely.__getitem__, reverse=True)
    total, most = 0.0, sum(likely) * top_p
    nucleus: list[int] = []
    for index in order:
        nucleus.append(index)
        total += likely[index]
        if total >= most:
            break
    point = draws.random() * total
    for index in nucleus:
        point -= likely[index]
        if point <= 0.0:
            return index
    return nucleus[-1]
