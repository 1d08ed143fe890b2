"""LLM tokens to the phones that a voice speaks, word by word, as early as each word is certain.

    tokens -> text_stream -> word_window -> normalize -> phonemes -> pieces

A voice that speaks codes must begin after a few tokens, so it cannot wait for a clause as the bridge voice does: a word is given out
when the text that follows shows that it is complete, which is usually the token after it. The words that sound different before a
vowel ("the", "to", "it") wait for the word after them, unless a mark parts the two.

Layout of the phones, that of the voice without its pads: `^` begins a sentence, the space phone parts words, a mark follows its word,
`$` ends a sentence. A sentence is what ends with . ! or ?, and at the latest `most_phones` phones.

Tokens are taken one at a time inside, so any grouping of them gives the same pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from decoders import text_stream, word_window
from decoders.normalize import Reader, Spoken, normalize
from decoders.phonemes import BEGIN, END, SPACE, PhonemeTable, Phonemizer
from decoders.text_stream import Detokenize, TextStream

_ENDS = frozenset(".!?")
_REMEMBERED = 3  # words before that a pronunciation may depend on ("has read")
_MOST_KNOWN = 50_000  # words
_PROBES = ("apple", "banana")  # a word that sounds alike before both, and before nothing, need not wait


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the reply and how it is said."""

    source: str
    """The text exactly as written; all sources of a reply, joined, are the reply."""
    phones: tuple[int, ...]
    """[p] ids of the voice without pads; () for what is silent."""
    tokens: int
    """How many LLM tokens had been seen when this became certain (1 or more; never less than for the piece before)."""


@dataclass(slots=True)
class ReadingState:
    """One reply being read."""

    stream: TextStream = field(default_factory=TextStream)
    reader: Reader = field(default_factory=Reader)
    text: str = ""
    """Written, not read yet."""
    tokens: int = 0
    """Taken so far."""
    pending: Spoken | None = None
    """A piece whose last word sounds different before different words."""
    said: list[str] = field(default_factory=list)
    """The last words of this sentence."""
    phones: int = 0
    """Phones of this sentence so far; 0: the next word begins one."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A whole reply, read."""

    pieces: tuple[Piece, ...]
    phones: NDArray[np.uint8]
    """[p]"""
    phone_token: NDArray[np.int16]
    """[p] index of the token with which each phone became certain; never falls."""


class TextReader:
    """Reads for one voice. Holds no state of a reply, so it may be shared by conversations and threads."""

    def __init__(self, phonemize: Phonemizer, table: PhonemeTable, detokenize: Detokenize, most_phones: int = 320) -> None:
        """most_phones: a sentence is ended there, and at a comma from two thirds of it on. ValueError below 30."""
        if most_phones < 30:
            raise ValueError(f"a sentence may have {most_phones} phones; choose 30 or more")
        self.phonemize, self.table, self.detokenize, self.most_phones = phonemize, table, detokenize, most_phones
        self._depending: dict[str, bool] = {}
        self._begin, self._end, self._space = (tuple(table.phones(symbol)) for symbol in (BEGIN, END, SPACE))

    def open(self) -> ReadingState:
        """The state of a new reply."""
        return ReadingState()

    def push(self, state: ReadingState, tokens: Sequence[int]) -> list[Piece]:
        """Take LLM tokens, return the pieces that became certain."""
        pieces: list[Piece] = []
        for token in tokens:
            state.tokens += 1
            text = text_stream.push(state.stream, (token,), self.detokenize)
            if text:
                self._take(state, text, pieces)
        return pieces

    def finish(self, state: ReadingState) -> list[Piece]:
        """The text has ended: return the rest, with the end of its last sentence."""
        pieces: list[Piece] = []
        self._take(state, text_stream.finish(state.stream, self.detokenize), pieces)
        rest = normalize(state.text, state.reader) if state.text else []
        state.text = ""
        spoken = [index for index, piece in enumerate(rest) if piece.words]
        for index, piece in enumerate(rest):
            self._add(state, piece, pieces, last=bool(spoken) and index == spoken[-1])
        if state.pending is not None:
            self._say(state, "", pieces, last=True)
        if state.phones:  # nothing spoken was left, and the last sentence has no mark
            pieces.append(Piece("", self._end, max(state.tokens, 1)))
            state.phones = 0
        return pieces

    def read(self, tokens: Sequence[int]) -> Reading:
        """A whole reply at once, with the token at which each phone would have become certain."""
        state = self.open()
        pieces = [*self.push(state, tokens), *self.finish(state)]
        phones = [phone for piece in pieces for phone in piece.phones]
        places = [piece.tokens - 1 for piece in pieces for _ in piece.phones]
        return Reading(tuple(pieces), np.asarray(phones, np.uint8), np.asarray(places, np.int16))

    def _take(self, state: ReadingState, text: str, pieces: list[Piece]) -> None:
        state.text += text
        while (at := word_window.cut(state.text, line_start=state.reader.line_start)) is not None:
            window, state.text = state.text[:at], state.text[at:]
            for piece in normalize(window, state.reader):
                self._add(state, piece, pieces)

    def _add(self, state: ReadingState, piece: Spoken, pieces: list[Piece], *, last: bool = False) -> None:
        """The next piece in order; `last`: the last one with words."""
        pending = state.pending
        if not piece.words:
            if pending is not None:
                state.pending = Spoken(pending.source + piece.source, pending.words, pending.mark)
            else:
                pieces.append(Piece(piece.source, (), max(state.tokens, 1)))
            return
        if pending is not None:
            self._say(state, piece.words[0], pieces)
        state.pending = piece
        if piece.mark or last or not self._depends(piece.words[-1]):
            self._say(state, "", pieces, last=last)

    def _depends(self, word: str) -> bool:
        """Whether a word sounds different before different words; remembered."""
        known = self._depending.get(word)
        if known is None:
            alone = self.phonemize([word])[0]
            known = any(self.phonemize([word, probe])[0] != alone for probe in _PROBES)
            if len(self._depending) < _MOST_KNOWN:
                self._depending[word] = known
        return known

    def _say(self, state: ReadingState, following: str, pieces: list[Piece], *, last: bool = False) -> None:
        """Give the pending piece out, spoken before the word `following` ("" for a pause)."""
        piece, state.pending = state.pending, None
        assert piece is not None
        words = list(piece.words)
        ipa = self.phonemize([*state.said, *words, *([following] if following else [])])
        ipa = ipa[len(state.said) : len(state.said) + len(words)]
        phones: list[int] = []
        for word in ipa:
            phones += self._space if state.phones + len(phones) else self._begin
            phones += self.table.phones(word)
        phones += self.table.phones(piece.mark)
        state.phones += len(phones)
        state.said = [*state.said, *words][-_REMEMBERED:]
        ended = piece.mark in _ENDS if piece.mark else state.phones >= self.most_phones
        if last or ended or (piece.mark and state.phones >= self.most_phones * 2 // 3):
            phones += self._end
            state.phones, state.said = 0, []
        pieces.append(Piece(piece.source, tuple(phones), max(state.tokens, 1)))
