"""Conversations that were listened to: what is kept of them, and what the heads and the predictor learn from it."""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import numpy as np
import pytest

from apps import train_listened, train_speech
from apps.floor_listening import listen
from apps.train_heads import FOLDS, heard_places, silences, sounds_over, texts
from apps.train_predictor import _examples
from apps.train_stock_texts import to_say, with_places
from duplex.audio import TICK, USER_RATE_HZ
from duplex.errors import InputError
from duplex.predictor_sentence_end import SentenceEnd
from duplex.scenario import ScenarioConfig
from duplex.scenario_builder import Builder
from encoders.sound_heads import SoundHeads
from tests.apps.heard_shards import HIDDEN, WIDTH, heard, write
from tests.apps.test_bench_floor import TOOK, Reader
from tests.duplex.built_speech import stock
from tests.duplex.test_scenario import LoudIsVoice


def test_a_shard_gives_the_same_conversations(tmp_path: Path) -> None:
    made = [heard(seed, last) for seed, last in ((0, 4), (1, 0), (2, 4))]
    train_listened.save(tmp_path / "c.npz", made)
    for a, b in zip(made, train_listened.load(tmp_path / "c.npz"), strict=True):
        assert (a.seed, a.events) == (b.seed, b.events)
        assert all(
            np.array_equal(getattr(a, name), getattr(b, name)) for name in ("sound", "labels", "ticks", "reading", "fresh", "read")
        )
        for mine, theirs in zip(a.readings, b.readings, strict=True):
            assert (mine.text, mine.end) == (theirs.text, theirs.end)
            assert (mine.state is None) == (theirs.state is None) and mine.states is not None and theirs.states is not None
            np.testing.assert_allclose(mine.states.frames, theirs.states.frames, atol=0.01)
            assert (mine.states.last is None) == (theirs.states.last is None)


def test_what_is_kept_is_what_was_known(tmp_path: Path) -> None:
    scenario = Builder(stock(), ScenarioConfig(clean=True)).conversation(1)
    ticks = listen(scenario, LoudIsVoice(), Reader(listening=0.4), TOOK)
    state = np.ones(3, np.float16)
    kept = train_listened.noted(1, scenario, ticks, {"What is it?": state})
    assert len(kept.ticks) == len(kept.labels) == len(ticks) and kept.events == scenario.events
    for tick, one in enumerate(ticks):
        told = kept.heard(tick, one.heard.sentence_ends, one.heard.listening)
        for name in ("voiced", "agent_speaking", "fresh", "sentence_ends", "listening"):
            assert getattr(told, name) == getattr(one.heard, name), name
        assert told.transcript == one.heard.transcript and told.silence_s == pytest.approx(one.heard.silence_s, abs=1e-5)
        if one.read:
            assert np.array_equal(kept.readings[kept.reading[tick]].state, state)


def test_pauses_ends_and_sounds_are_told_apart() -> None:
    for seed in (0, 1):
        one = heard(seed, 4)
        assert [yes for _, _, yes in silences(one)] == [False, True]
        assert [(text, yes) for text, _, yes in sounds_over(one)] == [(f"sound {seed}", seed == 1)]


def test_words_that_were_kept_back_are_not_learnt_from() -> None:
    learnt, held = heard_places([heard(seed, 4) for seed in range(60)], 20)
    assert len(learnt.over) + len(held.over) == 120 and len(learnt.listening) + len(held.listening) == 60
    assert len(learnt.over) > 5 * len(held.over) > 0 and learnt.places.states.shape[1] == HIDDEN
    with pytest.raises(ValueError, match="too few"):
        heard_places([heard(0, 4)], 20)


def test_what_a_fold_is_told_comes_from_heads_that_never_heard_its_sentences() -> None:
    many = [heard(seed, 4) for seed in range(60)]
    whole, held = heard_places(many, 20)
    folds = [heard_places(many, 20, without=fold) for fold in range(FOLDS)]
    assert sum(len(learnt.over) for learnt, _ in folds) == (FOLDS - 1) * len(whole.over)
    assert sum(len(learnt.listening) for learnt, _ in folds) == (FOLDS - 1) * len(whole.listening)
    assert all(len(back.over) == len(held.over) for _, back in folds)
    for one in many:
        told = [text for text, _, _ in (*silences(one), *sounds_over(one))]
        assert texts(one) == told, "each reading lies with the sentence under which it was learnt from"


