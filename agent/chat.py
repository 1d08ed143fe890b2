"""The thinker as a conversation partner: dialogue in, sampled reply out, within the context's limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from agent.chat_template import Message, drop_oldest, render_chat
from agent.sampling import Sampler, SamplingConfig
from agent.thinker import Context, Step, Thinker
from agent.tool_calls import CLOSE, OPEN
from duplex.errors import ConfigError
from duplex.predictor import Ending
from duplex.predictor_sentence_end import SentenceEnd


@dataclass(frozen=True)
class ChatConfig:
    """How the LLM takes part in a conversation."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How replies are drawn."""
    reply_reserve_tokens: int = 256
    """Room in the context that history must leave for the reply."""
    sentence_end: Literal["learned", "odds"] = "odds"
    """Who tells how likely the user's sentence ends after the words so far: the head taught on this LLM, or the LLM's own odds."""

    def __post_init__(self) -> None:
        if self.reply_reserve_tokens < 1:
            raise ConfigError("thinker.reply_reserve_tokens must be at least 1.")


class Keys(list[int]):
    """A rendered dialogue: token ids, negative keys for what was heard and not read, and the vectors of those."""

    def __init__(self, ids: Iterable[int]) -> None:
        super().__init__(ids)
        self.vectors: dict[int, NDArray[np.float32]] = {}


class Chat:
    """Implements `agent.parts.Thinker` over `agent.thinker.Thinker`; shared by conversations."""

    def __init__(self, thinker: Thinker, config: ChatConfig | None = None, sentence_end: SentenceEnd | None = None) -> None:
        """sentence_end: the head that tells where the user's sentence ends. Raises ConfigError for one taught on another LLM's states."""
        if sentence_end is not None and sentence_end.hidden != thinker.hidden_size:
            raise ConfigError(
                f"thinker.chat.sentence_end: learned was taught on an LLM of width {sentence_end.hidden}, this one has "
                f"{thinker.hidden_size}; use odds, or teach it with duologue train sentence-end."
            )
        self.thinker = thinker
        self._sentence_end = sentence_end
        self.config = config or ChatConfig()
        self.eos_ids = thinker.eos_ids
        firsts = {thinker.encode(mark)[0] for mark in (".", "?", "!", ".\n", "?\n", "!\n")}
        self._ends = torch.tensor(sorted(firsts | set(thinker.eos_ids)))
        specials = thinker.vocabulary.specials
        self._marks = {specials[mark]: mark for mark in (OPEN, CLOSE) if mark in specials}
        self._budget = thinker.config.max_context_tokens - self.config.reply_reserve_tokens
        if self._budget < 1:
            raise ConfigError("thinker.max_context_tokens must be larger than thinker.reply_reserve_tokens.")

    def open(self) -> Context:
        """A fresh context."""
        return self.thinker.open()

    def render(self, system: str, messages: Sequence[Message], open_assistant: bool = True, open_last: bool = False) -> list[int]:
        """ChatML token ids; the oldest exchanges are forgotten until the rest fits. Raises ValueError for an over-long system prompt."""
        vocabulary = self.thinker.vocabulary
        kept = drop_oldest(vocabulary, system, messages, self._budget, self._budget // 4)
        keys = Keys(render_chat(vocabulary, system, kept, open_assistant=open_assistant, open_last=open_last))
        for message in kept:
            if message.speech is not None:
                keys.vectors.update(zip(message.speech.keys, message.speech.vectors, strict=True))
        return keys

    def turn_end(self, context: Context) -> Ending:
        """How likely the sentence ends here, after words without their final punctuation."""
        state = self.thinker.state(context)
        if self._sentence_end is None:
            return Ending(self.odds_of_end(state))
        return Ending(self._sentence_end.probability(state), learnt=True)

    def odds_of_end(self, state: torch.Tensor) -> float:
        """P(the next token ends the sentence or the turn) by the LLM itself, of the state [d] after its last word."""
        return float(torch.softmax(self.thinker.logits_of(state), -1)[self._ends].sum())

    def sync_steps(self, context: Context, keys: Sequence[int]) -> Iterator[int]:
        """Make the context hold exactly `keys`, in bounded steps."""
        return self.thinker.sync_steps(context, keys, getattr(keys, "vectors", None))

    def sampler(self, seed: int, calls: bool = False) -> Sampler:
        """A fresh sampler; with `calls` it may draw the marks of a function call."""
        if not calls:
            return self.thinker.sampler(self.config.sampling, seed)
        banned = [token for token in self.thinker.banned if token not in self._marks]
        return Sampler(self.config.sampling, banned=banned, exempt=tuple(self.eos_ids), seed=seed)

    def step(self, context: Context, sampler: Sampler) -> Step:
        """One token and the hidden state it was sampled from."""
        return self.thinker.step(context, sampler)

    def encode(self, text: str) -> list[int]:
        """Ordinary token ids of text; never a special one."""
        return self.thinker.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text; of the special ones, only the marks of a function call are spelt out."""
        for place, token in enumerate(ids):
            if token in self._marks:
                return self.thinker.decode(ids[:place]) + self._marks[token] + self.decode(ids[place + 1 :])
        return self.thinker.decode(ids)
