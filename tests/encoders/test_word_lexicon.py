"""Words and their sounds: kept as they are, and one tree of all of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duplex.errors import WeightsError
from encoders.word_lexicon import Lexicon, PronunciationTree
from encoders.word_ngrams import FIRST

said = st.lists(
    st.tuples(st.integers(0, 4), st.lists(st.integers(0, 5), min_size=1, max_size=5).map(tuple)),
    min_size=1,
    max_size=20,
    unique=True,
)
WORDS = ("", "", "one", "two", "three", "Zoë", "five")


def lexicon(rows):
    words, phones = zip(*rows, strict=True)
    return Lexicon(WORDS, np.array(words) + FIRST, phones, np.full(len(rows), -0.5), {(2,): 0.75, (2, 5): 0.25})


@given(said)
def test_what_is_kept_is_what_is_loaded(rows):
    one = lexicon(rows)
    again = Lexicon.of(one.tensors())
    assert (again.words, again.phones, again.asks) == (one.words, one.phones, one.asks)
    assert np.array_equal(again.word, one.word) and np.allclose(again.odds, one.odds)


@given(said)
def test_every_pronunciation_is_one_way_through_the_tree(rows):
    single = np.linspace(-5, -1, len(WORDS))
    tree = PronunciationTree(lexicon(rows), single)
    found = []

    def walk(node, way):
        for end in range(tree.end_starts[node], tree.end_starts[node] + tree.end_counts[node]):
            found.append((int(tree.end_words[end]) - FIRST, way))
            assert tree.ahead[node] >= single[tree.end_words[end]] + tree.end_odds[end] - 1e-9 or not node
        for child in tree.children[tree.child_starts[node] : tree.child_starts[node] + tree.child_counts[node]].tolist():
            assert tree.ahead[child] <= tree.ahead[node] + 1e-9
            walk(child, (*way, int(tree.phone[child]) - 1))

    walk(0, ())
    assert sorted(found) == sorted(rows)


def test_beginnings_tell_questions_the_longer_one_first():
    one = lexicon([(0, (1,))])
    assert one.question([2, 3]) and one.question([2]) and not one.question([2, 5, 3]) and not one.question([4, 2])


def test_what_is_no_lexicon_is_refused():
    kept = lexicon([(0, (1, 2)), (1, (3,))]).tensors()
    with pytest.raises(WeightsError, match="no lexicon"):
        Lexicon.of({})
    with pytest.raises(WeightsError, match="not those of its words"):
        Lexicon.of(kept | {"sizes": torch.tensor([2, 9], dtype=torch.uint8)})
    with pytest.raises(WeightsError, match="not those of its words"):
        Lexicon.of(kept | {"word": torch.tensor([2, 99], dtype=torch.int16)})
