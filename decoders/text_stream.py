"""Token ids to text that can no longer change.

A tokenizer of bytes may split one character over several tokens; until the last of them is there, the text ends in U+FFFD. Only a
window of recent tokens is decoded at each step, so the cost of a token does not grow with the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Detokenize = Callable[[Sequence[int]], str]

_REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER = 4  # tokens: UTF-8 has at most four bytes; an ending that stays broken for longer is really broken


@dataclass(slots=True)
class TextStream:
    """What is pending of one response."""

    tokens: list[int] = field(default_factory=list)
    """Tokens of the window: those whose text is out, then those whose text is pending."""
    settled: int = 0
    """How many tokens of the window have had their text released."""


def push(stream: TextStream, tokens: Sequence[int], detokenize: Detokenize) -> str:
    """Take tokens, return the text that became certain ("" when none did)."""
    released = []
    for token in tokens:
        stream.tokens.append(token)
        before = detokenize(stream.tokens[: stream.settled])
        text = detokenize(stream.tokens)
        pending = len(stream.tokens) - stream.settled
        if text.endswith(_REPLACEMENT) and pending <= _LONGEST_CHARACTER:
            continue
        released.append(text[len(before) :])
        stream.tokens = stream.tokens[stream.settled :]  # the tokens just released are the next window's context
        stream.settled = len(stream.tokens)
    return "".join(released)


def finish(stream: TextStream, detokenize: Detokenize) -> str:
    """The rest, broken or not."""
    rest = detokenize(stream.tokens)[len(detokenize(stream.tokens[: stream.settled])) :]
    stream.settled = len(stream.tokens)
    return rest
