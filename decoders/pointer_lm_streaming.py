"""The pointer LM at work: codes one by one while the text is still being written, on one CPU thread.

Notable: the layers are one graph (`pointer_lm_graph`), and the last layers of the heads are taken apart, so that a code costs one call and
a few small products. When a block of codes may begin, what the pointer may walk on and when it must wait are those of training
(`pointer_lm_layout`): they depend on the text alone, so codes are the same however the text was pushed.

Each digit and the advance are drawn from their own softmax, sharpened by a temperature.

Shapes: n positions now, d width, q digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoders.pointer_lm import CODE, START, TEXT, TEXT_END, Head, PointerLM, PointerLMConfig
from decoders.pointer_lm_graph import Past, PointerGraph

Rows = NDArray[np.float32]
"""Positions [n, d]."""
CODE_S = 4 * 256 / 22_050
"""Length of a code."""
REMEMBERED = 10
"""Text positions that are read again when the context was full."""


@dataclass(frozen=True, slots=True)
class PointerDrawConfig:
    """How codes are drawn."""

    temperature: float = 0.3
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

    past: Past
    draws: np.random.Generator
    before: tuple[int, ...]
    """Digits of the code before; the levels for the first."""
    unread: list[Rows]
    """[n, d] each: the end of the sequence, of which the past knows nothing yet."""
    length: int = 0
    """Positions in the past."""
    text: list[Rows] = field(default_factory=list)
    """[1, d] each: text positions that are not in the sequence yet."""
    newest: list[Rows] = field(default_factory=list)
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

    def __init__(self, net: PointerLM, config: PointerDrawConfig | None = None, *, int8: bool = True) -> None:
        """net: is taken apart, not kept. int8: False for exact floats."""
        self.sizes: PointerLMConfig = net.config
        self.config = config or PointerDrawConfig()
        self.most_dwell = math.ceil(self.config.longest_phone_s / CODE_S)
        self.graph = PointerGraph(net, self.config.max_positions, int8=int8)
        heads = cast(list[Head], list(net.chain.heads))
        self.outer = [(_floats(head.outer.weight), _floats(head.outer.bias)) for head in heads]
        inner = torch.cat([head.inner.weight for head in heads])  # [heads * inner, d]
        told = _floats(net.chain.drawn @ inner.T)  # what each drawn digit adds inside all heads
        starts = np.cumsum((0, *self.sizes.levels))
        self.told = [told[start:end] for start, end in pairwise(starts.tolist())]
        self.kinds, self.features = _floats(net.kinds), _floats(net.features)
        self.feature_starts = self.sizes.feature_starts
        self.projector = net.projector

    @torch.inference_mode()
    def project(self, embeddings: Tensor, hidden: Tensor | None) -> Rows:
        """The LLM's embeddings and hidden states [n, h] -> text positions [n, d]."""
        return _floats(self.projector(embeddings, hidden)) + self.kinds[TEXT]

    def open(self, seed: int = 0) -> PointerState:
        """A fresh sequence."""
        return PointerState(self.graph.open(), np.random.default_rng(seed), self.sizes.levels, unread=[self._start])

    @property
    def _start(self) -> Rows:
        return self.kinds[START : START + 1]

    def take_text(self, state: PointerState, rows: Rows) -> None:
        """Text positions [n, d], from `project`."""
        state.text.extend(np.split(rows, len(rows)))

    def take_phones(self, state: PointerState, phones: Sequence[int], need: int) -> None:
        """Phones that are known once `need` text positions of the sequence have been read. `need` never falls."""
        state.phones.extend(phones)
        state.need.extend([need] * len(phones))

    def end_text(self, state: PointerState) -> None:
        """No more text or phones will come."""
        state.text.append(self.kinds[TEXT_END : TEXT_END + 1])
        state.text_ended = True

    def step(self, state: PointerState) -> Written | None:
        """The next code; None when it needs more text, or when all has been said (`state.ended`).

        Raises ValueError for a network that computed no number.
        """
        if not self._may_write(state):
            return None
        phone = state.pointer
        digits, advance = self._draw(state, self._forward(state, self._code_position(state)))
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

    def _code_position(self, state: PointerState) -> Rows:
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
        return self.features[rows].sum(0, keepdims=True) + self.kinds[CODE]

    def _forward(self, state: PointerState, position: Rows) -> Rows:
        """Run what is unread and one more position [1, d]; what the heads' first layers make of the newest state, [heads * inner]."""
        if state.length + sum(map(len, state.unread)) + 1 > self.config.max_positions:
            state.length, state.unread = 0, [self._start, *state.newest]
        x = np.concatenate([*state.unread, position])
        inside = self.graph.run(state.past, x, state.length)
        state.length, state.unread = state.length + len(x), []
        return inside

    def _draw(self, state: PointerState, inside: Rows) -> tuple[tuple[int, ...], int]:
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


def _floats(value: Tensor) -> Rows:
    return cast(Rows, value.detach().float().numpy())


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
