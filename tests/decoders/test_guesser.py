"""The guesser is gruut's, to the last phoneme."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from decoders.guesser import Guesser
from decoders.phonemes import Lexicon


def test_guesses_are_those_of_gruut() -> None:
    g2p = pytest.importorskip("gruut.g2p")
    spec = importlib.util.find_spec("gruut_lang_en")
    assert spec is not None and spec.origin is not None
    model = Path(spec.origin).parent / "espeak" / "g2p" / "model.crf"
    theirs, ours = g2p.GraphemesToPhonemes(str(model)), Guesser(model)
    for word in ("a", "zyx", "brillig", "okonkwo", "thorvaldsen", "quackenbush", "café"):
        assert ours(word) == "".join(theirs(word))


def test_without_guesses_an_unknown_word_is_silent_and_counted() -> None:
    lexicon = Lexicon(guesses=False)
    assert lexicon(["hello", "brillig", "brillig"])[1:] == ["", ""]
    assert lexicon.guessed == 2
