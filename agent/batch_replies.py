"""Many questions to the LLM at once, answered with tokens and final hidden states.

Slots hold replies in the making; a slot whose reply has ended takes the next question, so the batch stays full. Between two looks at the
slots a block of steps runs without the host: on a GPU each step is recorded once as a graph (and run plainly where that fails).
Sampling is `agent.sampling.Sampler`'s, for all slots together: penalty, top k, temperature, top p.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.batch_net import BatchNet, Prefix
from agent.qwen_blocks import Blocks
from agent.sampling import SamplingConfig

_log = logging.getLogger(__name__)
_STEPS = 8  # between two looks at the slots
_PREFILL = 512  # prompts read together
_READ = 256  # given replies read together


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question, as token ids."""

    kind: int
    """Which of the common beginnings it goes on from."""
    ids: tuple[int, ...]
    """What follows that beginning, up to the opening of the reply."""


@dataclass(frozen=True, slots=True)
class Written:
    """A finished reply."""

    prompt: int
    """Its number among the prompts given."""
    tokens: NDArray[np.int32]
    """[n] without the end token."""
    hidden: NDArray[np.float16]
    """[n, d], the state each token was sampled from."""
    ended: bool
    """Whether the LLM ended it; otherwise it grew too long."""


class BatchWriter:
    """Writes replies in `slots` places at once."""

    def __init__(
        self,
        blocks: Blocks,
        beginnings: Sequence[Sequence[int]],
        ends: Sequence[int],
        *,
        sampling: SamplingConfig | None = None,
        banned: Sequence[int] = (),
        slots: int = 1024,
        most_prompt: int = 64,
        most_new: int = 64,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """beginnings: what prompts have in common (the system prompt), token ids; ends: tokens that end a reply.

        banned: tokens never written. most_prompt: tokens of a prompt after its beginning; longer ones are passed over.
        """
        self.sampling = sampling or SamplingConfig()
        self.device, self.most_prompt, self.most_new = device, most_prompt, most_new
        self._ids = torch.from_numpy(blocks.ids.astype(np.int64))
        self._row = {int(token): row for row, token in enumerate(blocks.ids)}
        longest = max(map(len, beginnings)) + most_prompt + most_new
        self.net = BatchNet(blocks, slots, -(-longest // 16) * 16, device, dtype)
        self._prefixes = [(len(ids), self._prefix(ids)) for ids in beginnings]
        rows = self.net.embedding.shape[0]
        self._end = torch.zeros(rows, dtype=torch.bool, device=device)
        self._end[[self._row[token] for token in ends]] = True
        self._banned = torch.zeros(rows, device=device)
        self._banned[[self._row[token] for token in banned if token in self._row]] = float("-inf")
        self._places = torch.zeros(slots, dtype=torch.long, device=device)
        self._count = torch.zeros(slots, dtype=torch.long, device=device)
        self._done = torch.ones(slots, dtype=torch.bool, device=device)
        self._ended = torch.zeros(slots, dtype=torch.bool, device=device)
        self._seen = torch.zeros(slots, rows, dtype=torch.bool, device=device)
        self._state = torch.zeros(slots, self.net.hidden, device=device)
        self._tokens = torch.zeros(slots, most_new, dtype=torch.long, device=device)
        self._hidden = torch.zeros(slots, most_new, self.net.hidden, dtype=torch.float16, device=device)
        self._all = torch.arange(slots, device=device)
        self._advance: Callable[[], None] | None = None

    @torch.inference_mode()
    def write(self, prompts: Sequence[Prompt], seed: int = 0, stop: Callable[[], bool] = lambda: False) -> Iterator[Written]:
        """Replies in the order in which they end. `stop`: asked now and then; replies in the making are then dropped."""
        torch.manual_seed(seed)
        owner = np.full(len(self._all), -1)
        self._done.fill_(True)
        waiting = iter(self._known(prompts))
        more = True
        while True:
            free = np.flatnonzero(owner < 0)
            if more and len(free) >= max(len(owner) // 8, 1):
                more = self._fill(waiting, free, owner)
            if not (owner >= 0).any() or stop():
                return
            advance = self._advance or self._record()
            for _ in range(_STEPS):
                advance()
            yield from self._harvest(owner)

    @torch.inference_mode()
    def read(self, pairs: Sequence[tuple[Prompt, Sequence[int]]]) -> Iterator[Written]:
        """Given replies as if the LLM had written them, with the states it would have had; what it has no rows for is passed over."""
        found: list[tuple[int, Prompt, list[int]]] = []
        for number, (prompt, tokens) in enumerate(pairs):
            rows = [self._row.get(token, -1) for token in (*prompt.ids, *tokens)]
            if prompt.ids and tokens and min(rows) >= 0 and len(rows) <= self.most_prompt + self.most_new:
                found.append((number, prompt, rows))
        found.sort(key=lambda one: (one[1].kind, len(one[2])))
        for kind, group in groupby(found, key=lambda one: one[1].kind):
            same = list(group)
            for at in range(0, len(same), _READ):
                part = same[at : at + _READ]
                padded = _padded([listed for _, _, listed in part]).to(self.device)
                states = self.net.states(self._prefixes[kind][1], padded).half().cpu().numpy()
                for index, (number, prompt, listed) in enumerate(part):
                    before = len(prompt.ids)
                    said = self._ids[listed[before:]].numpy().astype(np.int32)
                    yield Written(number, said, states[index, before - 1 : len(listed) - 1].copy(), True)

    def _known(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Prompt, list[int]]]:
        """Prompts whose tokens all have rows, and that are short enough."""
        for number, prompt in enumerate(prompts):
            rows = [self._row.get(token, -1) for token in prompt.ids]
            if 0 < len(rows) <= self.most_prompt and min(rows) >= 0:
                yield number, prompt, rows

    def _fill(self, waiting: Iterator[tuple[int, Prompt, list[int]]], free: NDArray[np.int64], owner: NDArray[np.int64]) -> bool:
        """Give free slots to waiting prompts; False when none are left."""
        by_kind: dict[int, list[tuple[int, list[int]]]] = {}
        left = list(free)
        for number, prompt, rows in waiting:
            slot = left.pop()
            owner[slot] = number
            by_kind.setdefault(prompt.kind, []).append((int(slot), rows))
            if not left:
                break
        for kind, chosen in by_kind.items():
            chosen.sort(key=lambda pair: len(pair[1]))
            for at in range(0, len(chosen), _PREFILL):
                self._prefill(kind, chosen[at : at + _PREFILL])
        return not left

    def _prefill(self, kind: int, chosen: Sequence[tuple[int, list[int]]]) -> None:
        before, prefix = self._prefixes[kind]
        lengths = torch.tensor([len(rows) for _, rows in chosen])
        rows = _padded([listed for _, listed in chosen])
        slots = torch.tensor([slot for slot, _ in chosen], device=self.device)
        lengths = lengths.to(self.device)
        self._state[slots] = self.net.prefill(prefix, rows.to(self.device), lengths, slots)
        self._places[slots] = lengths + before
        self._count[slots] = 0
        self._seen[slots] = False
        self._done[slots] = False
        self._ended[slots] = False

    def _prefix(self, ids: Sequence[int]) -> Prefix:
        with torch.inference_mode():
            return self.net.prefix(torch.tensor([self._row[token] for token in ids], device=self.device))

    def _step(self) -> None:
        """Every slot: draw a token from its state, note both, feed the token. Finished slots run along and change nothing."""
        drawn = self._draw(self.net.logits(self._state))
        ends = self._end[drawn]
        keeps = ~self._done & ~ends
        at = self._count.clamp(max=self.most_new - 1)
        self._tokens[self._all, at] = torch.where(keeps, drawn, self._tokens[self._all, at])
        self._hidden[self._all, at] = torch.where(keeps[:, None], self._state.half(), self._hidden[self._all, at])
        self._seen[self._all, drawn] |= keeps
        self._count += keeps
        self._ended |= ends & ~self._done
        self._done |= ends | (self._count >= self.most_new)
        self._state.copy_(self.net.step(drawn, self._places))
        self._places.copy_((self._places + 1).clamp(max=self.net.positions - 1))

    def _draw(self, scores: Tensor) -> Tensor:
        """Rows [b] from float32 scores [b, v]."""
        config = self.sampling
        scores = scores + self._banned
        if config.repetition_penalty > 1.0:
            lowered = torch.where(scores > 0, scores / config.repetition_penalty, scores * config.repetition_penalty)
            scores = torch.where(self._seen, lowered, scores)  # ends of a reply are never among those seen
        if config.temperature == 0.0:
            return scores.argmax(-1)
        best, rows = scores.topk(min(config.top_k, scores.shape[1]), -1)
        chance = (best / config.temperature).softmax(-1)
        chance = torch.where(chance.cumsum(-1) - chance < config.top_p, chance, 0.0)
        noise = torch.empty_like(chance).exponential_().clamp_min_(1e-10)
        return rows.gather(1, (chance / noise).argmax(-1, keepdim=True))[:, 0]

    def _record(self) -> Callable[[], None]:
        """The step, recorded as a graph where there is a GPU that can."""
        self._advance = self._step
        if not self.device.startswith("cuda"):
            return self._advance
        kept = [tensor.clone() for tensor in self._mutable()]
        try:
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    self._step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
            self._advance = graph.replay
        except RuntimeError as error:
            _log.warning("steps run one kernel at a time, because they could not be recorded (%s)", error)
        for tensor, before in zip(self._mutable(), kept, strict=True):
            tensor.copy_(before)
        return self._advance

    def _mutable(self) -> list[Tensor]:
        """What a step changes; the cache aside, whose new positions are written again."""
        return [self._places, self._count, self._done, self._ended, self._seen, self._state, self._tokens, self._hidden]

    def _harvest(self, owner: NDArray[np.int64]) -> Iterator[Written]:
        done = self._done.cpu().numpy() & (owner >= 0)
        slots = np.flatnonzero(done)
        if not len(slots):
            return
        chosen = torch.from_numpy(slots).to(self.device)
        tokens = self._ids[self._tokens[chosen].cpu()].numpy().astype(np.int32)
        counts, ended = self._count[chosen], self._ended[chosen].cpu().numpy()
        used = torch.arange(self.most_new, device=self.device) < counts[:, None]
        hidden = self._hidden[chosen][used].cpu().numpy()  # [sum of counts, d]
        edges = np.concatenate([[0], np.cumsum(counts.cpu().numpy())])
        for index, slot in enumerate(slots):
            at, end = int(edges[index]), int(edges[index + 1])
            yield Written(int(owner[slot]), tokens[index, : end - at], hidden[at:end], bool(ended[index]))
        owner[slots] = -1


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """[n, longest] int64, zeros at the right."""
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for index, listed in enumerate(rows):
        padded[index, : len(listed)] = torch.tensor(listed)
    return padded
