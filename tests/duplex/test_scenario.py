"""Built conversations: labels that fit what happens, repeatable, and no shortcut from silence to the end of a turn."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from duplex import scenario_sounds
from duplex.audio import TICK
from duplex.scenario import KEEP, RESPOND, WAIT, YIELD, Scenario, ScenarioConfig, Stock
from duplex.scenario_builder import Builder, trim
from duplex.scenario_hearing import hear
from duplex.scenario_probe import FEATURES, area, probe, silences
from tests.duplex.built_speech import stock, utterance


class LoudIsVoice:
    """Voice is what is louder than -45 dBFS."""

    def open(self) -> dict[str, int]:
        return {"end": 0}

    def feed(self, state: dict[str, int], samples: np.ndarray) -> list[tuple[int, float]]:
        found = []
        for window in samples[: len(samples) // 320 * 320].reshape(-1, 320):
            state["end"] += 320
            found.append((state["end"], 0.99 if np.sqrt(np.mean(window**2)) > 0.0056 else 0.01))
        return found


@cache
def builder(clean: bool = True) -> Builder:
    return Builder(stock(), ScenarioConfig(clean=clean))


@cache
def conversations(count: int, clean: bool = True) -> list[Scenario]:
    return [builder(clean).conversation(seed) for seed in range(count)]


def test_the_same_seed_builds_the_same_conversation() -> None:
    a, b = (Builder(stock()).conversation(7) for _ in range(2))
    assert np.array_equal(a.user, b.user) and np.array_equal(a.labels, b.labels) and a.events == b.events
    assert not np.array_equal(a.user, Builder(stock()).conversation(8).user)


@pytest.mark.parametrize("clean", [True, False])
def test_tracks_fit_together(clean: bool) -> None:
    for built in conversations(12, clean):
        assert len(built.user) == len(built.agent) == built.ticks * TICK == len(built.speaking) * TICK
        assert np.isfinite(built.user).all() and np.abs(built.user).max() <= 1.5
        assert set(np.unique(built.labels[built.speaking])) <= {WAIT, YIELD, KEEP}
        assert set(np.unique(built.labels[~built.speaking])) <= {WAIT, RESPOND}
        assert [e.start for e in built.events] == sorted(e.start for e in built.events)


def test_every_decision_occurs_and_lies_where_its_cause_is() -> None:
    seen = set()
    for built in conversations(40):
        at = (np.arange(built.ticks) + 1) * TICK
        seen |= set(built.labels.tolist())
        for event in built.events:
            inside = built.labels[(at > event.start) & (at <= event.end)]
            if event.kind == "pause":
                assert (inside[~built.speaking[(at > event.start) & (at <= event.end)]] == WAIT).all()
            if event.kind == "interruption":
                over = built.speaking[(at > event.start) & (at <= event.end)]
                assert (inside[over] == YIELD).all() and over.any()
            if event.kind == "backchannel":
                assert (inside == KEEP).all()
            if event.kind == "turn" and not built.speaking[event.end // TICK]:
                assert built.labels[event.end // TICK] == RESPOND
    assert seen == {WAIT, RESPOND, YIELD, KEEP}


def test_a_pause_is_silent_and_so_is_the_end() -> None:
    for built in conversations(20):
        for event in built.events:
            if event.kind == "pause":
                assert np.abs(built.user[event.start + 16 : event.end - 16]).max() < 1e-4


def test_silence_alone_does_not_tell_a_turn_end_from_a_pause() -> None:
    built = conversations(220)
    rows, ends = silences(built)
    assert len(ends) > 600 and 0.42 < ends.mean() < 0.60
    assert 0.42 < probe(built) < 0.58
    for column, name in enumerate(FEATURES):
        assert abs(area(rows[:, column], ends) - 0.5) < 0.07, name


def test_the_probe_finds_a_shortcut_where_there_is_one() -> None:
    """Turn ends that the agent always answers at once."""
    quick = [Scenario(s.user, s.agent, _earlier(s), s.labels, s.events) for s in conversations(80)]
    assert probe(quick) > 0.75


def _earlier(built: Scenario) -> np.ndarray:
    speaking = built.speaking.copy()
    for event in built.events:
        if event.kind == "turn":
            tick = event.end // TICK + 3
            speaking[tick : tick + 1] = True
    return speaking


def test_a_probe_needs_something_to_judge() -> None:
    with pytest.raises(ValueError, match="more conversations"):
        probe(conversations(2))


def test_one_turn_has_the_pauses_that_were_asked_for() -> None:
    for pauses in (0, 1, 2):
        counts = [sum(e.kind == "pause" for e in builder().turn(seed, pauses).events) for seed in range(10)]
        assert counts == [pauses] * 10
    assert not builder().turn(0, 0).speaking.any()


@pytest.mark.parametrize("kind", ["interruption", "backchannel", "noise", "side_talk"])
def test_one_thing_happens_over_the_agent(kind: str) -> None:
    built = builder().overlap(3, kind)  # type: ignore[arg-type]
    event = next(e for e in built.events if e.kind == kind)
    assert built.speaking[event.start // TICK]
    assert (YIELD if kind == "interruption" else KEEP) in built.labels


def test_trimming_keeps_what_is_loud() -> None:
    loud = np.full(1600, 0.3, np.float32)
    assert len(trim(np.concatenate([np.zeros(3200, np.float32), loud, np.zeros(1600, np.float32)]))) == 1600


@pytest.mark.parametrize("kind", scenario_sounds.KINDS)
def test_sounds_are_sounds(kind: str) -> None:
    made = scenario_sounds.sound(kind, np.random.default_rng(1))
    assert made.dtype == np.float32 and np.isfinite(made).all()
    assert np.abs(made).max() == pytest.approx(0.5, abs=1e-3) and 0.1 < len(made) / 16000 < 2


def test_an_unknown_sound_is_told() -> None:
    with pytest.raises(ValueError, match="choose one of"):
        scenario_sounds.sound("moo", np.random.default_rng(0))


def test_a_telephone_keeps_only_its_band() -> None:
    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1
    spectrum = np.abs(np.fft.rfft(scenario_sounds.telephone(noise))) ** 2
    assert spectrum[:150].mean() < 0.05 * spectrum[500:3000].mean()
    assert spectrum[4200:].mean() < 0.01 * spectrum[500:3000].mean()


def test_hearing_knows_voice_and_silence() -> None:
    built = conversations(3)[2]
    heard = hear(built, LoudIsVoice())
    turn = next(e for e in built.events if e.kind == "turn")
    assert heard[turn.start // TICK + 4].voiced
    after = heard[(turn.end + 6400) // TICK]
    assert not after.voiced and after.silence_s == pytest.approx(0.4, abs=0.12)


def test_a_stock_of_one_voice_and_short_sentences_builds_too() -> None:
    rng = np.random.default_rng(0)
    one = [utterance(rng, "low", 0.5, 0.9) for _ in range(5)]
    assert Builder(Stock(one, one, one)).conversation(0).ticks > 20