def test_a_predictor_learns_from_what_the_heads_make_of_it() -> None:
    one = heard(3, 4)
    heads = [(SentenceEnd(HIDDEN), SoundHeads(20, WIDTH, 4)) for _ in range(FOLDS)]
    made = [_examples(one, heads)]
    for seed in range(4, 40):
        made.append(_examples(heard(seed, 4), heads))
    assert all(len(example.mel) == len(one.labels) for example in made)
    told = np.array([np.abs(example.beside[:, -8]).sum() > 0 for example in made])  # whether the odds of an end are known
    assert 0.5 < told.mean() < 1, "in some conversations nobody says how likely the turn ends"


def test_files_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    args = argparse.Namespace(conversations=100, sentences=20, seed=0, work=tmp_path)
    write(tmp_path, "bridge", args, 4)
    files = train_listened.shards(args, train_listened.work_folder(args), "bridge", train_listened.never)
    names = ["20-0-000", "20-0-001", "more-20-0-000", "people-20-0-000", *(f"turns-20-0-00{index}" for index in range(3))]
    assert [file.name for file in files] == [f"heard-bridge-{name}.npz" for name in names]
    assert "hearing" in train_listened.cost(args, ("bridge", "projector"))


def test_speakers_are_asked_for_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = argparse.Namespace(conversations=100, sentences=20, seed=0, work=tmp_path)
    write(tmp_path, "bridge", args, 4)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("apps.recorded_lines.installed", lambda *_: False)
    train_listened.need_speakers(args, tmp_path, ["bridge"])
    for cast, package in (("", "apt install flite"), ("-more", "apt install espeak-ng"), ("-turns", "apt install flight-of")):
        file = train_listened.files_of(args, tmp_path, "bridge", cast)[0]
        file.rename(tmp_path / "away")
        with pytest.raises(InputError, match=package):
            train_listened.need_speakers(args, tmp_path, ["bridge"])
        (tmp_path / "away").rename(file)


def test_every_third_conversation_is_a_sound_over_the_agents_voice() -> None:
    builder = Builder(stock(), ScenarioConfig(clean=True))
    kinds = [{e.kind for e in train_listened.scenario_of(builder, place, place).events} for place in range(18)]
    assert (
        kinds[2] == {"turn", "interruption"}
        and kinds[5] == {"backchannel"}
        and kinds[14] == {"noise"}
        and kinds[17] == {"side_talk"}
    )


def test_a_turn_by_itself_has_a_silence_behind_it() -> None:
    for seed in range(5):
        one = train_listened.scenario_of(Builder(stock(), ScenarioConfig(clean=True)), seed, seed, turns=True)
        assert {e.kind for e in one.events} <= {"turn", "pause"} and not one.speaking.any()
        assert (len(one.user) - max(e.end for e in one.events)) / USER_RATE_HZ == pytest.approx(1.7, abs=0.1)


def test_people_fall_silent_after_any_word_but_the_last_of_a_sentence() -> None:
    for seed in range(50):
        text = with_places("Well, what is it? Tell me now please", Random(seed))
        assert text.replace("| ", "") == "Well, what is it? Tell me now please" and text.count("|") in (1, 2, 3)
        assert not text.startswith("|") and "? |" not in text and ", |" not in text
    assert with_places("Go home now", Random(0)) == "Go home now"


def test_the_training_says_more_than_its_templates() -> None:
    said = to_say("training", 200, np.random.default_rng(0))
    assert len(said) == 200 and len(set(said)) > 150 and said == to_say("training", 200, np.random.default_rng(0))
    assert len(to_say("bench", 30, np.random.default_rng(0))) == 30


def test_who_halts_speaks_stretch_by_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def espoken(variant: str, pace: int, text: str) -> np.ndarray:
        said.append(text)
        return np.full(100 * len(text), 0.1, np.float32)

    monkeypatch.setattr(train_speech, "_espoken", espoken)
    samples, places = train_speech.espeak("en-us+f2")("I want, um, a table.", ["I want, um", "I want, um, a table."])
    assert said == ["I want, um,", "a table."] and places == [1100, 1900] and len(samples) == 1900
    with pytest.raises(ValueError, match="spell"):
        train_speech.espeak("en-us+f2")("mhm", ["mhm"])


def test_espeak_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="apt install espeak-ng"):
        train_speech.need_espeak()


def test_a_tick_is_80_ms() -> None:
    assert len(heard(0, 4).sound) == len(heard(0, 4).labels) * TICK
