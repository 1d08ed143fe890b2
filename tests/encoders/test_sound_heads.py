"""The heads on a recogniser's states: they learn what can be learnt, add to what the words tell, and say what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from duplex.errors import WeightsError
from encoders.ears import SoundStates
from encoders.sound_heads import SoundHeads, newest, shipped, weights_of
from encoders.sound_heads_training import Heads, HeadTraining, HeardPlaces, Places, Sounds, judged, train_heads

PLACES, WIDTH, LAST, HIDDEN = 6, 16, 8, 24


def heard(count: int, seed: int, last: int = LAST) -> HeardPlaces:
    """The words tell half of it and the sound the other half; who only listens is told by the newest state."""
    rng = np.random.default_rng(seed)
    states, frames = rng.normal(1.0, 2.0, (count, HIDDEN)), rng.normal(-1.0, 3.0, (count, PLACES, WIDTH))
    over = states[:, 0] - 1 + (frames[:, -2, 1] + 1) / 1.5 > 0
    said = rng.normal(0, 1, (count, last)).astype(np.float16) if last else None
    other = rng.normal(0.0, 1.0, (count, PLACES, WIDTH)).astype(np.float16)
    places = Places(states.astype(np.float16), over)
    return HeardPlaces(places, Sounds(frames.astype(np.float16), said, over), Sounds(other, said, other[:, -1, 0] > 0))


def written(count: int, seed: int) -> Places:
    states = np.random.default_rng(seed).normal(1.0, 2.0, (count, HIDDEN))
    return Places(states.astype(np.float16), states[:, 0] > 1.5)


@pytest.fixture(scope="module")
def taught() -> Heads:
    config = HeadTraining(epochs=24, batch=32, rate=3e-3)
    learnt = {"bridge": heard(1500, 0), "projector": heard(1500, 1, last=0)}
    back = {"bridge": heard(400, 2), "projector": heard(400, 3, last=0)}
    told: list[int] = []
    heads, curve = train_heads(written(1500, 4), learnt, written(400, 5), back, config, lambda epoch, *_: told.append(epoch))
    assert told == list(range(1, 25)) and curve[-1][0] < curve[0][0]
    return heads


def test_words_and_sound_together_tell_more_than_words(taught: Heads) -> None:
    found = judged(taught, written(400, 6), {"bridge": heard(400, 7), "projector": heard(400, 8, last=0)})
    assert found["written"]["words"] > 0.9
    for name in ("bridge", "projector"):
        one = found[name]
        assert one["words"] + 0.05 < one["words and sound"] > 0.85 < one["who only listens"]


def test_a_file_gives_the_same_heads(taught: Heads, tmp_path: Path) -> None:
    for name, last in (("bridge", LAST), ("projector", 0)):
        file = tmp_path / weights_of(name).name
        taught.sounds[name].save(file)
        kept = SoundHeads.load(file)
        states = SoundStates(np.ones((PLACES, WIDTH), np.float32), np.ones(last, np.float32) if last else None)
        assert kept.places == PLACES
        np.testing.assert_allclose(kept.tell(states), taught.sounds[name].tell(states), atol=0.05)


def test_short_and_long_sounds_are_told(taught: Heads) -> None:
    heads, rng = taught.sounds["projector"], np.random.default_rng(0)
    for count in (1, PLACES, 3 * PLACES):
        frames = rng.normal(0, 1, (count, WIDTH)).astype(np.float32)
        over, listening = heads.tell(SoundStates(frames))
        assert np.isfinite(over) and 0 <= listening <= 1
        assert heads.tell(SoundStates(newest(frames, PLACES))) == (over, listening), "less sound is silence before it"


def test_what_is_no_file_of_heads_is_refused(tmp_path: Path) -> None:
    save_file({"mean": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="train sentence-end"):
        SoundHeads.load(tmp_path / "other.safetensors")
    save_file({"mean": torch.zeros(3), "last_mean": torch.zeros(0), "ends.places": torch.zeros(2, 4)}, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError, match="does not fit"):
        SoundHeads.load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(("name", "places", "width", "last"), [("bridge", 75, 384, 384), ("projector", 40, 384, 0)])
def test_the_shipped_heads_fit_their_recognisers(name: str, places: int, width: int, last: int) -> None:
    file = shipped(name)
    assert file is not None
    heads = SoundHeads.load(file)
    assert (heads.places, len(heads.mean), len(heads.last_mean)) == (places, width, last)
