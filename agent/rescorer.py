"""The LLM as a judge of what may have been said, for ears that look for words (`encoders.rescoring.Judge`).

A context of its own holds the text; all other words that are judged go through the LLM in one pass behind it, as a tree whose branches
leave the text where they differ from it and don't see each other. What was judged is remembered, so while somebody speaks only what is new
costs anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agent.thinker import Thinker
from encoders.rescoring import Doubt

_REMEMBERED = 4096


class Rescorer:
    """`encoders.rescoring.Judge` on a thinker's weights. One thread at a time may use it, beside the one that uses the thinker."""

    def __init__(self, thinker: Thinker) -> None:
        self._thinker = thinker
        self._opening = [thinker.start_of_turn, *thinker.encode("user\n")]
        self._context = thinker.open_alone()
        self._known: dict[tuple[tuple[int, ...], Doubt], float] = {}

    def __call__(self, tokens: Sequence[int], doubts: Sequence[Doubt]) -> list[float]:
        """As `Judge`. Doubts about more of a text than the LLM's context holds are not judged: the usual words are far likelier."""
        asked = [(tuple(tokens[: doubt.at]), doubt) for doubt in doubts]
        new = list(dict.fromkeys(one for one in asked if one not in self._known))
        if new:
            self._known.update(zip(new, self._judge(tokens, [doubt for _, doubt in new]), strict=True))
        found = [self._known[one] for one in asked]
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        return found

    def _judge(self, tokens: Sequence[int], doubts: Sequence[Doubt]) -> list[float]:
        first = len(self._opening)
        tree = _Tree()
        for doubt in doubts:
            tree.add(first + doubt.at, doubt.other)
        text = [*self._opening, *tokens[: max(doubt.at + len(doubt.usual) for doubt in doubts)]]
        if len(text) + len(tree.tokens) > self._thinker.config.max_context_tokens:
            return [-float("inf")] * len(doubts)
        self._thinker.sync(self._context, text)
        states = self._thinker.branch(self._context, tree.tokens, tree.places, tree.mask(len(text)))
        wanted: dict[int, int] = {}  # places in the text that are looked at -> rows
        for doubt in doubts:
            for place in range(first + doubt.at - 1, first + doubt.at + max(len(doubt.usual), 1) - 1):
                wanted.setdefault(place, len(wanted))
        odds = _Odds(self._thinker.logits_of(torch.cat((self._context.buffers.hidden[list(wanted)], states))))
        found = []
        for doubt in doubts:
            at = first + doubt.at
            usual = sum(odds(wanted[at + i - 1], token) for i, token in enumerate(doubt.usual))
            rows = [wanted[at - 1], *(len(wanted) + node for node in tree.nodes(at, doubt.other))]
            found.append(sum(odds(row, token) for row, token in zip(rows, doubt.other, strict=False)) - usual)
        return found


class _Odds:
    """Log probabilities of what comes next, by row and token."""

    def __init__(self, scores: Tensor) -> None:
        """scores: [n, vocabulary]"""
        self._scores = scores
        self._sums: list[float] = scores.logsumexp(1).tolist()

    def __call__(self, row: int, token: int) -> float:
        return float(self._scores[row, token]) - self._sums[row]


class _Tree:
    """Branches off a text, of which those that begin alike share their beginning. The last token of each need not go through the LLM."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.places: list[int] = []
        """Position of each token."""
        self._before: list[int] = []  # the node before each, or -1
        self._leaves: list[int] = []  # the text's position that each branch begins at
        self._nodes: dict[tuple[int, int, int], int] = {}

    def add(self, at: int, tokens: Sequence[int]) -> None:
        """Another branch, in the place of the text's tokens from `at` on."""
        before = -1
        for place, token in enumerate(tokens[:-1], at):
            key = at, before, token
            if key not in self._nodes:
                self._nodes[key] = len(self.tokens)
                self.tokens.append(token)
                self.places.append(place)
                self._before.append(before)
                self._leaves.append(at)
            before = self._nodes[key]

    def nodes(self, at: int, tokens: Sequence[int]) -> list[int]:
        """Those of a branch."""
        found = [-1]
        for token in tokens[:-1]:
            found.append(self._nodes[at, found[-1], token])
        return found[1:]

    def mask(self, text: int) -> Tensor:
        """[n, text + n] additive: each sees the text before its branch, its branch before it, and itself."""
        n = len(self.tokens)
        sees = torch.zeros(n, text + n, dtype=torch.bool)
        for node, (before, at) in enumerate(zip(self._before, self._leaves, strict=True)):
            if before < 0:
                sees[node, :at] = True
            else:
                sees[node] = sees[before]
            sees[node, text + node] = True
        return torch.zeros(n, text + n).masked_fill_(~sees, -torch.inf)
