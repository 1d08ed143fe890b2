"""Text to token ids and back, for Qwen's byte-level BPE and for the byte vocabulary of the tiny profile.

Special tokens are never read out of text: `encode("<|im_end|>")` gives ordinary pieces, so nothing that a user says (or a
transcript contains) can open or close a turn. Specials are placed by id, by the chat template only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from duplex.errors import WeightsError

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"


class Vocabulary(Protocol):
    """What a thinker knows about text."""

    size: int
    """Ids run from 0 to size - 1; a model may have more rows than that, all padding."""
    specials: dict[str, int]
    """Every special token, by its written form."""

    def __hash__(self) -> int:
        """What was encoded is kept by vocabulary."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ordinary token ids of `text`; never a special one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; specials and negative keys give nothing, bytes that are no UTF-8 give U+FFFD."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for (a character may be split over tokens); b"" for a special."""
        ...


class QwenVocabulary:
    """The vocabulary in a `tokenizer.json` of the usual form."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception
            raise WeightsError(f"The vocabulary {path} cannot be read ({error}); fetch the weights again.") from error
        self._tokenizer.encode_special_tokens = True  # "<|im_end|>" in text is text
        self.specials = {token.content: index for index, token in self._tokenizer.get_added_tokens_decoder().items()}
        missing = [name for name in (IM_START, IM_END, END_OF_TEXT) if name not in self.specials]
        if missing:
            raise WeightsError(f"The vocabulary {path} lacks {', '.join(missing)}; fetch the weights again.")
        self.size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._special_ids = frozenset(self.specials.values())

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        if token < 0 or token in self._special_ids:
            return b""
        piece = self._tokenizer.id_to_token(token)
        return b"" if piece is None else bytes(self._bytes[letter] for letter in piece)

    @cached_property
    def _bytes(self) -> dict[str, int]:
        return {letter: byte for byte, letter in byte_letters().items()}


class ByteVocabulary:
    """256 bytes and Qwen's three chat specials: round-trips any text, needs no file."""

    def __init__(self) -> None:
        self.specials = {END_OF_TEXT: 256, IM_START: 257, IM_END: 258}
        self.size = 259

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if 0 <= token < 256 else b""


def byte_letters() -> dict[int, str]:
    """Byte -> the printable letter that stands for it in a byte-level BPE file (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}
