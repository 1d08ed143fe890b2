"""The voice-token LM of the edge voice: it writes speech codes while a pointer walks along the phones of what is to be said.

Notable: a code position is told which phone is being spoken, and each output says how many phones the pointer goes on, so words are
never skipped, repeated or made up, and which word is being spoken is known for every code. What the LLM meant stands in the same
sequence, as text positions: token embeddings beside hidden states through the output projector (MinMo's), which only colour how it is
said. A code is five digits (finite scalar quantisation); they are read as a sum of five embeddings and written one after the other.

A decoder-only transformer: RMS norms before, rotary positions, GELU. A sequence is one or a few sentences:

    start, 5 text, 15 codes, 5 text, 15 codes, ..., end of text, codes          (or all text first: the plain layout)

Sources: MinMo (Chen et al. 2025) for the projector and the interleave, VALL-T (Du et al. 2024) for the pointer.

Shapes: b rows, n positions, t text positions, c code positions, d width, h LLM width, q digits, w phones in the window, f features.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

START, START_PLAIN, TEXT, TEXT_END, CODE = range(5)
"""Kinds of positions: the first one of a sequence (by layout), an LLM token, the end of the text, a code."""
KINDS = 5


@dataclass(frozen=True, slots=True)
class PointerLMConfig:
    """Sizes of the network and of what it reads."""

    width: int = 384
    """Of the residual stream."""
    layers: int = 8
    """Transformer layers."""
    heads: int = 6
    """Attention heads."""
    mlp: int = 1536
    """Inner width of the feed-forward layers."""
    head_width: int = 192
    """Inner width of the output heads."""
    levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    """Values of each digit of a code."""
    llm_width: int = 896
    """Of the LLM's token embeddings and hidden states."""
    phones: int = 256
    """Phone ids of the teacher's table."""
    before: int = 2
    """Phones before the pointer that a code position sees."""
    after: int = 4
    """Phones after the pointer that it sees, as far as they are known."""
    dwell: int = 16
    """Counts of codes on the same phone that are told apart; longer stays count as the last."""
    advances: int = 8
    """How far the pointer may go at once, 0 included."""
    group: int = 5
    """Text positions of a group."""
    block: int = 15
    """Codes after each group, at most."""

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be heads ({self.heads}) times an even number")
        if min(self.layers, self.mlp, self.head_width, self.llm_width, self.phones, self.dwell, self.group, self.block) < 1:
            raise ValueError("the sizes of the voice LM must be at least 1")
        if self.advances < 2 or self.before < 0 or self.after < 0 or not self.levels or min(self.levels) < 2:
            raise ValueError("the voice LM needs 2 or more advances, digits of 2 or more levels and a window that is not negative")

    @property
    def unknown(self) -> int:
        """Stands for a phone ahead whose text has not come yet."""
        return self.phones

    @property
    def nothing(self) -> int:
        """Stands for the places before the first phone and after the last one."""
        return self.phones + 1

    @property
    def window(self) -> range:
        """Places of the phones seen, relative to the pointer."""
        return range(-self.before, self.after + 1)

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """Rows of each feature of a code position: the digits of the code before (and its absence), the phones, the stay."""
        return (*(size + 1 for size in self.levels), *(self.phones + 2 for _ in self.window), self.dwell)

    @property
    def feature_starts(self) -> tuple[int, ...]:
        """First row of each feature in the one table."""
        return tuple(accumulate((0, *self.feature_sizes[:-1])))


def rows(config: PointerLMConfig, before: Tensor, phones: Tensor, dwell: Tensor) -> Tensor:
    """Which rows of the feature table make up code positions: [c, f] int64.

    before [c, q]: the digits of the code before; a first code has `levels` there. phones [c, w]: ids of the window. dwell [c].
    """
    starts = torch.tensor(config.feature_starts, device=dwell.device)
    return torch.cat((before.long(), phones.long(), dwell.long().unsqueeze(1)), 1) + starts


