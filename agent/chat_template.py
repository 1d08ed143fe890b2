"""Qwen's ChatML, as token ids, and which turns to forget when a conversation grows too long.

The template is the one in the checkpoint (`tokenizer.chat_template` of the GGUF); tools are put into its words by agent.tool_calls. Text
between the specials is encoded on its own, so it can never open or close a turn. The marks of a function call become their own tokens in
what the application or the agent wrote, never in what the user said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal

from agent.tool_calls import CLOSE, OPEN
from agent.vocabulary import IM_END, IM_START, Vocabulary
from encoders.ears import HeardVectors


@dataclass(frozen=True, slots=True)
class Message:
    """One turn as text: what the user said, what the user heard of the agent's reply, or a word of the application's."""

    role: Literal["user", "assistant", "system"]
    text: str
    speech: HeardVectors | None = None
    """The end of the text as it was heard, for an LLM that reads vectors in place of those words."""

    @property
    def written(self) -> str:
        """What is read as text: all of it, or what comes before the speech."""
        return self.text if self.speech is None else self.text[: -len("".join(self.speech.pieces).strip()) or None]

    def open_ended(self) -> Message:
        """Without the marks that end a sentence."""
        marks = " .?!"
        return Message(self.role, self.text.rstrip(marks), self.speech and self.speech.without_end(marks))


def render_chat(
    vocabulary: Vocabulary, system: str, messages: Sequence[Message], open_assistant: bool = True, open_last: bool = False
) -> list[int]:
    """Token ids of a conversation; the keys of vectors, which are negative, where a message was heard and not read.

    open_assistant: end with the opening of the agent's turn, ready for a reply. open_last: leave the last message without its end
    token (the user is still speaking: the probability of the end token is then a hint that the turn is over); not both.
    """
    if open_assistant and open_last:
        raise ValueError("open_assistant and open_last exclude each other: a turn that is still open cannot be answered")
    start, end, newline = vocabulary.specials[IM_START], vocabulary.specials[IM_END], vocabulary.encode("\n")
    ids: list[int] = []
    for message in (Message("system", system), *messages):
        said = [*_encoded(vocabulary, message.written, message.role != "user"), *(message.speech.keys if message.speech else ())]
        ids += [start, *_encoded(vocabulary, message.role, False), *newline, *said, end, *newline]
    if open_last:
        return ids[: -1 - len(newline)]
    return [*ids, start, *vocabulary.encode("assistant"), *newline] if open_assistant else ids


@lru_cache(maxsize=2048)
def _encoded(vocabulary: Vocabulary, text: str, marks: bool) -> tuple[int, ...]:
    """Kept, because a dialogue is rendered anew, in the event loop, for every interim transcript. marks: those of calls are tokens."""
    if not marks:
        return tuple(vocabulary.encode(text))
    ids: list[int] = []
    for piece in re.split(f"({OPEN}|{CLOSE})", text):
        known = piece in (OPEN, CLOSE) and piece in vocabulary.specials
        ids += [vocabulary.specials[piece]] if known else vocabulary.encode(piece)
    return tuple(ids)


def drop_oldest(
    vocabulary: Vocabulary, system: str, messages: Sequence[Message], budget_tokens: int, step_tokens: int = 1
) -> list[Message]:
    """The newest part of a conversation that fits, opened for a reply, in `budget_tokens`.

    Forgets whole exchanges, the oldest first: what is kept starts with a user turn. The system prompt and the newest user turn
    (with what follows it) always stay; if that turn alone is too long, its beginning is cut. Raises ValueError when not even the
    system prompt fits.

    step_tokens: what is forgotten comes in steps of about so many tokens, counted from the first message. A longer step forgets more
    than it must, and in return the beginning stays the same for longer, so that a context need not be read anew at every turn.
    """
    kept = list(messages)
    starts = [index for index, message in enumerate(kept) if message.role == "user"]

    def size(part: Sequence[Message]) -> int:
        return len(render_chat(vocabulary, system, part))

    if size(kept) <= budget_tokens:
        return kept
    if not starts:
        raise ValueError(
            f"the system prompt needs {size([])} tokens and the budget is {budget_tokens}: shorten it or allow more context"
        )
    fixed = size([])
    costs = [size([message]) - fixed for message in kept]  # messages are encoded apart, so their costs add up
    before = [0, *accumulate(costs)]  # tokens in front of each message
    excess = fixed + before[-1] - budget_tokens
    wanted = -(-excess // step_tokens) * step_tokens  # the excess in whole steps
    for least in (wanted, excess):
        for start in starts:
            if before[start] >= least:
                return kept[start:]
    newest = kept[starts[-1] :]
    spare = budget_tokens - size([Message("user", ""), *newest[1:]])
    if spare < 1:
        newest, spare = newest[:1], budget_tokens - size([Message("user", "")])
    if spare < 1:
        raise ValueError(f"the system prompt leaves no room in {budget_tokens} tokens: shorten it or allow more context")
    tail = vocabulary.decode(vocabulary.encode(newest[0].text)[-spare:]).lstrip("\ufffd")
    while size([Message("user", tail), *newest[1:]]) > budget_tokens:  # cut pieces may be encoded less tightly
        tail = tail[1:]
    return [Message("user", tail), *newest[1:]]
