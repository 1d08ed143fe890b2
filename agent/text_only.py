"""A voice that is silent: the reply as text, through the same way as speech, for applications that want no sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from decoders.voice import Speech, SpokenWord

UNFINISHED = "\ufffd"


@dataclass(slots=True)
class _State:
    tokens: list[int] = field(default_factory=list)
    given: str = ""


class TextOnly:
    """Implements decoders.voice.Voice: each group of tokens is a word that takes no time."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode

    def open(self, seed: int = 0, speaker: Any = None) -> _State:
        """See decoders.voice.Voice."""
        return _State()

    def push(self, state: _State, tokens: Sequence[int], hidden: Any = None) -> Iterator[Speech]:
        """See decoders.voice.Voice."""
        state.tokens += tokens
        text = self._decode(state.tokens)
        if not text.endswith(UNFINISHED):  # a character may be split over tokens
            yield from self._give(state, text)

    def finish(self, state: _State) -> Iterator[Speech]:
        """See decoders.voice.Voice."""
        yield from self._give(state, self._decode(state.tokens))

    def _give(self, state: _State, text: str) -> Iterator[Speech]:
        fresh, state.given = text[len(state.given) :], text
        if fresh:
            yield Speech(np.zeros(0, np.float32), (SpokenWord(fresh, 0),))
