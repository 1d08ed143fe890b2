"""What comes after what: probabilities that add up, the longest match first, and the same again from a file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.errors import WeightsError
from encoders.word_ngrams import BEGIN, END, FIRST, STEPS, WordNgrams

WORDS = 7
sentences = st.lists(st.lists(st.integers(FIRST, WORDS - 1), min_size=1, max_size=5), min_size=1, max_size=12)
word = st.integers(0, WORDS - 1)


def after(ngrams, before, last):
    every = np.arange(WORDS)
    return np.exp(ngrams.log(np.full(WORDS, before), np.full(WORDS, last), every))


@given(sentences, word, word)
def test_after_any_two_words_the_odds_of_all_add_up_to_one(said, before, last):
    odds = after(WordNgrams.count(said, WORDS), before, last)
    assert odds.sum() == pytest.approx(1.0, abs=1e-6) and (odds > 0).all()


def test_what_was_said_is_likely_and_what_was_never_said_is_not_impossible():
    said = [[2, 3, 4]] * 6 + [[5, 3, 6]] * 3 + [[2, 6]]
    ngrams = WordNgrams.count(said, WORDS)
    assert after(ngrams, 2, 3).argmax() == 4 and after(ngrams, 5, 3).argmax() == 6
    assert after(ngrams, BEGIN, BEGIN).argmax() == 2 and after(ngrams, 3, 4).argmax() == END
    assert after(ngrams, 4, 3)[4] > after(ngrams, 4, 3)[5] > 0  # a history that was never heard: its last word counts


@given(sentences, word, word)
def test_what_is_kept_is_what_is_loaded(said, before, last):
    ngrams = WordNgrams.count(said, WORDS)
    again = WordNgrams.of(ngrams.tensors())
    assert np.allclose(np.log(after(again, before, last)), np.log(after(ngrams, before, last)), atol=1.5 / STEPS + 1e-9), (
        "three are added, each up to half a step off"
    )


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="no sentences"):
        WordNgrams.count([], WORDS)
    with pytest.raises(ValueError, match="at most 65536"):
        WordNgrams.count([[2]], 70_000)
    with pytest.raises(WeightsError, match="not the probabilities"):
        WordNgrams.of({})
