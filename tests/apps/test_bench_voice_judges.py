"""The judges of voices: what counts as an error and as a failure, how sounds are brought to one form, and the two networks' inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agent import weights
from agent.profiles import Profile
from apps.bench_clips import clips
from apps.bench_voice_judges import KEPT, LEVEL_DBFS, errors, failure, plain, prepared, similarity, sounds
from apps.bench_voice_mos import HOP, WINDOW, Dnsmos, rated, windows
from apps.bench_voice_speaker import STEP, VoiceEncoder, mel_windows, power_mel, voiced
from apps.bench_voice_speaker import WINDOW as MEL_WINDOW
from duplex.audio import USER_RATE_HZ
from duplex.errors import WeightsError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("written", "heard"),
    [
        ("It costs $1,284.50.", "It costs one thousand two hundred eighty-four dollars and fifty cents"),
        ("Born in 1887.", "born in eighteen eighty seven"),
        ("At 3:45 p.m.", "At three forty five P M"),
        ("Dr. Nguyen isn't here", "Doctor Nguyen is not here."),
        ("About 37% of them", "about thirty-seven percent of them"),
        ("The 14th of March", "the fourteenth of march"),
    ],
)
def test_the_same_words_count_as_the_same_however_they_are_written(written: str, heard: str) -> None:
    assert plain(written) == plain(heard)
    assert errors(written, heard).wrong == 0


@pytest.mark.parametrize(
    ("meant", "heard", "counts"),
    [
        ("the cat sat on the mat", "the cat sat on the hat", (6, 1, 0, 0, 0, 0)),
        ("the cat sat on the mat", "the cat sat", (6, 0, 0, 3, 0, 3)),
        ("the cat sat", "the cat sat down on the mat", (3, 0, 4, 0, 4, 0)),
        ("the cat sat on the mat", "cat sat on the mat", (6, 0, 0, 1, 0, 0)),
        ("...", "hm hm", (0, 0, 2, 0, 2, 0)),
        ("", "", (0, 0, 0, 0, 0, 0)),
    ],
)
def test_errors_are_counted_and_those_at_the_end_told_apart(meant: str, heard: str, counts: tuple[int, ...]) -> None:
    found = errors(meant, heard)
    told = (found.words, found.substituted, found.inserted, found.deleted, found.added_at_end, found.missing_at_end)
    assert told == counts


def test_a_name_that_is_spelt_in_another_way_has_few_wrong_phones() -> None:
    spelt, wrong = errors("Her name is Siobhan.", "Her name is Shivon."), errors("Her name is Siobhan.", "Her name is Margaret.")
    assert spelt.wrong == wrong.wrong == 1
    assert 0 < spelt.wrong_phones < wrong.wrong_phones
    assert errors("They wrote it", "they rote it").wrong_phones == 0
    assert sounds("Hello") == sounds("HELLO!")
    assert not set("ˈˌː") & set(sounds("A proper copper coffee pot."))


@pytest.mark.parametrize(
    ("meant", "heard", "seconds", "way"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 2.0, ""),
        ("the cat sat on the mat", "the rat spat at the hat", 2.0, ""),  # wrong, yet neither too long nor too short
        ("the cat sat on the mat", "the cat sat", 2.0, "stops early"),
        ("the cat sat on the mat", "the cat sat on the mat and then it", 2.0, "runs on"),
        ("the cat sat on the mat", "the cat the cat sat on the mat", 2.0, "repeats"),
        ("the cat sat on the mat", "the cat sat on the mat", 3.6, "runs on"),
        ("the cat sat on the mat", "the cat sat on the mat", 0.8, "stops early"),
        ("the cat sat on the mat", "", 0.0, "silent"),
        ("yes", "yes yes", 2.0, ""),  # one word is no repetition yet
        ("...", "", 0.0, ""),
    ],
)
def test_failures(meant: str, heard: str, seconds: float, way: str) -> None:
    assert failure(errors(meant, heard), seconds, 2.0) == way


def test_a_sound_is_judged_at_one_level_and_without_its_silence() -> None:
    tone = np.sin(np.arange(24_000) * 2 * np.pi * 440 / 24_000).astype(np.float32)
    quiet = np.concatenate([np.zeros(12_000), 0.01 * tone, np.zeros(48_000)]).astype(np.float32)
    loud = np.concatenate([np.zeros(30_000), 0.8 * tone, np.zeros(2_400)]).astype(np.float32)
    for sound in (quiet, loud):
        assert abs(len(prepared(sound, 24_000)) - (USER_RATE_HZ + 2 * KEPT)) <= 200
    assert 10 * np.log10(np.mean(np.square(prepared(tone, 24_000)))) == pytest.approx(LEVEL_DBFS, abs=0.1)
    assert len(prepared(np.zeros(1000, np.float32), 24_000)) == 0
    assert len(prepared(np.zeros(0, np.float32), 24_000)) == 0


def test_windows_of_a_short_and_of_a_long_sound() -> None:
    short = RNG.standard_normal(20_000).astype(np.float32)
    (window,) = windows(short)
    assert len(window) == WINDOW
    np.testing.assert_array_equal(window[20_000:40_000], short)
    long = RNG.standard_normal(WINDOW + 2 * HOP + 7).astype(np.float32)
    found = windows(long)
    assert len(found) == 3
    np.testing.assert_array_equal(found[2], long[2 * HOP : 2 * HOP + WINDOW])
    with pytest.raises(ValueError, match="empty"):
        windows(np.zeros(0, np.float32))


def test_the_polynomials_are_the_published_ones() -> None:
    """Two points worked out by hand from speechmos 0.0.1.1."""
    opinion = rated(np.array([3.0, 4.0, 3.0]))
    assert opinion.signal == pytest.approx(-0.08397278 * 9 + 1.22083953 * 3 + 0.0052439)
    assert opinion.background == pytest.approx(-0.13166888 * 16 + 1.60915514 * 4 - 0.39604546)
    assert opinion.overall == pytest.approx(-0.06766283 * 9 + 1.11546468 * 3 + 0.04602535)


def test_power_mel_peaks_where_the_tone_is() -> None:
    low, high = (np.sin(np.arange(16_000) * 2 * np.pi * hz / 16_000).astype(np.float32) for hz in (300, 3000))
    assert power_mel(low).shape == (1 + 16_000 // STEP, 40)
    assert power_mel(low).mean(0).argmax() < power_mel(high).mean(0).argmax()
    assert mel_windows(low).shape == (1, MEL_WINDOW, 40)
    assert mel_windows(np.tile(low, 4)).shape[0] > 1


def test_pauses_are_cut_before_a_voice_is_told() -> None:
    speech = RNG.standard_normal(16_000).astype(np.float32)
    paused = np.concatenate([speech, np.zeros(32_000, np.float32), speech])
    assert abs(len(voiced(paused)) - 32_000) < 8_000
    assert 10 * np.log10(np.mean(np.square(voiced(speech)))) == pytest.approx(-30.0, abs=0.1)
    with pytest.raises(ValueError, match="no speech"):
        voiced(np.zeros(16_000, np.float32))


def test_the_encoder_gives_a_direction() -> None:
    torch.manual_seed(0)
    encoder = VoiceEncoder().requires_grad_(False)
    embedding = encoder.embed(RNG.standard_normal(30_000).astype(np.float32))
    assert embedding.shape == (256,)
    assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-5)
    assert similarity(embedding, 3 * embedding) == pytest.approx(1.0)
    assert similarity([1.0, 0.0], [0.0, 2.0]) == 0.0


@pytest.fixture
def networks() -> dict[str, Path]:
    try:
        return weights.locate(Profile("judges", "", "bridge", "bridge", weights=("dnsmos", "resemblyzer")))
    except WeightsError as error:
        pytest.skip(str(error))


@pytest.mark.weights
def test_the_published_networks_hear_what_they_should(networks: dict[str, Path]) -> None:
    """Clean speech is rated above the same under noise, and two sentences of one voice are nearer than two voices."""
    slt = [clip.samples() for clip in clips("questions") if clip.voice == "slt"][:2]
    rms = next(clip.samples() for clip in clips("questions") if clip.voice == "rms")
    mos = Dnsmos(networks["dnsmos"])
    noisy = (rms + 0.05 * RNG.standard_normal(len(rms))).astype(np.float32)
    assert mos(rms).overall > mos(np.clip(noisy, -1, 1)).overall + 0.5
    encoder = VoiceEncoder.load(networks["resemblyzer"])
    a, b, other = (encoder.embed(sound) for sound in (*slt, rms))
    assert similarity(a, b) > 0.85 > similarity(a, other) + 0.1
