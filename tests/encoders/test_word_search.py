"""The search for words: streaming equals offline, what was heard decides where it is clear and the language where it is not."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from encoders.word_lattice import Doubts, spelt
from encoders.word_lexicon import Lexicon
from encoders.word_ngrams import WordNgrams
from encoders.word_search import WordSearch, WordSearchConfig

PHONES = "aehiklnostw"
SOUNDS = {
    "the": ["he", "ha"],
    "cat": ["kat"],
    "sat": ["sat"],
    "on": ["on"],
    "two": ["to"],
    "to": ["to", "ta"],
    "hat": ["hat"],
    "who": ["ho"],
}
WORDS = ("", "", *SOUNDS)
ID = {word: index for index, word in enumerate(WORDS)}
TEXTS = ["the cat sat on the hat", "two hat", "who sat", "cat to cat", "the cat sat to the cat"]


def number(text):
    return [ID[word] for word in text.split()]


@pytest.fixture(scope="module")
def search():
    rows = [(ID[word], tuple(PHONES.index(p) for p in way)) for word, ways in SOUNDS.items() for way in ways]
    words, phones = zip(*rows, strict=True)
    lexicon = Lexicon(WORDS, np.array(words), phones, np.full(len(rows), math.log(0.5)), {(ID["who"],): 0.9})
    return WordSearch(lexicon, WordNgrams.count([number(text) for text in TEXTS * 3], len(WORDS)))


def heard(said, sure=0.9, blanks=1):
    """Sounds that say these phones: each once and then the blank; letters in brackets are as likely as one another."""
    rows = []
    at = 0
    while at < len(said):
        some = said[at + 1 : said.index(")", at)] if said[at] == "(" else said[at]
        at += len(some) + 2 * (said[at] == "(")
        row = np.full(1 + len(PHONES), (1 - sure) / (1 + len(PHONES)))
        if some != " ":
            for phone in some:
                row[1 + PHONES.index(phone)] += sure / len(some)
            rows.append(row)
        for _ in range(blanks):
            rows.append(np.full(1 + len(PHONES), 0.05 / len(PHONES)))
            rows[-1][0] = 0.95
    return np.log(np.array(rows) / np.sum(rows, 1, keepdims=True)).astype(np.float32)


def text(search, state):
    best = search.best(state)
    return None if best is None else "".join(one for _, one, _ in spelt(best.words(), search.lexicon))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("hekatsatonhehat", "The cat sat on the hat."),
        ("hekat", "The cat."),
        ("hosat", "Who sat?"),
        ("tohat", "Two hat."),  # and not "to"
        ("kattokat", "Cat to cat."),  # and not "two"
        ("he(kh)atsat", "The cat sat."),  # heard as either, said with "cat" only
        ("hekatsaton(hw)e(hk)at", "The cat sat on the hat."),
        ("hekatsaonhehat", "The cat sat on the hat."),  # one phone missing
        ("helkatsatonhehat", "The cat sat on the hat."),  # one too many
    ],
)
def test_words_are_what_was_heard_and_what_is_said(search, said, words):
    assert text(search, search.step(search.open(), heard(said))) == words


def test_silence_says_nothing(search):
    state = search.step(search.open(), heard("    " * 20))
    assert search.best(state) is None and search.first_words(search.open()) == {}
    assert text(search, search.step(state, heard("hekat"))) == "The cat."


phones = st.lists(st.sampled_from([*PHONES, " "]), min_size=1, max_size=24).map("".join)


@settings(deadline=None, max_examples=60)
@example("aiheaaaaaahna", [1, 1, 1, 1, 1, 1, 5], 0.59375)  # more words end alike than may
@given(phones, st.lists(st.integers(1, 9), max_size=8), st.floats(0.3, 0.95))
def test_a_stream_gives_what_one_long_step_gives(search, said, steps, sure):
    odds = heard(said, sure)
    whole, state, at = search.step(search.open(), odds), search.open(), 0
    for count in [*steps, len(odds)]:
        state = search.step(state, odds[at : at + count])
        at += count
    assert text(search, state) == text(search, whole)
    assert state.speaking.max() == pytest.approx(whole.speaking.max()) and len(state.places) == len(whole.places)


def test_what_comes_later_changes_nothing_before_and_a_state_can_be_gone_back_to(search):
    odds = heard("hekatsat")
    state = search.step(search.open(), odds)
    before = [array.copy() for array in (state.places, state.speaking, state.quiet, state.last)]
    first = text(search, state)
    one = text(search, search.step(state, heard("onhehat")))
    assert one == "The cat sat on the hat." and text(search, state) == first == "The cat sat."
    assert all(np.array_equal(a, b) for a, b in zip(before, (state.places, state.speaking, state.quiet, state.last), strict=True))
    assert text(search, search.step(state, heard("onhehat"))) == one


def test_words_keep_their_keys_for_as_long_as_nothing_before_is_heard_otherwise(search):
    state = search.step(search.open(), heard("hekat"))
    first = [one.key for one in search.best(state).words()]
    second = [one.key for one in search.best(search.step(state, heard("saton"))).words()]
    assert second[:2] == first and len(set(second)) == 4


def test_what_may_have_been_said_instead_comes_with_how_likely_it_is(search):
    best = search.best(search.step(search.open(), heard("satonhe(kh)at")))
    word = best.words()[-1]
    others = dict(word.others)
    assert {word.word} | others.keys() == {ID["cat"], ID["hat"]} and 0 < sum(others.values()) < 1
    assert dict(search.best(search.step(search.open(), heard("hekatsat"))).others) == {}


def test_first_words_are_weighed(search):
    odds = search.first_words(search.step(search.open(), heard("(ks)aton", sure=0.95)))
    assert odds[ID["cat"]] + odds[ID["sat"]] > 0.8 and sum(odds.values()) == pytest.approx(1.0)
    assert max(search.first_words(search.step(search.open(), heard("hosat"))).items(), key=lambda one: one[1])[0] == ID["who"]


def test_a_sentence_begins_where_the_words_ask_for_it(search):
    said = heard("hosat hekatsat")
    for another, words in ((0.0, "Who sat? The cat sat."), (-9.0, "Who sat the cat sat?")):
        eager = WordSearch(search.lexicon, search.ngrams, WordSearchConfig(another=another))
        assert text(eager, eager.step(eager.open(), said)) == words


def test_memory_is_bounded(search):
    state = search.open()
    sizes = []
    for _ in range(40):
        state = search.step(state, heard("hekatsatonhehat"))
        sizes.append((len(state.places), len(state.said), len(state.histories)))
    assert max(sizes[20:]) <= max(sizes[:20]) and len(search.best(state).words()) == 240


@pytest.mark.parametrize("wrong", [{"beam": 0}, {"floor": 0}, {"most_ways": 0}, {"words_weight": -1}, {"quiet": 0}])
def test_wrong_settings_say_what_to_change(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WordSearchConfig(**wrong)


def said(words):
    return [WORDS[one.word] for one in words]


@settings(deadline=None, max_examples=60)
@given(phones, st.floats(0.3, 0.95))
def test_paths_are_the_likeliest_and_others_that_are_worse(search, heard_phones, sure):
    state = search.step(search.open(), heard(heard_phones, sure))
    paths, best = search.paths(state), search.best(state)
    assert (best is None) == (not paths)
    if paths:
        assert paths[0] == (0.0, best.words())
        texts = [tuple((one.word, one.ends) for one in words) for _, words in paths]
        assert texts[0] not in texts[1:]
        assert all(0 <= less <= search.config.doubts.worse and words for less, words in paths)


def test_a_word_before_the_last_two_may_be_another(search):
    wide = WordSearch(search.lexicon, search.ngrams, WordSearchConfig(doubts=Doubts(12), beam=20))
    paths = wide.paths(wide.step(wide.open(), heard("he(kh)atsatonhehat", sure=0.95)))
    others = {" ".join(said(words)) for _, words in paths}
    assert {"the cat sat on the hat", "the hat sat on the hat"} <= others
    sure = WordSearch(search.lexicon, search.ngrams, WordSearchConfig(doubts=Doubts(0)))
    assert len(sure.paths(sure.step(sure.open(), heard("he(kh)atsatonhehat")))) == 1


def test_what_is_remembered_stays_little(search):
    state = search.step(search.open(), heard("(kh)a(tk)" * 40, sure=0.5))
    words = search.best(state).words()
    assert len(words) > 20 and all(len(one.beaten) <= search.config.doubts.most for one in words)
    assert len(search.paths(state)) <= 1 + search.config.doubts.most * len(words)


@pytest.mark.parametrize("settings", [{"worse": -1.0}, {"most": -1}])
def test_doubts_below_nought_are_refused(settings):
    with pytest.raises(ValueError, match="must not be below 0"):
        Doubts(**settings)
