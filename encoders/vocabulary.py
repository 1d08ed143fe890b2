"""Whisper's vocabulary, for reading only: token ids to text.

Notable: no tokenizer library. The recogniser never has to encode text, and decoding a byte-level BPE is joining byte strings. The
file is OpenAI's `gpt2.tiktoken` ("base64 rank" per line); the special tokens follow it in the order that OpenAI's tokenizer.py
lays down for the English-only models.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from duplex.english import LISTENING_OPENERS
from duplex.errors import WeightsError

GPT2_TOKENS = 50_256
LANGUAGES = 99  # English-only checkpoints keep the slots of the multilingual ones
TIMESTAMPS = 1_501


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Byte strings by id, and the special ids that greedy decoding needs."""

    pieces: tuple[bytes, ...]
    """The bytes of ordinary token i; special tokens have ids from len(pieces) on and no bytes."""
    size: int
    """Ids in all, special ones included; the width of the logits."""
    end: int
    """Ends a transcript (<|endoftext|>)."""
    start: int
    """Begins one (<|startoftranscript|>)."""
    no_speech: int
    """Its probability at the first position says that nothing was said (<|nospeech|>)."""
    no_timestamps: int
    """Second of the prompt: words without times (<|notimestamps|>)."""
    suppressed: tuple[int, ...] = ()
    """Ids never written: all special ones but `end`, and symbols that are no speech (brackets, musical notes)."""
    blank: tuple[int, ...] = ()
    """Ids that must not come first: a transcript that starts with a space alone or with its own end."""
    openers: tuple[int, ...] = ()
    """Ids that begin a transcript with a word by which listeners show that they listen."""

    def text(self, ids: Iterable[int]) -> str:
        """The text of token ids; special ids are skipped, a character cut in the middle becomes U+FFFD."""
        return b"".join(self.pieces[i] for i in ids if i < len(self.pieces)).decode("utf-8", errors="replace")


def english(path: Path) -> Vocabulary:
    """The vocabulary of the English-only Whisper models (51,864 ids) from `gpt2.tiktoken`. Raises WeightsError."""
    from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS

    pieces: list[bytes] = []
    try:
        for rank, line in enumerate(path.read_bytes().splitlines()):
            token, number = line.split()
            if int(number) != rank:
                raise ValueError(f"line {rank + 1} has rank {int(number)}")
            pieces.append(base64.b64decode(token, validate=True))
    except (OSError, ValueError, binascii.Error) as error:
        raise WeightsError(f"The vocabulary {path} cannot be read ({error}); fetch the weights again.") from error
    if len(pieces) != GPT2_TOKENS:
        raise WeightsError(f"The vocabulary {path} has {len(pieces)} tokens instead of {GPT2_TOKENS}; fetch the weights again.")
    end = GPT2_TOKENS
    start = end + 1
    translate = start + 1 + LANGUAGES
    no_speech = translate + 4  # translate, transcribe, startoflm, startofprev, nospeech
    no_timestamps = no_speech + 1
    size = no_timestamps + 1 + TIMESTAMPS
    symbols = [i for i in NON_SPEECH_TOKENS if i < end]
    space = pieces.index(b" ")
    openers = tuple(i for i, piece in enumerate(pieces) if piece[:1] == b" " and _word(piece) in LISTENING_OPENERS)
    silent = (*symbols, *range(start, size))
    return Vocabulary(tuple(pieces), size, end, start, no_speech, no_timestamps, silent, (space, end), openers)


def _word(piece: bytes) -> str:
    return piece.decode(errors="replace").strip().lower()


def bytewise() -> Vocabulary:
    """A vocabulary of the 256 bytes and four special ids, writing lower-case letters and spaces only, for tests and tiny builds."""
    end, start, no_speech, no_timestamps = 256, 257, 258, 259
    written = {*b"abcdefghijklmnopqrstuvwxyz ", end}
    suppressed = tuple(i for i in range(260) if i not in written)
    return Vocabulary(tuple(bytes([i]) for i in range(256)), 260, end, start, no_speech, no_timestamps, suppressed, (32, end))
