"""Spoken words to the phoneme ids of a Piper voice.

The voice was trained on espeak-ng's American IPA. gruut's `espeak` lexicon (124,000 words, MIT) holds nearly the same phonemes,
and its CRF guesses words outside of it. Both are used directly: gruut's own text processing takes 50 to 100 ms a sentence and
half a second to import, and everything it would do before the lexicon has been done by `normalize`. What espeak-ng decides from
the neighbouring word (the flap of "it is", the vowel of "the end") is done here.

Layout of the ids, as the voice was trained: ^ _ p _ p _ ... _ $, where p are the code points of the words' IPA, joined by spaces,
with punctuation after its word.
"""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import threading
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from decoders.guesser import Guesser
from duplex.errors import WeightsError

PAD, BEGIN, END, SPACE = "_", "^", "$", " "

_NAMES = {
    "A": "ˈeɪ", "B": "bˈiː", "C": "sˈiː", "D": "dˈiː", "E": "ˈiː", "F": "ˈɛf", "G": "dʒˈiː", "H": "ˈeɪtʃ", "I": "ˈaɪ",
    "J": "dʒˈeɪ", "K": "kˈeɪ", "L": "ˈɛl", "M": "ˈɛm", "N": "ˈɛn", "O": "ˈoʊ", "P": "pˈiː", "Q": "kjˈuː", "R": "ˈɑːɹ",
    "S": "ˈɛs", "T": "tˈiː", "U": "jˈuː", "V": "vˈiː", "W": "dˈʌbəljˌuː", "X": "ˈɛks", "Y": "wˈaɪ", "Z": "zˈiː",
}  # fmt: skip

# Words that the lexicon lacks or has wrong for the written language.
_OVERRIDES = {
    "okay": "oʊkˈeɪ", "hello": "həlˈoʊ", "am": "æm", "what": "wʌt", "when": "wɛn", "javascript": "dʒˈɑːvəskɹˌɪpt",
    "wound": "wˈuːnd", "read": "ɹˈiːd", "celsius": "sˈɛlsiəs", "fye": "fˈaɪ", "hum": "hˈʌm", "github": "ɡˈɪthʌb",
    "emoji": "ɪmˈoʊdʒi", "qwen": "kwˈɛn", "duologue": "dˈuːəlˌɔɡ", "miz": "mˈɪz", "linux": "lˈɪnəks", "pi": "pˈaɪ",
}  # fmt: skip
_PAST = frozenset(
    ("have", "has", "had", "having", "been", "was", "were", "i've", "you've", "we've", "they've", "already", "be", "being")
)

_VOWELS = frozenset("aeiouæɐɑɒɔəɚɛɜɪʊʌᵻ")
# Phonemes without an id in the voice: the nearest that have one.
_NEAREST = {
    "g": "ɡ", "ɝ": "ɜː", "ɫ": "l", "ɬ": "l", "ʤ": "dʒ", "ʧ": "tʃ", "ʦ": "ts", "ʣ": "dz", "ɹ̩": "ɚ", "ʼ": "", "‿": "", ".": "",
    "ɨ": "ɪ", "ʁ": "ɹ", "ʔ": "t", "ʲ": "", "r": "ɹ", "x": "k", "\u0303": "n", "\u0329": "", "\u0361": "", "ː": "", "ˑ": "", "ˈ": "",
    "ˌ": "", "ᵻ": "ɪ", "ɐ": "ə", "ɾ": "t", "ɜ": "ə",
}  # fmt: skip


_MOST_GUESSES = 20_000  # remembered


class Phonemizer(Protocol):
    """Spoken words to IPA, one string a word; [] in, [] out."""

    def __call__(self, words: Sequence[str]) -> list[str]: ...


class Lexicon:
    """gruut's American English lexicon and its guesser. Thread-safe; one instance serves any number of conversations."""

    def __init__(self, folder: Path | None = None, *, guesses: bool = True) -> None:
        """`folder` holds lexicon.db and g2p/model.crf; by default that of the installed gruut-lang-en.

        guesses: whether words that it lacks are guessed (for which python-crfsuite is needed) or left silent.

        Raises:
            WeightsError: it is not there.
        """
        folder = folder or _package_folder("gruut_lang_en") / "espeak"
        if not (folder / "lexicon.db").is_file():
            raise WeightsError(f"no pronunciation lexicon at {folder}; install gruut and gruut-lang-en again")
        self._lock = threading.Lock()
        self._guess = Guesser(folder / "g2p" / "model.crf") if guesses else None
        self._known = {**_read(folder / "lexicon.db"), **_OVERRIDES}
        self.guessed = 0
        """Times so far that a pronunciation had to be guessed, or was left silent; a guess is remembered."""

    def __call__(self, words: Sequence[str]) -> list[str]:
        """The IPA of each word, in context."""
        spoken = [self._word(word) for word in words]
        for index, word in enumerate(words):
            following = spoken[index + 1] if index + 1 < len(words) else ""
            spoken[index] = _in_context(word, spoken[index], following, words[max(index - 3, 0) : index])
        return spoken

    def _word(self, word: str) -> str:
        if word[:1].isupper():
            return _NAMES[word[0]] + ("z" if word.endswith("'s") else "")
        known = self._known.get(word)
        return known if known is not None else self._outside(word)

    def _outside(self, word: str) -> str:
        """A word that the lexicon lacks: a possessive of one that it has, or a guess, which is remembered."""
        stem, apostrophe, tail = word.partition("'")
        if apostrophe and tail in ("s", "") and (found := self._known.get(stem)):
            return _plural(found) if tail else found
        with self._lock:
            self.guessed += 1
            if self._guess is None:
                return ""
            ipa = self._guess(word.replace("'", "") or word).replace(" ", "")
            if self.guessed < _MOST_GUESSES:
                self._known[word] = ipa
            return ipa


