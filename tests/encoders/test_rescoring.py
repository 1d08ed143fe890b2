"""Choosing among what may have been said: the judge's say is weighed, and only places of doubt change."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.rescoring import Doubt, choose
from encoders.word_lattice import Said
from encoders.word_lexicon import Lexicon

WORDS = ("", "", "the", "cat", "hat", "sat", "on", "mat", "who")
ID = {word: index for index, word in enumerate(WORDS)}
LEXICON = Lexicon(WORDS, np.array([ID["the"]]), ((0,),), np.zeros(1))


def words(text):
    """Words; one with a full stop ends a sentence."""
    found = []
    for key, word in enumerate(text.split()):
        before = found[-1] if found else None
        number = ID[word.rstrip(".")]
        found.append(Said(before, number, word.endswith("."), (), key, number, hash((text, key))))
    return found


def encode(text):
    return list(text.encode())


def written(tokens):
    return bytes(tokens).decode()


def spoken(said):
    return " ".join(WORDS[one.word] + "." * one.ends for one in said)


def by(likes, asked=None):
    """Likes texts in which one of these occurs, by so much; asked: where what it is asked goes."""

    def judge(tokens, doubts):
        if asked is not None:
            asked.append((written(tokens), [(written(tokens[: d.at]), written(d.usual), written(d.other)) for d in doubts]))
        return [
            sum(more * ((like in written(d.other)) - (like in written(d.usual))) for like, more in likes.items()) for d in doubts
        ]

    return judge


USUAL = "the cat sat on the mat"


def test_other_words_are_taken_where_the_judge_outweighs_the_search():
    paths = [(0.0, words(USUAL)), (2.0, words("the hat sat on the mat"))]
    for likes, weight, heard in (
        (5, 0.5, "the hat sat on the mat"),
        (3, 0.5, USUAL),
        (3, 1.0, "the hat sat on the mat"),
        (-9, 1.0, USUAL),
    ):
        assert spoken(choose(paths, weight, LEXICON, encode, by({"hat": likes}))) == heard


def test_the_judge_sees_what_is_before_and_three_words_after():
    asked = []
    choose([(0.0, words(USUAL)), (1.0, words("the hat sat on the mat"))], 1.0, LEXICON, encode, by({}, asked))
    assert asked == [("The cat sat on the mat.", [("The", " cat sat on the", " hat sat on the")])]
    asked.clear()
    choose([(0.0, words("the cat")), (1.0, words("the cat sat"))], 1.0, LEXICON, encode, by({}, asked))
    assert asked == [("The cat.", [("The", " cat.", " cat sat.")])] or asked == [("The cat.", [("The cat.", "", " sat.")])]


def test_two_places_are_decided_each_for_itself_and_one_place_once():
    paths = [
        (0.0, words(USUAL)),
        (1.0, words("the hat sat on the mat")),
        (1.0, words("the cat sat on the hat")),
        (1.5, words("who sat on the mat")),
    ]
    assert spoken(choose(paths, 1.0, LEXICON, encode, by({"hat": 4}))) == "the hat sat on the hat"
    assert spoken(choose(paths, 1.0, LEXICON, encode, by({"hat": 4, "Who": 9}))) == "who sat on the hat"


def test_words_may_be_dropped_and_put_in_and_sentences_end_elsewhere():
    for other in (
        "the cat on the mat",
        "the cat sat on on the mat",
        "the cat. sat on the mat",
        "the cat sat on the",
        "who the cat sat on the mat",
    ):
        assert (
            spoken(choose([(0.0, words(USUAL)), (1.0, words(other))], 1.0, LEXICON, encode, lambda _, doubts: [5.0] * len(doubts)))
            == other
        )


texts = st.lists(st.sampled_from(["the", "cat", "hat.", "sat", "on", "mat", "who"]), min_size=1, max_size=8).map(" ".join)


@settings(deadline=None)
@given(texts, st.lists(st.tuples(st.floats(0, 6), texts), max_size=6), st.randoms(use_true_random=False))
def test_whatever_the_judge_says_words_come_from_the_paths(usual, others, random):
    paths = [(0.0, words(usual)), *((less, words(text)) for less, text in others)]
    seen = []

    def judge(tokens, doubts):
        seen.extend(doubts)
        return [random.uniform(-9, 9) for _ in doubts]

    chosen = choose(paths, 1.0, LEXICON, encode, judge)
    assert {one.word for one in chosen} <= {one.word for _, path in paths for one in path}
    assert all(isinstance(one, Doubt) and one.usual != one.other and one.at >= 0 for one in seen)
    assert choose(paths, 1.0, LEXICON, encode, lambda _, doubts: [-1.0] * len(doubts)) == paths[0][1]
