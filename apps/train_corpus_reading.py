"""Which replies a voice can learn from, and their phones: the work of the processes beside the one that writes replies.

A reply is kept when it is one spoken paragraph of English that ends as speech does: no markup, no lists, no code, not cut off, not going
in circles, and short enough to be spoken in one breath of the teacher.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.vocabulary import QwenVocabulary
from apps.train_corpus_questions import plain
from decoders.phonemes import Lexicon, PhonemeTable
from decoders.reading import TextReader

MOST_PHONES = 220
"""About 16 s of speech."""
PHONES_A_SECOND = 13.0
MOST_TOKENS = 60

_SPOKEN = re.compile(r"[\w\s.,;:!?'\"“”‘’()$€£%&°@/+=–—…½¼¾-]+")
_FOREIGN = re.compile(r"[^\W\d_a-zA-Zé]")
_ADDRESS = re.compile(r"https?:|www\.|\w\(\)|::|==|/\w+/")
_END = re.compile(r"[.!?…][\"'”’)]*")


@dataclass(frozen=True, slots=True)
class Item:
    """One reply as a shard keeps it, its hidden states aside."""

    text: str
    phones: NDArray[np.uint8]
    phone_token: NDArray[np.int16]


class ItemReader:
    """Judges and reads; one per process."""

    def __init__(self, kit: Path) -> None:
        self.vocabulary = QwenVocabulary(kit / "tokenizer.json")
        self._lexicon = Lexicon(kit / "espeak", guesses=importlib.util.find_spec("pycrfsuite") is not None)
        self._guesses = importlib.util.find_spec("pycrfsuite") is not None
        self._reader = TextReader(self._lexicon, PhonemeTable.load(kit / "voice.json"), self.vocabulary.decode)

    def __call__(self, tokens: Sequence[int], *, ended: bool = True, reply: bool = True) -> Item | None:
        """None for what is not kept. `reply`: judged as one, and not only read."""
        if not 1 <= len(tokens) <= MOST_TOKENS or not ended:
            return None
        text = self.vocabulary.decode(tokens)
        if reply and (len(tokens) < 3 or not speakable(text)):
            return None
        silent = self._lexicon.guessed
        reading = self._reader.read([int(token) for token in tokens])
        if not 0 < len(reading.phones) <= MOST_PHONES or (self._lexicon.guessed > silent and not self._guesses):
            return None
        return Item(text, reading.phones, reading.phone_token)


def speakable(text: str) -> bool:
    """Whether a reply is one spoken paragraph of English."""
    if not _SPOKEN.fullmatch(text) or _FOREIGN.search(text) or _ADDRESS.search(text) or "\n" in text.strip() or "_" in text:
        return False
    if not _END.search(text.rstrip()[-3:]) or text.rstrip()[-1] in ",;:":
        return False
    words = plain(text).split()
    if not words or max(map(len, words)) > 24 or sum(word.isdigit() for word in words) > len(words) / 2 + 2:
        return False
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    return not triples or triples.most_common(1)[0][1] <= 2


# -- in a process of the pool

_READER: ItemReader | None = None


def begin(kit: str) -> None:
    """Load what reading needs, once per process."""
    global _READER
    _READER = ItemReader(Path(kit))


def read_all(jobs: Sequence[tuple[NDArray[np.int32], bool, bool]]) -> list[Item | None]:
    """(tokens, ended, reply) of many items."""
    assert _READER is not None
    return [_READER(tokens.tolist(), ended=ended, reply=reply) for tokens, ended, reply in jobs]
