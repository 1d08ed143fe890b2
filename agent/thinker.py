"""The LLM as the conversation uses it: a context that follows the dialogue, and a stream of (token, hidden state) out of it.

A `Context` is a list of keys (token ids; unique negative numbers for embeddings that are no tokens) and the buffers computed for
them. `sync` makes it hold given ids at the least cost: the common prefix stays. Rolling back is cutting the list, so a speculative
response costs nothing to throw away. A sampled token is fed only when the next one is asked for, so it goes out before its own
forward pass runs.

One thread at a time may use a thinker; any number of contexts may be interleaved on it. Contexts of their own (`open_alone`) may be used
in another thread meanwhile, each in one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from agent.qwen_gguf import load_qwen
from agent.sampling import Sampler, SamplingConfig, draw_together
from agent.vocabulary import END_OF_TEXT, IM_END, IM_START, ByteVocabulary, QwenVocabulary, Vocabulary
from decoders.qwen import KeyValues, Qwen, fuse
from decoders.qwen_steps import SharedSteps


class ContextFull(RuntimeError):
    """The context has no room left: end the reply, or drop the oldest turns and sync again."""


@dataclass(frozen=True)
class ThinkerConfig:
    """How the LLM is run."""

    max_context_tokens: int = 2048
    """Tokens that one context can hold, the reply included."""
    prefill_chunk_tokens: int = 32
    """Most tokens in one forward pass: other work can run between two passes."""
    gpu_contexts: int = 8
    """Contexts that a GPU has room for side by side: they take steps together, recorded as CUDA graphs. More than these run one by one."""

    def __post_init__(self) -> None:
        if self.max_context_tokens < 16:
            raise ValueError(f"max_context_tokens is {self.max_context_tokens}; choose 16 or more")
        if self.prefill_chunk_tokens < 1:
            raise ValueError(f"prefill_chunk_tokens is {self.prefill_chunk_tokens}; choose 1 or more")
        if self.gpu_contexts < 1:
            raise ValueError(f"gpu_contexts is {self.gpu_contexts}; choose 1 or more")


@dataclass(frozen=True, slots=True)
class Step:
    """One token of a reply."""

    token: int
    hidden: NDArray[np.float32]
    """[d], the final-layer state (after the last norm) that the token was sampled from."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place to roll back to."""

    keys: tuple[int, ...]


@dataclass(slots=True)
class Context:
    """The state of one conversation in the LLM. Only `Thinker` writes to it, except for `rollback`."""

    buffers: KeyValues
    keys: list[int] = field(default_factory=list)
    """What the context holds, one key per position; the last one may not have been fed yet."""
    fed: int = 0
    """Positions whose buffers are computed: len(keys), or one less after `Thinker.step`."""
    scores: tuple[int, Tensor] | None = None
    """Logits [vocabulary] after the first element's number of positions."""

    def mark(self) -> Mark:
        """Remember this place."""
        return Mark(tuple(self.keys))

    def rollback(self, mark: Mark) -> None:
        """Return to `mark`: what follows is as if nothing had happened since. ValueError when the context has left that path."""
        size = len(mark.keys)
        if len(self.keys) < size or tuple(self.keys[:size]) != mark.keys:
            raise ValueError("this mark is no longer a prefix of the context: roll back only to marks made on the present path")
        self.truncate(size)

    def truncate(self, size: int) -> None:
        """Keep the first `size` positions."""
        del self.keys[size:]
        self.fed = min(self.fed, size)
        if self.scores is not None and self.scores[0] > self.fed:
            self.scores = None


