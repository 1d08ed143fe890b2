"""The rule predictor, the words it knows, the hum measure, and the latencies read off sound."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.bench_clips import clips
from duplex.english import is_backchannel, opens_interruption, seems_complete
from duplex.errors import ConfigError
from duplex.hum import hum_likeness
from duplex.metrics import Spread, response_latency_s, stop_latency_s
from duplex.predictor import RuleConfig, RulePredictor, TickInput


def known(**changes: object) -> TickInput:
    base: dict[str, object] = dict(
        at=0, voiced=False, voiced_s=1.0, silence_s=0.0, agent_speaking=False, transcript="Is it?", transcript_fresh=True
    )
    return TickInput(**{**base, **changes})  # type: ignore[arg-type]


def ready_after_s(**changes: object) -> float:
    rules = RulePredictor()
    return next(s / 100 for s in range(300) if rules.tick(None, known(silence_s=s / 100, **changes)).respond >= 0.8)


def test_waiting_depends_on_what_was_said() -> None:
    assert ready_after_s() == pytest.approx(0.40, abs=0.02)
    assert ready_after_s(transcript="I like it.") == pytest.approx(0.70, abs=0.02)
    assert ready_after_s(transcript="I would like to") == pytest.approx(1.50, abs=0.02)
    assert ready_after_s(transcript_fresh=False) == pytest.approx(1.00, abs=0.02)
    assert ready_after_s(transcript="I like it.", sentence_ends=0.001) == pytest.approx(1.50, abs=0.02)
    assert ready_after_s(transcript="I would like to", sentence_ends=0.9) == pytest.approx(0.70, abs=0.02)
    assert 0.8 < ready_after_s(transcript="I like it.", sentence_ends=0.07) < 1.4


def test_words_that_the_llm_reads_are_not_answered_before_it_has() -> None:
    rules = RulePredictor(RuleConfig(unread_s=0.6))
    said = known(transcript="Can you tell me?", silence_s=0.5)
    assert rules.tick(None, said).respond < 0.8 <= RulePredictor().tick(None, said).respond
    assert rules.tick(None, known(transcript="Can you tell me?", silence_s=0.5, sentence_ends=0.9)).respond >= 0.8
    assert rules.tick(None, known(transcript="Can you tell me?", silence_s=0.65)).respond >= 0.8


def test_a_turn_that_surely_goes_on_is_told() -> None:
    rules = RulePredictor()
    assert rules.tick(None, known(transcript="I would like to", silence_s=0.3, sentence_ends=0.001)).goes_on == pytest.approx(1.0)
    assert rules.tick(None, known(silence_s=0.3, sentence_ends=0.9)).goes_on == pytest.approx(0.0, abs=1e-9)
    assert rules.tick(None, known(transcript_fresh=False, silence_s=0.3)).goes_on == 0.0


def test_one_silence_for_every_turn_is_allowed_and_tells_nothing() -> None:
    rules = RulePredictor(RuleConfig(complete_s=0.7, statement_s=0.7, incomplete_s=0.7))
    assert rules.tick(None, known(silence_s=0.3)).goes_on == 0.0
    assert rules.tick(None, known(silence_s=0.7)).respond >= 0.8


@given(st.floats(0, 5), st.floats(0, 5), st.booleans(), st.booleans(), st.text(max_size=30), st.booleans(), st.floats(0, 1))
def test_probabilities_are_probabilities(
    silence_s: float, voiced_s: float, voiced: bool, agent_speaking: bool, transcript: str, transcript_fresh: bool, hum: float
) -> None:
    tick = known(**locals(), listening=hum)
    decision = RulePredictor().tick(None, tick)
    assert all(0 <= p <= 1 for p in (decision.respond, decision.yield_, decision.backchannel))


@given(st.floats(0, 3), st.floats(0, 3), st.booleans())
def test_longer_silence_never_makes_an_answer_less_likely(a: float, b: float, fresh: bool) -> None:
    rules, low, high = RulePredictor(), min(a, b), max(a, b)
    respond = [rules.tick(None, known(silence_s=s, transcript_fresh=fresh)).respond for s in (low, high)]
    assert respond[0] <= respond[1]


def test_a_tick_is_cheap() -> None:
    rules, tick = RulePredictor(), known(agent_speaking=True, transcript="okay then", silence_s=0.5)
    best = min(_timed(rules, tick) for _ in range(50))
    assert best < 2e-3  # the budget of a tick, a hundred times what it takes


def _timed(rules: RulePredictor, tick: TickInput) -> float:
    began = time.thread_time()
    rules.tick(None, tick)
    return time.thread_time() - began


def over(**changes: object) -> TickInput:
    return known(**{"agent_speaking": True, "voiced_s": 0.7, "silence_s": 0.3, "transcript": "God is.", **changes})


def test_what_may_be_a_backchannel_is_not_taken_for_an_interruption() -> None:
    rules = RulePredictor()
    assert rules.tick(None, over()).yield_ >= 0.9
    assert rules.tick(None, over(listening=0.5)).backchannel >= 0.9
    assert rules.tick(None, over(listening=0.5, voiced=True, silence_s=0.0)).yield_ < 0.7
    for plainly in (
        {"transcript": "God is in the house"},  # too many words
        {"transcript": "Wait."},  # words that open interruptions
        {"voiced_s": 0.95},  # too long
        {"listening": 0.35},  # too unlikely
        {"listening": None},  # not known
    ):
        assert rules.tick(None, over(**{"listening": 0.5, **plainly})).yield_ >= 0.9


def test_what_surely_asks_for_nothing_takes_no_floor_however_long() -> None:
    rules = RulePredictor()
    talk = {"transcript": "and then she said that it was late", "listening": 0.9}
    assert rules.tick(None, over(**talk, voiced_s=3.0, voiced=True, silence_s=0.0)).yield_ < 0.7
    assert rules.tick(None, over(**talk, voiced_s=3.0)).backchannel >= 0.9
    assert rules.tick(None, over(**{**talk, "transcript": "Wait, what"}, voiced_s=3.0, voiced=True)).yield_ >= 0.9
    assert rules.tick(None, over(**{**talk, "listening": 0.8}, voiced_s=3.0, voiced=True)).yield_ >= 0.9


def test_words_that_can_hardly_be_a_listeners_take_the_floor_sooner() -> None:
    rules = RulePredictor()
    said = over(voiced=True, silence_s=0.0, voiced_s=0.45, transcript="What about", listening=0.05)
    assert rules.tick(None, said).yield_ >= 0.9
    for changed in (
        {"listening": 0.2},
        {"listening": None},
        {"transcript": ""},
        {"transcript": "Yeah"},
        {"voiced_s": 0.35},
        {"hum": 0.9},
    ):
        assert rules.tick(None, replace(said, **changed)).yield_ < 0.7  # type: ignore[arg-type]


def test_wrong_settings_say_what_to_change() -> None:
    with pytest.raises(ConfigError, match="complete_s"):
        RuleConfig(complete_s=2.0)
    with pytest.raises(ConfigError, match="plainly_s"):
        RuleConfig(plainly_s=0.7)
    with pytest.raises(ConfigError, match="nothing_p"):
        RuleConfig(nothing_p=0.2)


@pytest.mark.parametrize(
    "text",
    ["Mm-hmm.", "Yeah, okay.", "Uh-huh", "Right.", "", "Got it!", "All right, got it.", "Got it, got it.", "That makes sense."],
)
def test_backchannels(text: str) -> None:
    assert is_backchannel(text)


@pytest.mark.parametrize(
    "text", ["Wait.", "What about Italy?", "Yes but what is it", "okay okay okay okay okay", "it", "got it " * 5]
)
def test_no_backchannels(text: str) -> None:
    assert not is_backchannel(text)


def test_words_that_open_interruptions_and_sentences_that_hang() -> None:
    assert opens_interruption("Wait, stop!") and not opens_interruption("mm-hm")
    assert seems_complete("What is it?") and seems_complete("I like it.")
    assert not seems_complete("I would like to know, um,") and not seems_complete("The capital of the") and not seems_complete("")


def test_hums_are_told_from_words_on_the_shipped_clips() -> None:
    for clip in clips("backchannels"):
        if clip.text == "mm-hm":
            assert _least_hum(clip.samples(), 0.3) > 0.5, clip.file
    for clip in clips("interruptions"):
        assert _least_hum(clip.samples(), 0.25) < 0.5, clip.file


def _least_hum(samples: np.ndarray, seconds: float) -> float:
    return min(hum_likeness(samples[at - 1600 : at]) for at in range(1600, int(seconds * 16_000), 320))


def test_latencies_are_read_off_the_sound() -> None:
    agent = np.zeros(24_000 * 5, np.float32)
    agent[24_000 : 24_000 * 3] = 0.1
    assert response_latency_s(agent, 8_000) == pytest.approx(0.5)
    assert stop_latency_s(agent, 16_000 * 3 - 3_200) == pytest.approx(0.2, abs=1e-3)
    assert stop_latency_s(agent, 16_000 * 4) is None
    assert response_latency_s(agent, 16_000 * 4) is None
    assert Spread.of([1.0, 2.0, 9.0]).median == 2.0
    with pytest.raises(ValueError):
        Spread.of([])
