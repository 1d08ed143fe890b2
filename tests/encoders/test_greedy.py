"""Decoding stops, and a draft changes its cost but not its result."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders import whisper_checkpoint
from encoders.greedy import GreedyConfig, circle, decode
from encoders.whisper import Whisper

KEEP_ALL = GreedyConfig(no_speech_above=1.0)


class Counting(Whisper):
    """Counts decoder passes."""

    passes = 0

    def step(self, cache, ids):
        self.passes += 1
        return super().step(cache, ids)


@pytest.fixture(scope="module")
def model() -> Whisper:
    tiny = whisper_checkpoint.tiny(2)
    tiny.__class__ = Counting
    return tiny


def frames(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-6, 1, (round(seconds * 100), 80)).astype(np.float32)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 5), kept=st.integers(0, 30), junk=st.lists(st.integers(97, 122), max_size=40))
def test_any_draft_gives_the_result_of_none(model, seed, kept, junk):
    window = frames(1.5, seed)
    alone = decode(model, window, (), KEEP_ALL)
    drafted = decode(model, window, [*alone.ids[:kept], *junk], KEEP_ALL)
    assert drafted.ids == alone.ids
    assert drafted.mean_log_prob == pytest.approx(alone.mean_log_prob, abs=1e-3)


def test_how_likely_the_first_word_shows_listening_does_not_depend_on_what_was_written(model):
    words = model.vocabulary
    try:
        model.vocabulary = replace(words, openers=tuple(range(97, 123)))  # every letter, so all but a leading space
        heard = [decode(model, frames(1.5, seed), draft, KEEP_ALL) for seed in (0, 1) for draft in ((), (100, 101))]
    finally:
        model.vocabulary = words
    assert all(one.listening == pytest.approx(1.0, abs=1e-5) for one in heard)
    assert decode(model, frames(1.5), (), KEEP_ALL).listening is None  # bytes have no such words


def test_a_right_draft_saves_passes(model):
    window = frames(1.5)
    model.passes = 0
    alone = decode(model, window, (), KEEP_ALL)
    without, model.passes = model.passes, 0
    again = decode(model, window, alone.ids, KEEP_ALL)
    assert again.ids == alone.ids and again.accepted == len(alone.ids) > 3
    assert model.passes <= 2 < without


@pytest.mark.parametrize("seconds", [0.01, 0.5, 3.0])
def test_length_is_capped_by_duration(model, seconds):
    for seed in range(4):
        long_draft = [97 + i % 26 for i in range(400)]
        for draft in ((), long_draft):
            assert len(decode(model, frames(seconds, seed), draft, KEEP_ALL).ids) <= int(seconds * 7) + 8


def test_nothing_unspeakable_is_written(model):
    for seed in range(4):
        assert set(decode(model, frames(2, seed), (), KEEP_ALL).ids) <= {*b"abcdefghijklmnopqrstuvwxyz "}


def test_unlikely_text_of_no_speech_is_dropped(model):
    window = frames(1)
    kept = decode(model, window, (), KEEP_ALL)
    dropped = decode(model, window, (), GreedyConfig(no_speech_above=0.0, unlikely_below=-1e-9))
    assert kept.ids and kept.no_speech > 0 and kept.mean_log_prob < 0
    assert dropped.ids == () and dropped.no_speech == kept.no_speech


@given(head=st.lists(st.integers(0, 3), max_size=5), phrase=st.lists(st.integers(10, 99), min_size=1, max_size=12, unique=True))
def test_circles_are_seen_and_leave_one_round(head, phrase):
    times = 8 if len(phrase) == 1 else 4 if len(phrase) < 6 else 3
    assert circle([*head, *phrase * (times - 1)]) == 0
    assert circle([*head, *phrase * times]) == len(phrase) * (times - 1)


def test_wrong_configuration_is_refused():
    for wrong in ({"tokens_per_s": 0}, {"extra_tokens": 0}, {"no_speech_above": 2}, {"unlikely_below": 1}):
        with pytest.raises(ValueError):
            GreedyConfig(**wrong)
