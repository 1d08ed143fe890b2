"""Clauses: exact, independent of how the text arrives, early, and never cut inside a figure or an abbreviation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoders.clauses import ClauseConfig, ClauseSplitter, ClauseState

_FRAGMENTS = [
    " and",
    " the",
    " U.S.",
    " 3.5",
    " etc.",
    " Dr.",
    " word",
    ",",
    ".",
    "...",
    " no.",
    " 1.",
    "\n",
    "—",
    " -",
    " ",
    "。",
    " I.",
    '"',
]
texts = st.one_of(st.text(max_size=400), st.lists(st.sampled_from(_FRAGMENTS), max_size=80).map("".join))


def split(text: str, *sizes: int) -> list[str]:
    """Clauses of `text` fed in pieces of the given sizes, over and over."""
    splitter, state, clauses, at, turn = ClauseSplitter(), ClauseState(), [], 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)] if sizes else len(text)
        clauses += splitter.push(state, text[at : at + size])
        at, turn = at + size, turn + 1
    return clauses + splitter.finish(state)


@given(texts, st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_any_grouping_gives_the_same_clauses_and_they_join_to_the_text(text: str, sizes: list[int]) -> None:
    whole = split(text)
    assert "".join(whole) == text
    assert split(text, *sizes) == whole


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("Paris. It has 2,102,650 people.", ["Paris.", " It has 2,102,650 people."]),
        ("Pi is 3.14 or so. Yes.", ["Pi is 3.14 or so.", " Yes."]),
        ("Dr. Smith lives in the U.S. with us. Ok.", ["Dr. Smith lives in the U.S. with us.", " Ok."]),
        ("We meet at 3 p.m. He knows.", ["We meet at 3 p.m.", " He knows."]),
        ("See https://a.b/c,d now. Bye.", ["See https://a.b/c,d now.", " Bye."]),
        ("1. First this\n2. Then that", ["1. First this", "\n2. Then that"]),
        ('He said "go." Then left.', ['He said "go."', " Then left."]),
        ("Yes, I do.", ["Yes, I do."]),
        ("Well of course, I do.", ["Well of course,", " I do."]),
        ("No. I do not.", ["No.", " I do not."]),
        ("See no. 5 there. Ok.", ["See no. 5 there.", " Ok."]),
    ],
)
def test_where_a_text_is_cut(text: str, clauses: list[str]) -> None:
    assert split(text) == clauses


def test_first_clause_is_out_as_soon_as_the_next_character_shows_that_it_ended() -> None:
    splitter, state = ClauseSplitter(), ClauseState()
    assert splitter.push(state, "The capital is Paris.") == []
    assert splitter.push(state, " ") == ["The capital is Paris."]


def test_text_without_punctuation_is_cut_before_a_conjunction_and_at_the_latest_after_twelve_words() -> None:
    assert split("one two three four five six seven eight nine and ten") == [
        "one two three four five six seven eight nine",
        " and ten",
    ]
    assert len(split("word " * 40)[0].split()) == 12


def test_a_clause_grows_no_faster_than_the_sound_before_it_covers() -> None:
    lengths = [len(clause.split()) for clause in split("Well. " + "word " * 80)]
    assert lengths[:3] == [1, 6, 18] and max(lengths) == ClauseConfig().most_words[2]
    assert split("Bees produce honey, which is a sweet, sticky substance that they use to make food.") == [
        "Bees produce honey,",
        " which is a sweet,",
        " sticky substance that they use to make food.",
    ]
    with pytest.raises(ValueError, match="cover"):
        ClauseConfig(cover=0)


def test_buffer_is_bounded() -> None:
    assert max(len(clause) for clause in split("x" * 5000)) == ClauseConfig().most_characters


def test_lengths_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="must rise"):
        ClauseConfig(soft_words=(9, 9, 9))
