"""From the LLM to the voice-token LM: what it said, and what it meant by it, as one embedding per token.

Notable: there are two forms with one call. `OutputProjector` is MinMo's, one product of the token's embedding beside its final hidden
state. `BridgeProjector` takes the voice LM's own text embedding of the token and adds a product of the hidden state whose weights
start at zero: untrained it *is* the bridge, bit for bit, and training moves it away. The second needs an LLM whose token ids mean
the same in the voice LM, as all of Qwen's do below its special tokens.

Shapes: n tokens, d voice LM width, h LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decoders.voice_lm import VoiceLM


@dataclass(frozen=True)
class ProjectorConfig:
    """The two widths."""

    llm_width: int = 3584
    """Of the LLM's token embeddings and hidden states (Qwen2.5-7B's)."""
    width: int = 896
    """Of the voice LM."""

    def __post_init__(self) -> None:
        if self.llm_width < 1 or self.width < 1:
            raise ValueError(f"llm_width is {self.llm_width} and width {self.width}; choose 1 or more for each")


class OutputProjector(nn.Module):
    """MinMo's: Linear on concat(token embedding, hidden state), 6.4 M weights at full size (keys `linear.weight`, `linear.bias`)."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(2 * config.llm_width, config.width)

    def forward(self, tokens: Sequence[int] | None, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """embeddings [n, h] (what the LLM read, so also a user's speech), hidden [n, h] -> [n, d]. The ids are not looked at."""
        _check(embeddings, self.config.llm_width, "LLM embeddings")
        _check(hidden, self.config.llm_width, "hidden states")
        weight = self.linear.weight
        both = torch.cat((embeddings, hidden), dim=-1)  # [n, 2h]
        projected: Tensor = self.linear(both.to(weight.device, weight.dtype))
        return projected

    @classmethod
    def bridge(cls, width: int) -> OutputProjector:
        """For an LLM that reads the very table of the voice LM: the embedding's half is one, the hidden state's is zero."""
        projector = cls(ProjectorConfig(width, width))
        with torch.no_grad():
            projector.linear.weight.zero_()
            projector.linear.weight[:, :width].fill_diagonal_(1.0)
            projector.linear.bias.zero_()
        return projector


class BridgeProjector(nn.Module):
    """The voice LM's own embedding of each token, plus a Linear on its hidden state (keys `hidden.weight`, `hidden.bias`).

    The table stays the voice LM's: it is read, not owned, so it is in no checkpoint of this module.
    """

    def __init__(self, lm: VoiceLM, config: ProjectorConfig) -> None:
        super().__init__()
        if config.width != lm.hidden_size:
            raise ValueError(f"width is {config.width}, but the voice LM is {lm.hidden_size} wide; set width to that")
        self.config = config
        self._lm = lm
        self.hidden = nn.Linear(config.llm_width, config.width)

    @classmethod
    def bridge(cls, lm: VoiceLM, llm_width: int) -> BridgeProjector:
        """The hidden state's half zero, on the voice LM's device and in its type: the output is the voice LM's text embedding."""
        projector = cls(lm, ProjectorConfig(llm_width, lm.hidden_size))
        nn.init.zeros_(projector.hidden.weight)
        nn.init.zeros_(projector.hidden.bias)
        return projector.to(lm.qwen.device, lm.qwen.dtype)

    def forward(self, tokens: Sequence[int] | None, embeddings: Tensor | None, hidden: Tensor | None) -> Tensor:
        """tokens [n], hidden [n, h] -> [n, d]. The LLM's embeddings are not looked at; without hidden states only the table is.

        ValueError for positions that are no tokens (a user's speech has no entry in a table), and for ids that have no row.
        """
        if tokens is None:
            raise ValueError("the bridge reads token ids, and got none; use OutputProjector for positions that are no tokens")
        spoken = self._lm.embed(tokens)
        if hidden is None:
            return spoken
        if hidden.shape[:1] != spoken.shape[:1]:
            raise ValueError(f"{len(tokens)} tokens came with {hidden.shape[0]} hidden states; give one for each")
        _check(hidden, self.config.llm_width, "hidden states")
        weight = self.hidden.weight
        # A clone, since what was looked up in inference mode may not take part in training.
        return spoken.clone() + self.hidden(hidden.to(weight.device, weight.dtype))


def _check(rows: Tensor, width: int, what: str) -> None:
    if rows.dim() != 2 or rows.shape[1] != width:
        raise ValueError(f"{what} are [n, {width}] here; got {list(rows.shape)}")