class Thinker:
    """One set of LLM weights."""

    def __init__(self, model: Qwen2ForCausalLM, vocabulary: Vocabulary, config: ThinkerConfig = ThinkerConfig()) -> None:
        """model: float as transformers made it (its layers are joined in place), or int8 from `load_qwen`."""
        self.config = config
        self.vocabulary = vocabulary
        self._qwen = Qwen(fuse(model), config.max_context_tokens)
        self.steps: SharedSteps | None = None
        """Where contexts lie side by side; None where each has buffers of its own, as on a CPU."""
        if self._qwen.device.type == "cuda":
            self.share(config.gpu_contexts)
        self.hidden_size = self._qwen.hidden_size
        self.vocabulary_rows = int(model.config.vocab_size)
        specials = vocabulary.specials
        self.eos_ids = frozenset({specials[IM_END], specials[END_OF_TEXT]})
        self.end_of_turn = specials[IM_END]
        self.start_of_turn = specials[IM_START]
        padding = range(vocabulary.size, self.vocabulary_rows)
        self.banned = sorted({*specials.values(), *padding} - self.eos_ids)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device(self._qwen.device)

    @property
    def dtype(self) -> torch.dtype:
        """Type of its embeddings."""
        dtype: torch.dtype = self._qwen.dtype
        return dtype

    @classmethod
    def from_folder(cls, folder: Path, config: ThinkerConfig = ThinkerConfig(), engine: str | None = "auto") -> Thinker:
        """The int8 model in a folder that `convert_qwen` wrote. Raises WeightsError."""
        return cls(load_qwen(folder, engine), QwenVocabulary(folder / "tokenizer.json"), config)

    @classmethod
    def tiny(cls, seed: int = 0, config: ThinkerConfig = ThinkerConfig(max_context_tokens=512)) -> Thinker:
        """Random weights of a few hundred kB over bytes: the same code, no download."""
        vocabulary = ByteVocabulary()
        shape = Qwen2Config(
            vocab_size=vocabulary.size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.2,
            tie_word_embeddings=True,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Qwen2ForCausalLM(shape)
        return cls(model.requires_grad_(False), vocabulary, config)

    def encode(self, text: str) -> list[int]:
        """Ordinary token ids of text; never a special one."""
        return self.vocabulary.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; specials and negative keys give nothing."""
        return self.vocabulary.decode(ids)

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Input embeddings [n, d] float32 of token ids, on the CPU."""
        return self._qwen.embed(torch.as_tensor(list(ids), dtype=torch.long)).float().cpu()

    def sampler(self, config: SamplingConfig, seed: int | None = None) -> Sampler:
        """The sampler of one reply: never draws a special token other than an end."""
        return Sampler(config, banned=self.banned, exempt=tuple(self.eos_ids), seed=seed)

    def share(self, contexts: int, graphs: bool = True) -> None:
        """Make room for so many contexts that take steps together; those that are open already go on alone. graphs: record steps."""
        self.steps = None  # before the new room is made, that of before is let go
        self.steps = SharedSteps(self._qwen, contexts, self._qwen.logits, graphs)
        self.steps.prepare(1, self.config.max_context_tokens)

    def open(self) -> Context:
        """A fresh, empty context."""
        return Context(self.steps.open() if self.steps else self._qwen.buffers())

    def open_alone(self) -> Context:
        """A fresh, empty context that never takes steps together with others."""
        return Context(self._qwen.buffers())

    def branch(self, context: Context, ids: Sequence[int], places: Sequence[int], mask: Tensor) -> Tensor:
        """Feed a tree of tokens behind a context that is all fed, and leave that as it was: [n, d] final-layer states.

        places: [n] positions. mask: [n, fed + n] float32, 0 where a token sees another and -inf elsewhere. Raises ContextFull.
        """
        n, start = len(ids), context.fed
        self._check_room(start + n)
        if n:
            device, dtype = self.device, self.dtype
            x = self._qwen.embed(torch.as_tensor(list(ids), dtype=torch.long)).to(device, dtype)
            at = torch.as_tensor(list(places), dtype=torch.long, device=device)
            self._qwen.forward(x, context.buffers, start, at, mask.to(device, dtype))
        return context.buffers.hidden[start : start + n]

    def room(self, context: Context) -> int:
        """Positions still free."""
        return self.config.max_context_tokens - len(context.keys)

    def sync(self, context: Context, keys: Sequence[int]) -> None:
        """Make the context hold exactly `keys`, all fed: the longest common prefix stays, the rest is computed."""
        for _ in self.sync_steps(context, keys):
            pass

    def sync_steps(
        self, context: Context, keys: Sequence[int], vectors: Mapping[int, NDArray[np.float32]] | None = None
    ) -> Iterator[int]:
        """`sync` in bounded pieces: each `next` runs one forward pass and gives the number of tokens still to feed.

        vectors: [d] of the negative keys that the context does not hold yet. May be dropped at any piece: the context is then a valid,
        shorter one. Raises ContextFull for more keys than fit, before anything is changed, and ValueError when a negative key would have
        to be computed whose vector is not given.
        """
        keys, vectors = list(keys), vectors or {}
        self._check_room(len(keys))
        same = common_prefix(context.keys, keys)
        if any(key < 0 and key not in vectors for key in keys[min(same, context.fed) :]):
            raise ValueError(
                "a negative key stands for embeddings that the context does not hold: give them as vectors, or to extend"
            )
        context.truncate(same)
        context.truncate(context.fed)
        while (left := len(keys) - context.fed) > 0:
            piece = keys[context.fed : context.fed + self.config.prefill_chunk_tokens]
            self._feed(context, self._embedded(piece, vectors), piece)
            yield left - len(piece)

    def extend(self, context: Context, embeddings: Tensor | NDArray[np.float32], keys: Sequence[int]) -> None:
        """Append embeddings [n, d] (the projector's speech) under `keys`: n unique negative numbers, one per row."""
        x = torch.as_tensor(embeddings)
        keys = list(keys)
        if x.shape != (len(keys), self.hidden_size):
            raise ValueError(f"embeddings are {tuple(x.shape)}; {len(keys)} keys ask for ({len(keys)}, {self.hidden_size})")
        if any(key >= 0 for key in keys) or len({*keys, *context.keys}) < len(keys) + len(set(context.keys)):
            raise ValueError("keys of embeddings are negative and unique within a context")
        self._check_room(len(context.keys) + len(keys))
        self._flush(context)
        size = self.config.prefill_chunk_tokens
        for at in range(0, len(keys), size):
            self._feed(context, x[at : at + size], keys[at : at + size])

    def step(self, context: Context, sampler: Sampler) -> Step:
        """Sample the next token of a non-empty context. It joins the context now and is fed when next needed.

        Raises ContextFull when there is no room for it.
        """
        return self.step_together([context], [sampler])[0]

    def step_together(self, contexts: Sequence[Context], samplers: Sequence[Sampler]) -> list[Step]:
        """`step` for several different contexts: one forward pass for all that lie side by side.

        Raises ContextFull, before anything is done, when one of them has no room.
        """
        for context in contexts:
            self._check_room(len(context.keys) + 1)
        self._flush_together(contexts)
        scores = [self.logits(context) for context in contexts]
        tokens = draw_together(samplers, torch.stack(scores) if len(scores) > 1 else scores[0][None])
        last = [context.buffers.hidden[context.fed - 1] for context in contexts]
        hidden = torch.stack(last).float().cpu().numpy()  # [n, d]
        for context, token in zip(contexts, tokens, strict=True):
            context.keys.append(token)
        return [Step(token, row.copy()) for token, row in zip(tokens, hidden, strict=True)]

    def next_probability(self, context: Context, token: int) -> float:
        """P(`token` comes next), unsampled: of <|im_end|> in an open user turn, a hint that the turn is over."""
        scores = self.logits(context)
        return float(torch.exp(scores[token] - torch.logsumexp(scores, 0)))

    def logits(self, context: Context) -> Tensor:
        """[vocabulary] float32 after everything the context holds; feeds a pending token first. Read only."""
        state = self.state(context)
        if context.scores is None or context.scores[0] != context.fed:
            context.scores = (context.fed, self.logits_of(state))
        return context.scores[1]

    def state(self, context: Context) -> Tensor:
        """[d] the final-layer state after everything the context holds; feeds a pending token first. Read only."""
        self._flush(context)
        if context.fed == 0:
            raise ValueError("the context is empty: sync it to a prompt first")
        return context.buffers.hidden[context.fed - 1]

    def logits_of(self, state: Tensor) -> Tensor:
        """[d] or [n, d] final-layer states -> [vocabulary] or [n, vocabulary] float32 logits."""
        return self._qwen.logits(state[None])[0] if state.dim() == 1 else self._qwen.logits(state)

    def _flush_together(self, contexts: Sequence[Context]) -> None:
        """Feed the pending token of each that has just one, in one pass."""
        steps = self.steps
        if steps is None:
            return
        ready = [c for c in contexts if len(c.keys) == c.fed + 1 and steps.holds(c.buffers)]
        if ready:
            ids = torch.tensor([context.keys[-1] for context in ready])
            slots, starts = [context.buffers.slot for context in ready], [context.fed for context in ready]
            _, scores = steps.run(self._qwen.embed(ids), slots, starts)
            for context, row in zip(ready, scores, strict=True):
                context.fed += 1
                context.scores = (context.fed, row)

    def _embedded(self, keys: Sequence[int], vectors: Mapping[int, NDArray[np.float32]]) -> Tensor:
        """[n, d] of tokens and vectors."""
        x = self._qwen.embed(torch.as_tensor([max(key, 0) for key in keys], dtype=torch.long))
        heard = [place for place, key in enumerate(keys) if key < 0]
        if heard:
            x = x.clone()
            x[heard] = torch.from_numpy(np.stack([vectors[keys[place]] for place in heard])).to(x)
        return x

    def _flush(self, context: Context) -> None:
        self._flush_together([context])
        pending = context.keys[context.fed :]
        if pending:
            context.truncate(context.fed)
            self._feed(context, self._qwen.embed(torch.as_tensor(pending, dtype=torch.long)), pending)

    def _feed(self, context: Context, x: Tensor, keys: Sequence[int]) -> None:
        """Compute positions for x [n, d] after the context's end. If it fails or is stopped midway, the context is unchanged."""
        self._qwen.forward(x.to(self._qwen.device, self._qwen.dtype), context.buffers, context.fed)
        context.keys.extend(keys)
        context.fed += len(keys)

    def _check_room(self, size: int) -> None:
        if size > self.config.max_context_tokens:
            raise ContextFull(f"the context holds {self.config.max_context_tokens} tokens at most and {size} are asked for")


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    limit = min(len(a), len(b))
    return next((index for index in range(limit) if a[index] != b[index]), limit)
