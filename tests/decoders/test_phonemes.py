"""Phonemes: the lexicon in context, guesses for the rest, and the layout of ids that the voice was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from decoders.phonemes import Lexicon, PhonemeTable
from duplex.errors import WeightsError


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon()


@pytest.mark.parametrize(
    ("text", "ipa"),
    [
        ("the end of the day", "ðɪ ˈɛnd ʌv ðə dˈeɪ"),
        ("it is it", "ɪɾ ɪz ɪt"),
        ("i have read it", "ˈaɪ hæv ɹˈɛd ɪt"),
        ("i read books", "ˈaɪ ɹˈiːd bˈʊks"),
        ("A B's", "ˈeɪ bˈiːz"),
    ],
)
def test_words_in_context(lexicon: Lexicon, text: str, ipa: str) -> None:
    assert " ".join(lexicon(text.split())) == ipa


def test_unknown_word_is_guessed_and_counted(lexicon: Lexicon) -> None:
    before = lexicon.guessed
    (ipa,) = lexicon(["blorptification"])
    assert "keɪʃən" in ipa.replace("ˈ", "") and lexicon.guessed == before + 1
    assert lexicon(["blorptification"]) == [ipa] and lexicon.guessed == before + 1


def test_every_pronunciation_of_the_lexicon_has_sounds(lexicon: Lexicon) -> None:
    assert all(lexicon(["zebra", "qwrtz", "x'y", "'"])[:3])


def test_layout_of_ids() -> None:
    table = PhonemeTable({"_": [0], "^": [1], "$": [2], " ": [3], ".": [4], "a": [5], "b": [6]})
    encoded = table.encode(["ab", "b"], ["", "."])
    assert encoded.ids == (1, 0, 5, 0, 6, 0, 3, 0, 6, 0, 4, 0, 2)
    assert encoded.word_ends == (6, 10)


def test_phoneme_without_id_becomes_its_neighbour_or_is_counted() -> None:
    table = PhonemeTable({"_": [0], "^": [1], "$": [2], " ": [3], "ɡ": [4]})
    assert table.encode(["g"], [""]).ids == (1, 0, 4, 0, 2)
    assert table.encode(["ж"], [""]).ids == (1, 0, 2) and table.unknown == {"ж": 1}


@pytest.mark.weights
def test_voice_has_an_id_for_all_that_the_lexicon_uses(edge_weights: dict[str, Path], lexicon: Lexicon) -> None:
    table = PhonemeTable.load(edge_weights["vits-joe-config"])
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "measure",
        "church",
        "judge",
        "thing",
        "this",
        "singing",
        "butter",
        "bottle",
        "button",
        "rural",
    ]
    table.encode(lexicon(words), [""] * len(words))
    assert not table.unknown


def test_file_that_is_no_voice_configuration(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[]")
    with pytest.raises(WeightsError, match="fetch it again"):
        PhonemeTable.load(path)
