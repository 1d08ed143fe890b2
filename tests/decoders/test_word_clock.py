"""Words end in order, never before their estimate, and the last one with the sound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoders.word_clock import WordClock


def test_words_come_at_the_pace_of_the_sample() -> None:
    clock = WordClock(codes_per_token=6.0)
    for word in (" one", " two", " three"):
        clock.add(word, 1)
    assert clock.until(5) == []
    assert clock.until(12) == [(" one", 6.0), (" two", 12.0)]
    assert clock.until(12) == []


def test_when_the_end_is_known_the_rest_is_spread_over_it() -> None:
    clock = WordClock(codes_per_token=6.0)
    for word in "abcd":
        clock.add(word, 1)
    assert [text for text, _ in clock.until(6)] == ["a"]
    clock.end_at(codes=30, spoken=6)
    assert clock.until(30) == [("b", pytest.approx(14.0)), ("c", pytest.approx(22.0)), ("d", pytest.approx(30.0))]


@given(
    st.lists(st.tuples(st.text(min_size=0, max_size=3), st.integers(1, 4)), max_size=20),
    st.lists(st.integers(0, 60), max_size=8),
    st.floats(0.5, 20),
)
def test_texts_come_whole_in_order_and_the_last_with_the_last_code(pieces, steps, pace) -> None:
    clock, given_texts, codes, last = WordClock(codes_per_token=pace), "", 0, 0.0
    for index, (text, tokens) in enumerate(pieces):
        clock.add(text, tokens)
        if index < len(steps):
            codes += steps[index]
            for word, end in clock.until(codes):
                assert last <= end <= codes + 1e-3
                given_texts, last = given_texts + word, end
    total = codes + 25
    clock.end_at(total, codes)
    for word, end in clock.until(total):
        assert last - 1e-3 <= end <= total + 1e-3
        given_texts, last = given_texts + word, end
    assert given_texts + clock.rest() == "".join(text for text, _ in pieces)
    assert clock.rest() == ""