class OutputProjector(nn.Module):
    """Linear on concat(token embedding, hidden state), each first brought to mean 0 and deviation 1 per channel.

    The hidden half starts at zero and is left out where there are no hidden states.
    """

    def __init__(self, llm_width: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * llm_width, width)
        with torch.no_grad():
            self.linear.weight[:, llm_width:].zero_()
        self.mean, self.scale = nn.Buffer(torch.zeros(2 * llm_width)), nn.Buffer(torch.ones(2 * llm_width))

    def forward(self, embeddings: Tensor, hidden: Tensor | None, given: Tensor | None = None) -> Tensor:
        """embeddings, hidden [t, h] -> [t, d]. given [t] bool: rows whose hidden states are looked at, all if None."""
        width = self.linear.in_features // 2
        seen = (embeddings.float() - self.mean[:width]) * self.scale[:width]
        if hidden is None:
            meant = torch.zeros_like(seen)
        else:
            meant = ((hidden.float() - self.mean[width:]) * self.scale[width:]).clamp(-8.0, 8.0)
            if given is not None:
                meant = meant * given.unsqueeze(1)
        projected: Tensor = self.linear(torch.cat((seen, meant), 1))
        return projected

    @torch.no_grad()
    def measure(self, embeddings: Tensor, hidden: Tensor | None) -> None:
        """Set means and deviations from a sample of rows [t, h] of each."""
        width = self.linear.in_features // 2
        for half, sample in enumerate((embeddings, hidden)):
            if sample is not None:
                part = slice(half * width, (half + 1) * width)
                self.mean[part] = sample.float().mean(0)
                self.scale[part] = 1.0 / sample.float().std(0, correction=0).clamp_min(1e-4)


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, config: PointerLMConfig) -> None:
        super().__init__()
        d = config.width
        self.heads = config.heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(d, eps=1e-6), nn.RMSNorm(d, eps=1e-6)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, config.mlp), nn.Linear(config.mlp, d)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x [b, n, d]; cos, sin [b, 1, n, e]; mask [b, 1, n, n], added to the scores -> [b, n, d]."""
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [b, heads, n, e]
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask.to(q.dtype))
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        changed: Tensor = x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))
        return changed


def rotation(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Rotary angles of positions [...]: cos and sin [..., width], the sign of rotate-half folded into the sine."""
    half = width // 2
    rates = 10_000.0 ** (-torch.arange(half, device=positions.device) / half)
    angles = positions.unsqueeze(-1).float() * rates
    return torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the head vectors x [..., e]."""
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)


class Head(nn.Module):
    """What one output is drawn from: [c, d] -> [c, size]."""

    def __init__(self, width: int, inner: int, size: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        scores: Tensor = self.outer(F.gelu(self.inner(x), approximate="tanh"))
        return scores


class Chain(nn.Module):
    """The digits of a code one after the other, then the pointer's advance; each is told what was drawn before it."""

    def __init__(self, config: PointerLMConfig) -> None:
        super().__init__()
        self.levels = config.levels
        self.heads = nn.ModuleList(Head(config.width, config.head_width, size) for size in (*config.levels, config.advances))
        self.drawn = nn.Parameter(torch.randn(sum(config.levels), config.width) * 0.1)

    def forward(self, states: Tensor, digits: Tensor) -> list[Tensor]:
        """states [c, d], the true digits [c, q] -> scores [c, size] of each digit and of the advance."""
        scores, start = [], 0
        for index, head in enumerate(self.heads):
            scores.append(head(states))
            if index < len(self.levels):
                size = self.levels[index]
                chosen = F.one_hot(digits[:, index].long(), size).to(states.dtype)
                states = states + chosen @ self.drawn[start : start + size].to(states.dtype)
                start += size
        return scores


class PointerLM(nn.Module):
    """The whole network."""

    def __init__(self, config: PointerLMConfig) -> None:
        super().__init__()
        self.config = config
        self.projector = OutputProjector(config.llm_width, config.width)
        self.kinds = nn.Parameter(torch.randn(KINDS, config.width) * 0.1)
        self.features = nn.Parameter(torch.randn(sum(config.feature_sizes), config.width) * 0.1)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.chain = Chain(config)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and name.startswith(("blocks", "chain.heads")):
                deviation = parameter.shape[1] ** -0.5
                if name.endswith(("out.weight", "down.weight")):
                    deviation /= (2 * config.layers) ** 0.5
                nn.init.normal_(parameter, std=deviation)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def read(self, features: Tensor) -> Tensor:
        """Code positions of features [c, f] (from `rows`) -> [c, d]. A product with ones and zeros: its gradient is one, too."""
        hot = torch.zeros(len(features), len(self.features), dtype=self._type(), device=features.device)
        return hot.scatter_(1, features, 1.0) @ self.features.to(hot.dtype)

    def embed(self, kinds: Tensor, text_at: Tensor, text: Tensor, code_at: Tensor, features: Tensor) -> Tensor:
        """kinds [b, n]; text [t, d] and features [c, f] with the places text_at [t], code_at [c] in b * n -> [b, n, d] float32."""
        # a product: looked up, a few rows gather gradients slowly
        x = (F.one_hot(kinds.flatten().long(), KINDS).to(self.kinds.dtype) @ self.kinds).to(self.kinds.dtype)
        x = x.index_add(0, text_at, text.to(x.dtype)).index_add(0, code_at, self.read(features).to(x.dtype))
        return x.unflatten(0, kinds.shape)

    def states(self, x: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """Embedded x [b, n, d] -> final states [b, n, d].

        positions, documents [b, n]: places within documents, and which ones; a document does not see another.
        """
        cos, sin = (part.unsqueeze(1).to(self._type()) for part in rotation(positions, self.config.width // self.config.heads))
        n = x.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
        seen = (documents.unsqueeze(1) == documents.unsqueeze(2)) & causal
        mask = torch.zeros(seen.shape, dtype=self._type(), device=x.device).masked_fill_(~seen, float("-inf")).unsqueeze(1)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        final: Tensor = self.norm(x)
        return final

    def _type(self) -> torch.dtype:
        """That of the products: autocast's where it is on."""
        device = self.kinds.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.kinds.dtype


def count(net: nn.Module) -> int:
    """Weights of a network."""
    return sum(parameter.numel() for parameter in net.parameters())
