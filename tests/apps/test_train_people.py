"""What recorded people say: where their speakers fall silent, and which lines may interrupt, or show that somebody listens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps import train_people
from apps.recorded_lines import Line
from apps.train_people import goes_on, make_people, spans, stock_of, utter
from duplex.audio import Samples, user_samples
from duplex.scenario import Utterance
from encoders.ears import Ears


def _noise(seconds: float, level: float = 0.3) -> Samples:
    return np.random.default_rng(0).normal(0, level, user_samples(seconds)).astype(np.float32)


def _silence(seconds: float) -> Samples:
    return np.zeros(user_samples(seconds), np.float32)


def _said(voice: str, seconds: float, *said: str) -> Utterance:
    n = user_samples(seconds)
    places = tuple(n * (k + 1) // len(said) for k in range(len(said)))
    return Utterance(voice, _noise(seconds), places, said, (*(False for _ in said[1:]), True))


def test_silences_are_found_and_cut_off_at_the_ends() -> None:
    sound, gaps = spans(
        np.concatenate([_silence(0.2), _noise(1.0), _silence(0.3), _noise(0.5), _silence(0.05), _noise(0.5), _silence(1)])
    )
    assert len(sound) == user_samples(2.35) and gaps == [(user_samples(1.0), user_samples(1.3))]
    assert spans(_silence(1.0)) == (pytest.approx(_silence(0)), []) and len(spans(_silence(0))[0]) == 0


@given(st.lists(st.tuples(st.floats(0.1, 1.0), st.floats(0.1, 1.0)), min_size=1, max_size=5))
def test_silences_lie_within_the_sound_and_apart(parts: list[tuple[float, float]]) -> None:
    sound, gaps = spans(np.concatenate([x for loud, quiet in parts for x in (_noise(loud), _silence(quiet))]))
    edges = [0, *(at for gap in gaps for at in gap), len(sound)]
    assert edges == sorted(edges) and len(gaps) <= len(parts) - 1


def test_a_place_is_where_no_sentence_ends() -> None:
    assert goes_on("I would like", "I would like two of them. And a horse.")
    assert goes_on("I would like to", "I would like two of them.")
    assert not goes_on("I would like two of them", "I would like two of them. And a horse.")
    assert not goes_on("I'd like two of them", "I would like two of them! And a horse.")  # a word fewer
    assert not goes_on("That is all", "That is all.")
    assert goes_on("No no", "No no no.")


def test_a_line_has_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = dict[int, str]()

    def hear(_: Ears, samples: Samples) -> tuple[str, float]:
        return lengths[len(samples)], 0.1

    monkeypatch.setattr(train_people, "hear", hear)
    sound = np.concatenate([_noise(1.0), _silence(0.2), _noise(1.0), _silence(0.2), _noise(0.2), _silence(0.2), _noise(1.0)])
    lengths |= {
        user_samples(1.0): "Give me",
        user_samples(2.2): "Give me ten or two.",
        user_samples(3.8): "Give me ten or two. Or, well, three.",
    }
    made = utter(Line("a", "anna", sound), None)  # type: ignore[arg-type]
    assert made is not None and made.voice == "anna"
    assert made.places == (user_samples(1.0), user_samples(3.8)), (
        "a sentence ends at the second, the third has too little before it"
    )
    assert made.said == ("Give me", "Give me ten or two. Or, well, three.") and made.whole == (False, True)
    monkeypatch.setattr(train_people, "hear", lambda _, samples: ("Give me", 0.9))
    assert utter(Line("a", "anna", sound), None) is None, "a noise"  # type: ignore[arg-type]
    monkeypatch.setattr(train_people, "hear", lambda _, samples: ("...", 0.1))
    assert utter(Line("a", "anna", sound), None) is None  # type: ignore[arg-type]
    assert utter(Line("a", "anna", _noise(0.1)), None) is None and utter(Line("a", "anna", _noise(20)), None) is None  # type: ignore[arg-type]


def test_every_voice_has_everybodys_short_words() -> None:
    found = [
        _said("anna", 2, "Give me", "Give me two."),
        _said("anna", 1, "Stop that!"),
        _said("anna", 6, "That is too long for it."),
        _said("ben", 2, "Well I", "Well I never."),
        _said("ben", 1, "Never."),
        _said("ben", 0.5, "Oh, yeah."),
        _said("carl", 1, "He says nothing with a pause in it."),
    ]
    stock = stock_of(found)
    assert stock.voices() == ["anna", "ben"] and len(stock.utterances) == 5
    assert [u.said[-1] for u in stock.interruptions] == ["Stop that!", "Never."]
    assert [(u.voice, u.said) for u in stock.backchannels] == [("anna", ("Oh, yeah.",)), ("ben", ("Oh, yeah.",))]


def test_what_was_heard_is_not_heard_again(tmp_path: Path) -> None:
    found = [_said("anna", 2, "Give me", "Give me two."), _said("anna", 1, "Stop that!")]
    train_people.save_utterances(tmp_path / "training-people.npz", {"utterances": found})
    stock = make_people("training", tmp_path, print)
    assert [u.said for u in stock.utterances] == [u.said for u in found]


def test_hearing_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def utter_one(line: Line, _: Ears) -> Utterance | None:
        if line.name == "4" and "4" not in heard:
            heard.append("4")
            raise KeyboardInterrupt
        heard.append(line.name)
        return None if line.name == "2" else _said(line.voice, 1, f"line {line.name}")

    monkeypatch.setattr(train_people, "utter", utter_one)
    monkeypatch.setattr(train_people, "PART", 2)
    made, file = [Line(str(n), "anna", _silence(0)) for n in range(5)], tmp_path / "training-people.npz"
    with pytest.raises(KeyboardInterrupt):
        train_people._hear_all(iter(made), None, file, print)  # type: ignore[arg-type]
    train_people._hear_all(iter(made), None, file, print)  # type: ignore[arg-type]
    assert heard == ["0", "1", "2", "3", "4", "4"], "nothing is heard twice but what was stopped"
    assert [u.said[-1] for u in train_people.load_utterances(file)["utterances"]] == [f"line {n}" for n in (0, 1, 3, 4)]
    assert list(tmp_path.iterdir()) == [file]
