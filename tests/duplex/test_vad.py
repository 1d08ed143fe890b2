"""The hysteresis holds its promises for any probabilities; the model hears speech and not noise."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from duplex.errors import WeightsError
from duplex.levels import level_db
from duplex.vad import WINDOW_SAMPLES, Vad, VoiceActivity, VoiceActivityConfig, VoiceFade, VoiceStart, VoiceStop

SPEECH = Path(__file__).parents[1] / "encoders" / "speech"

windows = st.lists(st.tuples(st.floats(0, 1), st.sampled_from([-100.0, -70.0, -59.0, -50.0, -20.0])), max_size=80)
configs = st.builds(
    lambda onset, ratio, needed, more, offset, fade, back: VoiceActivityConfig(
        onset, onset * ratio, needed, needed + more, offset, fade, back
    ),
    st.floats(0.1, 0.9),
    st.floats(0.1, 1),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(32, 500),
    st.integers(32, 500),
    st.integers(0, 500),
)


def run(config, sequence):
    """[(end of the window that showed it, change)]"""
    activity, changes = VoiceActivity(config), []
    for i, (probability, level) in enumerate(sequence, 1):
        changes += [(i * WINDOW_SAMPLES, change) for change in activity.update(i * WINDOW_SAMPLES, probability, level)]
    return activity, changes


@given(configs, windows)
def test_starts_and_stops_alternate_and_never_go_back(config, sequence):
    activity, changes = run(config, sequence)
    events = [change for _, change in changes] + activity.finish()
    turns = [type(e) for e in events if not isinstance(e, VoiceFade)]
    assert turns == [VoiceStart, VoiceStop] * (len(turns) // 2)
    assert all(a.at <= b.at for a, b in pairwise(events))
    assert all(0 <= e.at <= seen for seen, e in changes)
    assert not activity.active and activity.finish() == []


@given(configs, windows)
def test_quiet_or_unlikely_windows_never_start(config, sequence):
    _, changes = run(config, [(p, min(level, config.floor_db - 1)) for p, level in sequence])
    assert changes == []
    _, changes = run(config, [(min(p, config.onset_threshold * 0.99), level) for p, level in sequence])
    assert changes == []


@given(configs, windows)
def test_a_start_shows_as_soon_as_enough_windows_are_voiced(config, sequence):
    voiced = [p >= config.onset_threshold and level >= config.floor_db for p, level in sequence]
    counts = [sum(voiced[max(0, i + 1 - config.onset_span_windows) : i + 1]) for i in range(len(voiced))]
    first = next((i for i, count in enumerate(counts) if count >= config.onset_windows), None)
    _, changes = run(config, sequence)
    assert [seen for seen, _ in changes[:1]] == ([] if first is None else [(first + 1) * WINDOW_SAMPLES])


@given(configs, windows, windows)
def test_later_windows_do_not_change_earlier_events(config, past, future):
    _, short = run(config, past)
    _, whole = run(config, past + future)
    assert whole[: len(short)] == short


@given(configs, st.integers(1, 20))
def test_a_stop_is_known_after_the_offset_and_says_where_the_voice_ended(config, voiced):
    needed = config.onset_windows + voiced
    activity, changes = run(config, [(1.0, -20.0)] * needed + [(0.0, -100.0)] * 20)
    (_, start), *faded, (seen, stop) = changes
    assert [at - fade.at for at, fade in faded] == [-(-config.fade_ms // 32) * 512] * (config.fade_ms <= (seen - stop.at) // 16)
    assert start.at <= (needed - 1) * WINDOW_SAMPLES and stop.at == needed * WINDOW_SAMPLES == activity.last_voiced
    assert config.offset_ms * 16 <= seen - stop.at < config.offset_ms * 16 + WINDOW_SAMPLES


def test_hysteresis_holds_on_between_the_thresholds():
    _, changes = run(VoiceActivityConfig(), [(0.9, -20.0)] * 3 + [(0.4, -20.0)] * 50)
    assert len(changes) == 1


def test_a_voice_that_pauses_fades_each_time_and_stops_once():
    voiced, silent = [(0.9, -20.0)] * 3, [(0.1, -20.0)] * 3
    _, changes = run(VoiceActivityConfig(offset_ms=160), [*voiced, *silent, *voiced, *silent, *silent])
    assert [type(change) for _, change in changes] == [VoiceStart, VoiceFade, VoiceFade, VoiceStop]
    assert [seen - change.at for seen, change in changes[1:]] == [2 * 512, 2 * 512, 5 * 512]


def test_one_loud_click_is_no_voice():
    assert run(VoiceActivityConfig(), [(0.1, -60.0)] * 5 + [(0.99, -3.0)] + [(0.1, -60.0)] * 5)[1] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"onset_threshold": 1.0},
        {"offset_threshold": 0.6},
        {"onset_windows": 0},
        {"onset_windows": 4, "onset_span_windows": 3},
        {"offset_ms": 10},
        {"fade_ms": 0},
        {"pull_back_ms": -1},
        {"floor_db": 3.0},
    ],
)
def test_wrong_configuration_is_refused(wrong):
    with pytest.raises(ValueError):
        VoiceActivityConfig(**wrong)


def test_a_damaged_or_missing_model_is_a_weights_error(tmp_path):
    (tmp_path / "silero_vad.onnx").write_bytes(b"no model")
    for name in ("silero_vad.onnx", "none.onnx"):
        with pytest.raises(WeightsError, match="fetch the weights again"):
            Vad(tmp_path / name)


@pytest.fixture(scope="module")
def vad(edge_weights) -> Vad:
    return Vad(edge_weights["silero-vad"])


def changes_of(vad, audio):
    activity, out = VoiceActivity(), []
    for end, probability in vad.feed(vad.open(), audio):
        out += [(end, c) for c in activity.update(end, probability, level_db(audio[end - WINDOW_SAMPLES : end]))]
    return out


@pytest.mark.weights
def test_any_chunking_gives_the_same_probabilities(vad):
    audio, _ = soundfile.read(SPEECH / "capital_slt.flac", dtype="float32")
    whole = vad.feed(vad.open(), audio)
    for chunk in (100, 320, 1000):
        state = vad.open()
        pieces = [w for at in range(0, len(audio), chunk) for w in vad.feed(state, audio[at : at + chunk])]
        assert pieces == whole
    assert [end for end, _ in whole] == [512 * (i + 1) for i in range(len(audio) // 512)]


@pytest.mark.weights
@pytest.mark.parametrize("file", ["capital_slt", "brazil_rms"])
@pytest.mark.parametrize("gain", [1.0, 0.3, 0.1])
def test_speech_is_found_quickly_and_placed_well(vad, file, gain):
    speech, _ = soundfile.read(SPEECH / f"{file}.flac", dtype="float32")
    loud = np.flatnonzero(np.abs(speech) > 0.02 * np.abs(speech).max())
    audio = np.concatenate((np.zeros(8000, np.float32), speech * np.float32(gain), np.zeros(16_000, np.float32)))
    onset, end = 8000 + loud[0], 8000 + loud[-1]
    found = changes_of(vad, audio)
    assert isinstance(found[0][1], VoiceStart) and isinstance(found[-1][1], VoiceStop)
    assert found[0][0] - onset < 0.25 * 16_000
    assert -0.12 * 16_000 < found[0][1].at - onset < 0.1 * 16_000
    assert found[-1][0] - end < 0.4 * 16_000


@pytest.mark.weights
def test_noise_clicks_and_hum_are_no_voice(vad):
    rng, n = np.random.default_rng(0), 16_000 * 8
    time = np.arange(n) / 16_000
    brown = np.cumsum(rng.standard_normal(n))
    brown -= np.convolve(brown, np.ones(1600) / 1600, "same")
    clicks = (rng.random(n) < 1 / 8000) * rng.standard_normal(n)
    hum = sum(np.sin(2 * np.pi * 50 * k * time) / k for k in (1, 2, 3))
    for noise in (rng.standard_normal(n), brown, clicks, hum, np.full(n, np.nan)):
        for db in (-45, -30):
            scaled = noise / max(float(np.sqrt(np.mean(np.square(noise)))), 1e-9) * 10 ** (db / 20)
            assert changes_of(vad, np.nan_to_num(scaled).astype(np.float32)) == []
