"""SenseVoice's vocabulary: SentencePiece pieces and label tokens, and how ids become text.

Notable: the pieces are read out of the official model file once and then are plain data, so decoding needs no library, no lock and no
state. Label tokens look like `<|HAPPY|>` or `</|Speech|>` and may turn up anywhere; they are never text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from duplex.errors import WeightsError

SPACE = "▁"  # how SentencePiece writes a space
_LABEL = re.compile(r"<(\|/|/\||\|)(.+?)\|>")  # opening `<|`, or one of the two closing forms
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_CONTROL = ("<blank>", "<unk>", "<s>", "</s>", "<pad>")
_UNSPACED = re.compile(
    r"[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]"
)  # scripts without spaces, their punctuation


@dataclass(frozen=True, slots=True)
class Pieces:
    """All pieces, by id."""

    pieces: tuple[str, ...]
    """What each id stands for, in SentencePiece's spelling."""

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.pieces)

    def label(self, token: int) -> str | None:
        """The name inside a label token ("zh", "HAPPY"), None for any other id and for tokens that close a label."""
        found = _LABEL.fullmatch(self.pieces[token])
        return found[2] if found and found[1] == "|" else None

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, labels and control pieces left out; a leading space tells that a word begins. Raises IndexError."""
        out = bytearray()
        for piece in (self.pieces[token] for token in ids):
            if byte := _BYTE.fullmatch(piece):
                out.append(int(byte[1], 16))
            elif piece not in _CONTROL and not _LABEL.fullmatch(piece):
                out += piece.replace(SPACE, " ").encode()
        return re.sub(" {2,}", " ", out.decode(errors="replace"))


def joined(before: str, after: str) -> str:
    """Two stretches of text as one, with a space between unless a script without spaces meets there."""
    before, after = before.rstrip(), after.lstrip()
    if not before or not after:
        return before + after
    gap = "" if _UNSPACED.match(before[-1]) or _UNSPACED.match(after[0]) else " "
    return before + gap + after


def read_pieces(path: Path) -> Pieces:
    """The pieces of a SentencePiece model file, `chn_jpn_yue_eng_ko_spectok.bpe.model`. Raises WeightsError when it is none."""
    import sentencepiece  # not needed for the profiles without SenseVoice

    try:
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(path.read_bytes())
        return Pieces(tuple(processor.IdToPiece(i) for i in range(processor.GetPieceSize())))
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is missing or no SentencePiece model ({reason}); fetch the weights again.") from error


def tiny_pieces() -> Pieces:
    """A vocabulary without a download: single letters, with and without a space in front, and the labels."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    languages, emotions = ("zh", "en", "yue", "ja", "ko", "nospeech"), ("HAPPY", "SAD", "ANGRY", "NEUTRAL", "EMO_UNKNOWN")
    labels = (*languages, *emotions, "Speech", "BGM", "Laughter", "Event_UNK", "withitn", "woitn")
    words = (*letters, *(SPACE + letter for letter in letters))
    return Pieces(("<unk>", "<s>", "</s>", *words, *(f"<|{label}|>" for label in labels)))
