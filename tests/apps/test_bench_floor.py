"""The floor bench's systems, on conversations of made-up syllables: what is known when, and what each system makes of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from apps.bench_floor import _delays, _setting, _table, draw
from apps.bench_floor_systems import Ours, Silence, last_seconds, overlap_run, silero, smart_turn_file
from apps.floor_listening import Known, Took, listen
from duplex.audio import user_samples
from duplex.floor_scores import curve, floor_scores
from duplex.predictor import Ending, RulePredictor
from duplex.predictor_net import FloorNet, NetConfig
from duplex.predictor_trained import TrainedPredictor
from duplex.scenario import Scenario, ScenarioConfig
from duplex.scenario_builder import Builder
from encoders.ears import Transcript
from tests.duplex.built_speech import stock
from tests.duplex.test_scenario import LoudIsVoice


class OneSentence:
    """Ears that hear one sentence always, and count."""

    interim_s = 0.6

    def __init__(self, text: str, listening: float | None) -> None:
        self.text, self.listening, self.asked, self.settled = text, listening, 0, list[int]()

    def open(self) -> dict[str, int]:
        return {"end": 0}

    def feed(self, state: dict[str, int], samples: np.ndarray) -> None:
        state["end"] += len(samples)

    def begin_turn(self, state: dict[str, int], start: int) -> None:
        assert 0 <= start <= state["end"]

    def window(self, state: dict[str, int]) -> int:
        return state["end"]

    def transcribe(self, window: int) -> Transcript:
        self.asked += 1
        return Transcript(self.text, window, listening=self.listening, over=1.0)

    def settle(self, state: dict[str, int], window: int, transcript: Transcript) -> None:
        assert window == transcript.end <= state["end"]
        self.settled.append(window)


class Reader:
    """Reads what these ears hear."""

    def __init__(self, text: str = "What is it?", listening: float | None = None) -> None:
        self.ears, self.read = OneSentence(text, listening), 0

    def ends(self, said: Transcript) -> Ending:
        self.read += 1
        return Ending(0.5)


TOOK = Took(0.15, 0.1)


@cache
def builder() -> Builder:
    return Builder(stock(), ScenarioConfig(clean=True))


def ticks_of(scenario: Scenario, text: str = "What is it?") -> list[Known]:
    return listen(scenario, LoudIsVoice(), Reader(text), TOOK)


def loud(samples: np.ndarray) -> list[tuple[int, bool]]:
    return [(end, p > 0.5) for end, p in LoudIsVoice().feed({"end": 0}, samples)]


def test_words_are_known_only_after_the_work_that_they_take() -> None:
    scenario = builder().turn(1, 0)
    end = next(e.end for e in scenario.events if e.kind == "turn")
    ticks = [one.known for one in ticks_of(scenario) if one.known is not None and one.known.at > end]
    fresh = next(known for known in ticks if known.transcript_fresh)
    read = next(known for known in ticks if known.sentence_ends is not None and known.transcript_fresh)
    assert user_samples(0.15) <= fresh.at - end < user_samples(0.5) and read.at >= fresh.at and read.sentence_ends == 0.5


def test_new_words_are_read_after_they_were_heard() -> None:
    reader, scenario = Reader(), builder().turn(1, 0)
    told = [one for one in listen(scenario, LoudIsVoice(), reader, TOOK) if one.said is not None]
    assert [one.read for one in told].index(True) in (1, 2), "it takes 100 ms, more than a tick"
    assert reader.read == 1 < reader.ears.asked and reader.ears.settled == sorted(reader.ears.settled)


def test_the_time_that_work_takes_is_noted() -> None:
    took = Took()
    listen(builder().turn(1, 0), LoudIsVoice(), reader := Reader(), took)
    assert len(took.heard_s) == reader.ears.asked and len(took.was_read_s) == reader.read and min(took.heard_s) >= 0


def test_before_anything_was_said_nothing_is_known() -> None:
    ticks = ticks_of(builder().turn(1, 0))
    assert ticks[0].known is None and ticks[-1].known is not None


def test_a_long_sound_over_the_agent_is_recognised_while_it_lasts() -> None:
    scenario = builder().overlap(5, "interruption")
    reader = Reader()
    listen(scenario, LoudIsVoice(), reader, TOOK)
    event = next(e for e in scenario.events if e.kind == "interruption")
    assert reader.ears.asked >= (event.end - event.start) / 16000 / 0.4 and not reader.read


def test_what_may_be_a_backchannel_is_known_with_the_words() -> None:
    scenario = builder().overlap(5, "interruption")
    ticks = listen(scenario, LoudIsVoice(), Reader(listening=0.4), TOOK)
    told = [(one.known.listening, one.heard.listening) for one in ticks if one.known is not None and one.known.agent_speaking]
    assert told[0] == (None, None) and told[-1] == (0.4, 0.4)


def test_what_was_no_interruption_is_forgotten_when_the_agent_has_spoken() -> None:
    for kind, kept in (("backchannel", False), ("interruption", True)):
        scenario = builder().overlap(5, kind)  # type: ignore[arg-type]
        ticks = listen(scenario, LoudIsVoice(), Reader(), TOOK)
        after = [one.known is not None for one in ticks if not one.heard.agent_speaking and one is not ticks[0]]
        assert after[-1] == kept


def test_an_interruption_silences_the_agent_before_the_floor_is_given_up() -> None:
    """The turn-taking core itself decides: it holds its breath, and then stops or goes on."""
    ours = Ours("rules", RulePredictor())
    for seed in range(6):
        scenario = builder().overlap(seed, "interruption")
        onset = next(e.start for e in scenario.events if e.kind == "interruption")
        found = overlap_run(ours, "interruption", scenario, ticks_of(scenario, "No, I meant the other one"))
        if found.yields_at is not None:
            assert found.quiet_at is not None and onset < found.quiet_at <= found.yields_at
            assert found.quiet_at - onset < user_samples(0.4)
    scenario = builder().overlap(3, "backchannel")
    talked_through = overlap_run(ours, "backchannel", scenario, ticks_of(scenario, "Yeah."))
    assert talked_through.yields_at is None and talked_through.quiet_at is None and 0 < talked_through.held_s < 2


def test_the_rules_answer_a_question_sooner_than_700_ms_of_silence() -> None:
    rules, plain = Ours("rules", RulePredictor()), Silence("silence", loud)
    for seed in range(4):
        scenario = builder().turn(seed, 0)
        ticks = ticks_of(scenario)
        a, b = rules.turn(scenario, ticks), plain.turn(scenario, ticks)
        soon, late = a.delay_s(a.takes), b.delay_s(b.takes)
        assert soon is not None and late is not None and soon < late == pytest.approx(0.7, abs=0.05)


def test_a_long_enough_voice_interrupts_and_a_short_one_does_not() -> None:
    system = Silence("silence", loud, voice_s=0.5)
    for seed in range(20):
        scenario = builder().overlap(seed, "interruption")
        event = next(e for e in scenario.events if e.kind == "interruption")
        found = overlap_run(system, "interruption", scenario, [])
        if event.end - event.start > user_samples(0.9):
            assert found.yields_at is not None and user_samples(0.4) < found.yields_at - found.onset < user_samples(1.3)
    short = builder().overlap(0, "backchannel")
    assert overlap_run(Silence("silence", loud, voice_s=0.8), "backchannel", short, []).yields_at is None


def test_a_trained_predictor_is_measured_the_same_way() -> None:
    system = Ours("trained", TrainedPredictor(FloorNet(NetConfig(window=8))))
    scenario = builder().turn(2, 1)
    found = system.turn(scenario, ticks_of(scenario))
    assert len(found.at) == len(found.score) and found.pauses and found.takes[found.at > found.end].any()


def test_the_report_says_all(tmp_path: Path) -> None:
    rules = Ours("rules", RulePredictor())
    scenarios = [builder().turn(seed, seed % 2) for seed in range(8)]
    runs = [rules.turn(s, ticks_of(s)) for s in scenarios]
    over = [overlap_run(rules, kind, s, ticks_of(s)) for kind in ("interruption", "noise") for s in [builder().overlap(1, kind)]]
    rows = _table({"rules": floor_scores(runs, over)})
    assert rows[-1].startswith("| rules |") and rows[-1].count("|") == rows[0].count("|")
    points = curve(runs)
    assert "ms" in _delays({"rules": points})[-1] and "silence" in _setting(points)
    draw({"people": {"rules": points}, "synthetic": {"rules": points}}, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_the_newest_seconds_have_zeros_in_front() -> None:
    part = last_seconds(np.ones(1600, np.float32), 1600, 0.2)
    assert len(part) == 3200 and part[:1600].sum() == 0 and part[1600:].sum() == 1600


def test_what_is_not_installed_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def none(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", none)
    assert smart_turn_file() is None


@pytest.mark.weights
def test_silero_hears_speech(edge_weights: dict[str, Path]) -> None:
    from apps.bench_clips import clips
    from duplex.vad import Vad

    windows = silero(Vad(edge_weights["silero-vad"]))(clips("questions")[0].samples())
    assert np.mean([yes for _, yes in windows]) > 0.6
