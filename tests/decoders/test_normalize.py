"""Normalising: what is said for what is written, and that nothing of the source is lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoders.normalize import Reader, normalize

_MARKUP = [
    "**",
    "```",
    "`",
    "#",
    "- ",
    "\n",
    "[",
    "](",
    ")",
    "http://",
    "@",
    "$",
    "5",
    "3.5",
    ":30",
    " pm",
    "%",
    "é",
    "字",
    "😀",
    "II",
    " King",
    ".",
]


def said(text: str) -> str:
    return " ".join(" ".join(piece.words) + piece.mark for piece in normalize(text, Reader()))


@given(st.one_of(st.text(max_size=200), st.lists(st.sampled_from(_MARKUP), max_size=40).map("".join)))
def test_any_text_passes_whole_and_is_said_in_known_letters(text: str) -> None:
    pieces = normalize(text, Reader())
    assert "".join(piece.source for piece in pieces) == text
    for piece in pieces:
        assert piece.mark in ("", ",", ";", ":", ".", "?", "!")
        for word in piece.words:
            assert re.fullmatch(r"[a-z']+|[A-Z](?:'s)?", word), (text, word)


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("1,234,567 people", "one million two hundred thirty four thousand five hundred sixty seven people"),
        ("in 1969", "in nineteen sixty nine"),
        ("in 2007", "in two thousand seven"),
        ("the 1990s", "the nineteen nineties"),
        ("3.14", "three point one four"),
        ("-5 degrees", "minus five degrees"),
        ("the 21st", "the twenty first"),
        ("at 3:30 pm.", "at three thirty P M."),
        ("at 3:00", "at three o'clock"),
        ("July 4, 1776", "july fourth, seventeen seventy six"),
        ("2023-12-25", "december twenty fifth twenty twenty three"),
        ("$3.50 or €1", "three dollars and fifty cents or one euro"),
        ("$5 million", "five million dollars"),
        ("60%", "sixty percent"),
        ("5 km/h at 20°C", "five kilometers per hour at twenty degrees celsius"),
        ("1 kg", "one kilogram"),
        ("1/2 or 3 1/4", "one half or three and a quarter"),
        ("2½", "two and a half"),
        ("555-123-4567", "five five five one two three four five six seven"),
        ("5-10", "five to ten"),
        ("Dr. and Mrs. Jones", "doctor and missus jones"),
        ("St. Louis", "saint louis"),
        ("Main St.", "main street."),
        ("e.g. tea, etc.", "for example tea, et cetera."),
        ("The FBI and NASA", "the F B I and nasa"),
        ("PCs", "P C's"),
        ("H2O", "H two O"),
        ("JavaScript", "java script"),
        ("King Henry VIII", "king henry the eighth"),
        ("World War II", "world war two"),
        ("I am Plan A", "i am plan A"),
        ("a@b.com", "A at B dot com"),
        ("https://www.example.org/docs?x=1", "example dot org slash docs"),
        ("2 + 2 = 4", "two plus two equals four"),
        ("5 - 3", "five minus three"),
        ("salt & pepper", "salt and pepper"),
        ("Café naïve", "cafe naive"),
        ("hello 😀 你好", "hello"),
        ("**Bold** and *it*, `code`", "bold and it, code"),
        ("# Title\n- one\n- two", "title. one. two"),
        ("[text](https://a.org/b) here", "text here"),
        ("Really?!", "really?"),
        ("HELLO THERE MY GOOD FRIEND", "hello there my good friend"),
    ],
)
def test_what_is_said(written: str, spoken: str) -> None:
    assert said(written) == spoken


def test_code_fence_is_silent_over_several_clauses() -> None:
    reader = Reader()
    words = [
        word for text in ("Here:", "\n```python\nx = 1.", " y = 2\n```\nDone.") for p in normalize(text, reader) for word in p.words
    ]
    assert words == ["here", "done"]


def test_each_word_keeps_its_source() -> None:
    pieces = normalize(" It costs $5, **really**!", Reader())
    assert [piece.source for piece in pieces] == [" It ", "costs ", "$5, **", "really**!"]
