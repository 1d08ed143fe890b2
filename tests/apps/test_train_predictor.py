"""Training: speech with its places, a stock that is kept, a network that learns, and a command that goes on where it was stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from apps import cli, train_speech, train_stock
from duplex.errors import InputError, WeightsError
from duplex.predictor_features import Heard
from duplex.predictor_net import NetConfig
from duplex.predictor_training import Examples, Progress, TrainingConfig, examples, judge, train
from duplex.scenario import RESPOND, YIELD, Scenario, ScenarioConfig
from duplex.scenario_builder import Builder
from duplex.scenario_hearing import hear
from duplex.scenario_texts import BENCH, TRAINING, choose, sentences
from tests.duplex.built_speech import stock
from tests.duplex.test_scenario import LoudIsVoice


def letters(text: str, beginnings: list[str]) -> tuple[np.ndarray, list[int]]:
    """A voice that takes 50 ms for each letter."""
    return np.full(800 * len(text), 0.1, np.float32), [800 * len(b) for b in beginnings]


def test_a_sentence_is_spoken_with_its_places() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        spoken = train_speech.utter(letters, "me", "I want | a table. || Two | chairs too.", rng)
        assert spoken is not None and spoken.places[-1] == len(spoken.samples) and len(spoken.places) == 4
        assert spoken.said == ("I want", "I want a table.", "I want a table. Two", "I want a table. Two chairs too.")
        assert spoken.whole == (False, True, False, True) and list(spoken.places) == sorted(set(spoken.places))


def test_the_end_is_spoken_in_several_ways_too() -> None:
    rng = np.random.default_rng(0)
    texts: list[str] = []

    def listening(text: str, beginnings: list[str]) -> tuple[np.ndarray, list[int]]:
        texts.append(text)
        return letters(text, beginnings)

    for _ in range(40):
        train_speech.utter(listening, "me", "I want | a table.", rng)
    assert (
        any(t.endswith("table.") for t in texts) and any("table, you" in t for t in texts) and any("table and" in t for t in texts)
    )
    assert any(filler in " ".join(texts) for filler in (", um", ", uh", ", er"))


def test_a_voice_that_does_not_know_where_a_word_is_says_nothing() -> None:
    def lost(text: str, beginnings: list[str]) -> tuple[np.ndarray, list[int]]:
        raise ValueError("lost")

    assert train_speech.utter(lost, "me", "I want | it.", np.random.default_rng(0)) is None


def test_the_two_sets_share_no_sentence() -> None:
    assert not set(sentences("training")) & set(sentences("bench")) and len(TRAINING) > len(BENCH) > 500
    assert choose("{a/b} c", np.random.default_rng(0)) in ("a c", "b c")


def test_hums_are_hummed_and_not_spelt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str]) -> str:
        asked.append(command)
        if command[-1] != "none":
            soundfile.write(command[-1], np.zeros(8000), 16_000)
        hummed = "-p" in command
        if "-psdur" in command:
            return "pau:0.1 m:0.2 m:0.3 hh:0.35 m:0.4 pau:0.5"
        return "pau m m hh m pau" if hummed else "pau m pau"

    monkeypatch.setattr(train_speech, "_run", run)
    _, places = train_speech.flite("slt")("mhm", ["mhm"])
    assert places == [6400] and all(one[one.index("-p") + 1] == "pau m m hh m m pau" for one in asked)
    asked.clear()
    _, places = train_speech.flite("slt")("him", ["him"])
    assert places == [3200] and all(one[one.index("-t") + 1] == "him" and "-p" not in one for one in asked)


def test_flite_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="apt install flite"):
        train_speech.need_flite()


def test_a_stock_is_spoken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_speech, "need_flite", lambda: None)
    told: list[str] = []
    voices = [train_stock.Voice("me", letters, 20)]
    first = train_stock.make_stock("training", voices, tmp_path, told.append)
    again = train_stock.make_stock("training", voices, tmp_path, told.append)
    assert len(told) == 1 and len(first.utterances) == len(again.utterances) > 15
    a, b = first.utterances[3], again.utterances[3]
    assert (a.places, a.said, a.whole) == (b.places, b.said, b.whole) and np.array_equal(a.samples, b.samples)
    assert first.voices() == ["me"] and first.backchannels and first.interruptions and first.leads


def _told(scenario: Scenario, tick: int, heard: Heard) -> Heard:
    """With odds that are right, in silence and over the agent's voice."""
    label = scenario.labels[tick]
    if heard.agent_speaking:
        return replace(heard, listening=0.1 if label == YIELD else 0.9)
    return heard if heard.voiced else replace(heard, transcript="words", fresh=True, sentence_ends=0.9 if label == RESPOND else 0.1)


def built(count: int) -> list[tuple[Scenario, Examples]]:
    builder, made = Builder(stock(), ScenarioConfig(clean=True)), []
    for seed in range(count):
        scenario = builder.conversation(seed)
        heard = hear(scenario, LoudIsVoice())
        made.append(
            (
                scenario,
                examples(scenario.user, scenario.labels, scenario.events, [_told(scenario, t, h) for t, h in enumerate(heard)]),
            )
        )
    return made


def test_what_hangs_on_a_tick_is_its_weight() -> None:
    for scenario, one in built(4):
        assert one.mel.shape == (scenario.ticks, 8, 40) and one.beside.shape[0] == len(one.labels) == scenario.ticks
        assert (one.weights[scenario.labels == RESPOND] == 1).all() and one.weights.min() < 0.2


def test_it_learns_stops_and_goes_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [one for _, one in built(10)]
    net = NetConfig(width=32, inner=32, front=8, window=16)
    file = tmp_path / "p.pt"
    losses: list[Progress] = []
    train(data, net, TrainingConfig(epochs=20, batch=5, ticks=120), file, losses.append)
    more: list[Progress] = []
    taught = train(data, net, TrainingConfig(epochs=60, batch=5, ticks=120), file, more.append)
    assert losses[-1].step == 40 and more[0].step > 40 and more[-1].step == 120
    assert more[-1].loss < 0.8 * losses[0].loss
    found = judge(taught, data)
    assert found.turn_end_auc > 0.7 and found.interruption_auc > 0.7  # the words tell, and these it was taught
    assert found.ends_hardly < found.ends_surely
    file.write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match="begin anew"):
        train(data, net, TrainingConfig(), file, more.append)


def test_the_cost_is_told_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "predictor", "--dry-run"]) == 0
    assert "min of learning" in capsys.readouterr().out
    assert cli.main(["train", "predictor", "--conversations", "3"]) == 2
    assert "at least 50" in capsys.readouterr().err
