"""How an unknown word is probably said: gruut's grapheme-to-phoneme CRF, with the features that it was trained on.

Only python-crfsuite is needed here, neither gruut nor the packages that it imports.
"""

from __future__ import annotations

import base64
import importlib
import unicodedata
from pathlib import Path
from typing import Any

_REACH = 3  # letters looked at on both sides
_SILENT = "_"


class Guesser:
    """A trained CRF (gruut's `model.crf`). Not thread-safe."""

    def __init__(self, model: Path) -> None:
        """Raises ImportError without python-crfsuite, OSError or ValueError for a damaged model."""
        self._tagger: Any = importlib.import_module("pycrfsuite").Tagger()
        self._tagger.open(str(model))

    def __call__(self, word: str) -> str:
        """IPA of a word of lower-case letters."""
        letters = [_coded(letter) for letter in unicodedata.normalize("NFC", word)]
        tags = [_read(tag) for tag in self._tagger.tag([_features(letters, index) for index in range(len(letters))])]
        return "".join(phoneme for tag in tags for phoneme in tag.split("|") if phoneme != _SILENT)


def _features(letters: list[str], index: int) -> dict[str, str | bool | float]:
    """What the CRF sees of one letter."""
    found: dict[str, str | bool | float] = {"bias": 1.0, "grapheme": letters[index]}
    if index == 0:
        found["begin"] = True
    for far in range(1, _REACH + 1):
        if index >= far:
            found[f"grapheme-{far}"] = letters[index - far]
        if index + far < len(letters):
            found[f"grapheme+{far}"] = letters[index + far]
    if index == len(letters) - 1:
        found["end"] = True
    return found


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")


def _read(coded: str) -> str:
    return base64.b64decode(coded.encode("ascii")).decode()
