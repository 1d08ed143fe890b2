"""A whole reply through the pointer LM: tokens and pieces of text in, codes out, and which pieces have been said after each of them.

Notable: a long reply is several sequences. At a sentence's end the text that follows begins a sequence of its own, as in training, so a
context stays short however long the reply is, and a first short sentence need not wait for five tokens. Codes come out in one stream.

A piece of text has been said when the pointer has passed the last of its phones that is no mark or sentence end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from decoders.pointer_lm_streaming import PointerDecoder, PointerState, Rows
from decoders.reading import Piece

BEGIN, END = 1, 2
"""Phone ids of a sentence's beginning and end, in every Piper voice."""


@dataclass(slots=True)
class Passage:
    """One sequence of the LM: a part of the reply."""

    lm: PointerState
    first_phone: int
    """Phones of the reply before its own."""
    tokens: int = 0
    """LLM tokens that it reads."""


@dataclass(slots=True)
class SpeechState:
    """One reply on its way to codes, owned by the caller."""

    seed: int
    passages: deque[Passage] = field(default_factory=deque)
    """The first is being spoken, the last is being written."""
    opened: int = 0
    """Sequences so far."""
    phones: int = 0
    """Phones of the reply so far."""
    waiting: deque[tuple[str, int]] = field(default_factory=deque)
    """Pieces of text that were not told yet, and the number of the phone that each ends with."""
    last_core: int = -1
    """The newest of these numbers."""
    codes: int = 0
    """Codes written so far."""
    begun: bool = False
    """A phone other than a beginning has been spoken."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """One code and what was said by the time it begins."""

    digits: tuple[int, ...]
    said: tuple[str, ...]
    """Pieces of text that have ended where this code begins."""
    silent: bool
    """Nothing but the beginning of the first sentence has been spoken so far, this code included."""


class PointerSpeech:
    """Speaks whole replies. Holds no state of a reply."""

    def __init__(self, decoder: PointerDecoder, marks: Sequence[int] = (), least_phones: int = 40) -> None:
        """marks: phones that are pauses rather than sounds. least_phones: a sequence ends with a sentence when it has so many."""
        self.decoder, self.marks, self.least_phones = decoder, frozenset((*marks, END)), least_phones

    def open(self, seed: int = 0) -> SpeechState:
        """A fresh reply."""
        return SpeechState(seed)

    def take(self, state: SpeechState, row: Rows, pieces: Sequence[Piece]) -> None:
        """One LLM token as a text position [1, d], and the pieces of text that became certain with it."""
        own = self._newest(state)
        ends = next((index for index, piece in enumerate(pieces) if piece.phones and piece.phones[-1] == END), None)
        if ends is not None and own.tokens:
            phones = state.phones - own.first_phone + sum(len(piece.phones) for piece in pieces[: ends + 1])
            if phones >= self.least_phones:  # this token begins what comes after the sentence
                self._add(state, own, pieces[: ends + 1], own.tokens + 1)
                self.decoder.end_text(own.lm)
                own, pieces = self._open(state), pieces[ends + 1 :]
        self.decoder.take_text(own.lm, row)
        own.tokens += 1
        self._add(state, own, pieces, own.tokens)

    def finish(self, state: SpeechState, pieces: Sequence[Piece]) -> None:
        """The text has ended, with these pieces."""
        own = self._newest(state)
        self._add(state, own, pieces, own.tokens + 1)
        self.decoder.end_text(own.lm)

    def step(self, state: SpeechState) -> Spoken | None:
        """The next code; None when that needs more text, or all has been said."""
        while state.passages:
            own = state.passages[0]
            written = self.decoder.step(own.lm)
            if written is not None:
                phone = own.first_phone + written.phone
                said = []
                while state.waiting and state.waiting[0][1] < phone:
                    said.append(state.waiting.popleft()[0])
                state.begun = state.begun or own.lm.phones[written.phone] != BEGIN
                state.codes += 1
                return Spoken(written.digits, tuple(said), not state.begun)
            if not own.lm.ended:
                return None
            state.passages.popleft()
        return None

    def rest(self, state: SpeechState) -> str:
        """The text that was not told yet, once all has been said."""
        text = "".join(source for source, _ in state.waiting)
        state.waiting.clear()
        return text

    def _newest(self, state: SpeechState) -> Passage:
        return state.passages[-1] if state.passages else self._open(state)

    def _open(self, state: SpeechState) -> Passage:
        state.passages.append(Passage(self.decoder.open(state.seed + 1_000_003 * state.opened), state.phones))
        state.opened += 1
        return state.passages[-1]

    def _add(self, state: SpeechState, own: Passage, pieces: Sequence[Piece], need: int) -> None:
        for piece in pieces:
            core = [index for index, phone in enumerate(piece.phones) if phone not in self.marks]
            if core:
                state.last_core = state.phones + core[-1]
            state.waiting.append((piece.source, state.last_core))
            state.phones += len(piece.phones)
            self.decoder.take_phones(own.lm, piece.phones, need)
