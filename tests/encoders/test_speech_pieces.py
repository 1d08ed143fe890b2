"""Sentences put together from pieces: the likeliest way through CTC, and pieces that are those of the phones that were asked for."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duplex.errors import InputError
from encoders.speech_augment import SoundBank
from encoders.speech_batches import Spoken, Words, letter_shares
from encoders.speech_pieces import BLOCK, Heard, Imagination, Pieces, align

PHONES = 4


def scores(classes, sure=0.9):
    """The given class per place, blank 0."""
    found = np.full((len(classes), 1 + PHONES), (1 - sure) / PHONES, np.float32)
    found[np.arange(len(classes)), classes] = sure
    return np.log(found)


def reading(classes):
    return [b - 1 for a, b in pairwise([0, *classes]) if b and b != a]


@given(st.lists(st.integers(0, PHONES), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_the_way_through_says_the_labels_in_order(classes, seed):
    labels = np.array(reading(classes), np.int64)
    odds = np.random.default_rng(seed).normal(0, 2, (len(classes), 1 + PHONES)).astype(np.float32)
    found = align(odds, labels)
    if not len(labels):
        assert found is None
        return
    last, score = found
    assert (np.diff(last) > 0).all() and last[-1] < len(classes)
    for a, b, k in zip(labels, labels[1:], range(len(last) - 1), strict=False):
        assert a != b or last[k + 1] - last[k] >= 2  # between equal ones something lies
    best = odds.max(1).sum()
    assert score <= best + 1e-3
    given = odds[np.arange(len(classes)), classes].sum()  # one way that says them
    assert score >= given - 1e-3


def test_ends_are_where_a_phone_was_last_heard():
    last, score = align(scores([0, 2, 2, 0, 0, 3, 0, 3, 0]), np.array([1, 2, 2]))
    assert last.tolist() == [2, 5, 7]
    assert score == pytest.approx(9 * np.log(0.9))
    assert align(scores([1, 1]), np.array([0, 0])) is None  # three places are needed


@pytest.fixture
def pieces():
    """Each phone is heard for as many places as its number and one; twenty recordings, each surer than the one before."""
    rng = np.random.default_rng(1)
    heard = []
    for row in range(20):
        said = rng.permutation(PHONES)
        classes = [0, 0]
        for phone in said:
            classes += [0] + [phone + 1] * (phone + 1)
        heard.append(Heard(scores([*classes, 0, 0, 0], 0.7 + 0.01 * row), said))
    return Pieces(heard)


def test_a_sentence_is_given_pieces_of_its_phones(pieces):
    rng = np.random.default_rng(0)
    said = np.array([2, 0, 3, pieces.edge])
    for _ in range(20):
        made = pieces.say(said, rng)
        best = [one.argmax(1) for one in made]
        assert [b[-1] for b in best] == [3, 1, 4, 0]
        assert [(b == p + 1).sum() for b, p in zip(best, said[:3], strict=False)] == [3, 1, 4]
        assert len(best[3]) == 3  # the silence of the end
    kinds = {round(float(np.exp(pieces.say(said, rng)[0].max())), 1) for _ in range(60)}
    assert len(kinds) > 1


def test_all_of_a_sentence_comes_from_recordings_heard_about_equally_well(pieces):
    rng = np.random.default_rng(0)
    for _ in range(20):
        sure = [float(np.exp(one.max())) for one in pieces.say(np.array([1, 0, 2, 3, pieces.edge]), rng)]
        assert max(sure) - min(sure) < 0.055


def test_what_was_never_heard_is_left_out(pieces):
    one = Pieces([Heard(scores([0, 1, 0]), np.array([0]))])
    assert [len(x) for x in one.say(np.array([0, 2, one.edge]), np.random.default_rng(0))] == [2, 0, 1]
    with pytest.raises(InputError, match="known"):
        Pieces([Heard(scores([0, 1]), np.zeros(0, np.int64))])


def texts(phones, words=None):
    """Four texts, of which the first is kept back; nothing of their sound is asked for."""
    first = [np.array(t) for t in ([5], [6, 7], [8], [9])]
    following = [np.array(t) for t in ([15], [16, 17], [18], [19])]
    shares = [(letter_shares([1] * len(t)),) * 2 for t in first]
    nothing = SoundBank(torch.zeros(1, dtype=torch.int16), torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long))
    said = [np.array(p, np.int64) for p in phones]
    return Spoken(nothing, np.array([0]), ["nobody"], first, following, np.array([True]), np.array([1]), shares, said, words)


def test_batches_are_of_written_sentences_that_are_not_kept_back(pieces):
    drawn = Imagination(pieces, texts(([0, 1], [2, 3, 1], [], [3, 0])), np.random.default_rng(3))
    seen = set()
    for _ in range(40):
        batch = drawn.draw(1.0, pairs=0.5)
        assert batch.odds.shape[1] % BLOCK == 0 and batch.odds.shape[2] == PHONES + 1
        for row, target in enumerate(batch.written.targets):
            seen.add(tuple(target.tolist()))
            count = 2 * batch.written.frames[row]
            assert (batch.odds[row, count:].argmax(1) == 0).all()
            assert (np.diff(batch.written.places[row]) > 0).all() and batch.written.places[row][-1] <= batch.written.frames[row]
            said = reading(batch.odds[row].argmax(1).tolist())
            meant = {(6, 7): [2, 3, 1], (9,): [3, 0]}
            assert said == next(
                p + (q or [])
                for a, p in meant.items()
                for b, q in (((), None), ((16, 17), [2, 3, 1]), ((19,), [3, 0]))
                if tuple(target.tolist()) == a + b
            )
    assert {(6, 7), (9,)} <= seen and any(len(one) > 2 or one[-1] > 9 for one in seen)


def test_without_phones_there_is_nothing_to_put_together(pieces):
    with pytest.raises(InputError, match="pack"):
        Imagination(pieces, texts([[]] * 4), np.random.default_rng(0))


def test_half_of_the_batches_are_of_words_that_do_not_belong_together(pieces):
    said = {(30,): [0], (31, 32): [2, 3], (33,): [1, 2]}
    first, following = [np.array(one) for one in said], [np.array(one) + 10 for one in said]
    words = Words(first, following, [np.array(one) for one in said.values()], np.array([0.1, 0.6, 0.3]))
    drawn = Imagination(pieces, texts(([0, 1], [2, 3, 1], [], [3, 0]), words), np.random.default_rng(3))
    counts: Counter[tuple[int, ...]] = Counter()
    of_words = 0
    for _ in range(60):
        batch = drawn.draw(8.0)
        if batch.written.targets[0][0] < 30:
            continue
        of_words += 1
        for row, target in enumerate(batch.written.targets):
            left, phones, begins = target.tolist(), [], True
            while left:
                word = next(one for one in said if [token + 10 * (not begins) for token in one] == left[: len(one)])
                counts[word] += 1
                phones += said[word]
                left, begins = left[len(word) :], False
            assert reading(batch.odds[row].argmax(1).tolist()) == phones
            places = batch.written.places[row]
            assert len(places) == len(target) and (np.diff(places) > 0).all() and places[-1] <= batch.written.frames[row]
    assert 20 <= of_words <= 40
    assert counts[(31, 32)] > counts[(33,)] > counts[(30,)] > 0