@dataclass(frozen=True, slots=True)
class PhonemeIds:
    """A clause as the voice reads it."""

    ids: tuple[int, ...]
    """[P]"""
    word_ends: tuple[int, ...]
    """For each word, how many ids precede the end of its last phoneme."""


@dataclass(slots=True)
class PhonemeTable:
    """The voice's own list of phonemes."""

    ids: dict[str, list[int]]
    unknown: Counter[str] = field(default_factory=Counter)
    """Code points that had neither an id nor a neighbour that has one, and how often they were met."""

    @classmethod
    def load(cls, config: Path) -> PhonemeTable:
        """Read `phoneme_id_map` of a Piper voice's .onnx.json.

        Raises:
            WeightsError: it is missing or not such a file.
        """
        try:
            table = json.loads(config.read_text(encoding="utf-8"))["phoneme_id_map"]
            return cls({key: [int(value) for value in values] for key, values in table.items()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsError(f"{config} is not a Piper voice's configuration ({error}); delete it and fetch it again") from error

    def encode(self, words: Sequence[str], marks: Sequence[str]) -> PhonemeIds:
        """IPA of each word and the punctuation after it ("" for none), to ids."""
        pad = self.ids[PAD]
        ids = [*self.ids[BEGIN], *pad]
        ends = []
        for index, (word, mark) in enumerate(zip(words, marks, strict=True)):
            for character in (SPACE if index else "") + word:
                for value in self._codes(character):
                    ids += [value, *pad]
            ends.append(len(ids))
            for value in self._codes(mark) if mark else ():
                ids += [value, *pad]
        return PhonemeIds((*ids, *self.ids[END]), tuple(ends))

    def phones(self, text: str) -> list[int]:
        """The ids of IPA, a space or a mark, without the pads between them."""
        return [value for character in text for value in self._codes(character)]

    def _codes(self, character: str) -> list[int]:
        if character in self.ids:
            return self.ids[character]
        codes: list[int] = []
        for part in unicodedata.normalize("NFD", character):
            near = part if part in self.ids else _NEAREST.get(part)
            if near is None or any(symbol not in self.ids for symbol in near):
                self.unknown[part] += 1
            else:
                codes += [value for symbol in near for value in self.ids[symbol]]
        return codes


def _in_context(word: str, ipa: str, following: str, before: Sequence[str]) -> str:
    """What the next word (its IPA, "" at the end) and the words before do to a word."""
    vowel = following.lstrip("ˈˌ")[:1] in _VOWELS if following else False
    if word == "the":
        return "ðɪ" if vowel else "ðə"
    if word == "to":
        return "tʊ" if vowel else "tə" if following else "tˈuː"
    if word == "read" and _PAST.intersection(before):
        return "ɹˈɛd"
    if ipa.endswith("ɾ") and not vowel:
        return ipa[:-1] + "t"
    if ipa.endswith("ɚɹ") and not vowel:
        return ipa[:-1]
    return ipa


def _plural(ipa: str) -> str:
    if ipa.endswith(("s", "z", "ʃ", "ʒ")):
        return ipa + "ᵻz"
    return ipa + ("s" if ipa.endswith(("p", "t", "k", "f", "θ")) else "z")


def _read(lexicon: Path) -> dict[str, str]:
    """All words and their first pronunciation. The table has no index, so one pass (0.2 s) is what two dozen queries would cost."""
    connection = sqlite3.connect(f"file:{lexicon}?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT word, phonemes FROM word_phonemes WHERE role = '' ORDER BY pron_order DESC")
        return {word: ipa.replace(" ", "") for word, ipa in rows}
    except sqlite3.DatabaseError as error:
        raise WeightsError(f"the lexicon {lexicon} is damaged ({error}); install gruut-lang-en again") from error
    finally:
        connection.close()


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise WeightsError(f"the package {name} is missing; install duologue again")
    return Path(spec.origin).parent
