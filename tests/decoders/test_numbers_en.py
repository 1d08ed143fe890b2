"""Number words: known values, and that every number has a name of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoders.numbers_en import cardinal, decimal, fraction, ordinal, plural, year


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (cardinal(0), "zero"),
        (cardinal(1_000_001), "one million one"),
        (cardinal(999), "nine hundred ninety nine"),
        (cardinal(-13), "minus thirteen"),
        (ordinal(1), "first"),
        (ordinal(12), "twelfth"),
        (ordinal(30), "thirtieth"),
        (ordinal(1000), "one thousandth"),
        (year(1905), "nineteen oh five"),
        (year(1900), "nineteen hundred"),
        (year(2000), "two thousand"),
        (year(2024), "twenty twenty four"),
        (decimal("0", "05"), "zero point zero five"),
        (fraction(3, 4), "three quarters"),
        (fraction(7, 100), "seven over one hundred"),
        (plural(["sixty"]), "sixties"),
    ],
)
def test_known_values(words: list[str], text: str) -> None:
    assert " ".join(words) == text


@given(st.integers(0, 10**36 - 1), st.integers(0, 10**36 - 1))
def test_different_numbers_are_said_differently(a: int, b: int) -> None:
    assert (cardinal(a) == cardinal(b)) == (a == b)


def test_number_beyond_the_names_is_read_digit_by_digit() -> None:
    assert cardinal(10**36) == ["one"] + ["zero"] * 36
