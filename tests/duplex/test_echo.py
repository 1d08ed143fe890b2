"""Echo cancellation in a synthetic room: the far side goes, the near side stays, and nobody trusts an untrained filter."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys

import numpy as np
import pytest

from duplex.audio import USER_FRAME, USER_RATE_HZ, Samples
from duplex.echo import (
    EchoCanceller,
    EchoConfig,
    EchoControl,
    ErleMeter,
    HalfDuplex,
    NoEcho,
    WarmUpGuard,
    WebRtcEcho,
    choose_echo,
)
from duplex.errors import ConfigError
from duplex.levels import level_db


@pytest.fixture
def webrtc() -> EchoCanceller:
    if importlib.util.find_spec("pywebrtc_audio") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("pywebrtc-audio is not installed; CI needs the extra `talk`")
        pytest.skip("pywebrtc-audio is not installed (extra `talk`)")
    return WebRtcEcho()


def babble(seconds: float, seed: int, pitch_hz: float) -> Samples:
    """Speech-like sound: a gliding harmonic voice through moving resonances, in syllables with pauses, at about -20 dBFS."""
    rng = np.random.default_rng(seed)
    count = round(seconds * USER_RATE_HZ)
    time = np.arange(count) / USER_RATE_HZ
    knots = np.arange(0, seconds + 0.2, 0.1)
    pitch = pitch_hz * np.exp(np.interp(time, knots, rng.normal(0, 0.15, len(knots))))
    phase = 2 * np.pi * np.cumsum(pitch) / USER_RATE_HZ
    centres = [
        np.interp(time, knots, rng.uniform(low, high, len(knots))) for low, high in ((300, 900), (900, 2_400), (2_400, 3_600))
    ]
    voice = np.zeros(count)
    for harmonic in range(1, 30):
        gain = sum(np.exp(-(((harmonic * pitch - centre) / 250) ** 2)) for centre in centres)
        voice += gain * np.sin(harmonic * phase)
    voice += 0.05 * rng.normal(size=count)
    beats = np.arange(0, seconds + 0.3, 0.15)
    syllables = np.interp(time, beats, np.clip(rng.normal(0.5, 0.5, len(beats)), 0, 1))
    voice *= syllables
    return (0.1 * voice / np.sqrt(np.mean(voice**2))).astype(np.float32)


def room(far: Samples, delay_ms: int, seed: int = 5) -> Samples:
    """What the loudspeaker adds to the microphone: a delay, then exponentially decaying noise (RT60 0.25 s), 6 dB down."""
    rng = np.random.default_rng(seed)
    tail = np.arange(round(0.25 * USER_RATE_HZ))
    response = rng.normal(size=len(tail)) * 10 ** (-3 * tail / len(tail))
    response[0] = 6
    response = np.concatenate([np.zeros(delay_ms * USER_RATE_HZ // 1000), response])
    size = 1 << (len(far) + len(response)).bit_length()
    echo = np.fft.irfft(np.fft.rfft(far, size) * np.fft.rfft(response, size), size)[: len(far)]
    return (0.5 * echo * np.sqrt(np.mean(far**2) / np.mean(echo**2))).astype(np.float32)


def run(canceller: EchoCanceller, near: Samples, far: Samples) -> Samples:
    blocks = [canceller.process(near[i : i + USER_FRAME], far[i : i + USER_FRAME]) for i in range(0, len(near), USER_FRAME)]
    assert all(block.shape == (USER_FRAME,) and block.dtype == np.float32 for block in blocks)
    return np.concatenate(blocks)


@pytest.mark.parametrize("delay_ms", [60, 120])
def test_webrtc_removes_15_db_of_echo_after_two_seconds(webrtc: EchoCanceller, delay_ms: int) -> None:
    far = babble(6, 1, 110)
    near = room(far, delay_ms) + np.random.default_rng(9).normal(0, 3e-5, len(far)).astype(np.float32)
    clean = run(webrtc, near, far)
    late = slice(2 * USER_RATE_HZ, None)
    assert level_db(near[late]) - level_db(clean[late]) > 15


def test_webrtc_keeps_the_near_voice_when_alone_and_in_double_talk(webrtc: EchoCanceller) -> None:
    far, user = babble(8, 1, 110), babble(8, 2, 200)
    user[: 4 * USER_RATE_HZ] = 0
    far[6 * USER_RATE_HZ :] = 0  # 4-6 s: both; 6-8 s: the user alone
    clean = run(webrtc, room(far, 80) + user, far)
    late = 128  # the canceller's own 8 ms
    for begin, end, least, loss_db in ((4.2, 6.0, 0.5, 6.0), (6.4, 7.9, 0.8, 3.0)):
        span = slice(round(begin * USER_RATE_HZ), round(end * USER_RATE_HZ))
        ours = clean[span.start + late : span.stop + late]
        assert np.corrcoef(user[span], ours)[0, 1] > least
        assert abs(level_db(ours) - level_db(user[span])) < loss_db


def test_webrtc_reset_forgets_the_room(webrtc: EchoCanceller) -> None:
    far = babble(4, 1, 110)
    near = room(far, 60)
    first = run(webrtc, near, far)
    trained = run(webrtc, near, far)
    webrtc.reset()
    again = run(webrtc, near, far)
    assert not np.allclose(trained, first, atol=1e-3)  # what it had learnt shows
    np.testing.assert_allclose(again, first, atol=1e-6)  # and is gone


def test_half_duplex_shuts_the_microphone_and_opens_it_300_ms_later() -> None:
    canceller = HalfDuplex()
    near = np.full(USER_FRAME, 0.1, np.float32)
    loud, silent = np.full(USER_FRAME, 0.05, np.float32), np.zeros(USER_FRAME, np.float32)
    assert np.array_equal(canceller.process(near, silent), near)
    assert not canceller.process(near, loud).any()
    shut = 0
    while not canceller.process(near, silent).any():
        shut += 1
    assert shut == 300 // 20
    canceller.process(near, loud)
    canceller.reset()
    assert canceller.process(near, silent).any()


def test_half_duplex_lets_a_murmur_below_the_threshold_pass() -> None:
    near, murmur = np.full(USER_FRAME, 0.1, np.float32), np.full(USER_FRAME, 0.001, np.float32)
    assert HalfDuplex().process(near, murmur).any()
    assert not HalfDuplex(EchoConfig(audible_db=-70)).process(near, murmur).any()


def test_choosing() -> None:
    assert isinstance(choose_echo("none"), NoEcho)
    assert isinstance(choose_echo("half_duplex"), HalfDuplex)
    with pytest.raises(ConfigError, match="auto, webrtc, half_duplex, none"):
        choose_echo("speex")


def test_auto_prefers_webrtc(webrtc: EchoCanceller) -> None:
    assert isinstance(choose_echo("auto"), WebRtcEcho)


def test_without_the_library_auto_falls_back_and_webrtc_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pywebrtc_audio", None)
    with caplog.at_level(logging.WARNING):
        assert isinstance(choose_echo("auto"), HalfDuplex)
    assert "half_duplex" in caplog.text
    with pytest.raises(ConfigError, match=r"pip install 'duologue\[talk\]'"):
        choose_echo("webrtc")


def test_a_wrong_frame_size_is_refused() -> None:
    with pytest.raises(ValueError, match="320"):
        NoEcho().process(np.zeros(160, np.float32), np.zeros(160, np.float32))


def test_the_guard_trusts_after_a_second_and_a_half_of_audible_far_side() -> None:
    guard = WarmUpGuard()
    loud, silent = np.full(USER_FRAME, 0.05, np.float32), np.zeros(USER_FRAME, np.float32)
    for _ in range(500):
        guard.hear(silent)
        guard.hear(None)
    assert not guard.trusted
    for frame in range(1, 76):
        guard.hear(loud)
        assert guard.trusted == (frame == 75)
    guard.reset()
    assert not guard.trusted


def test_the_meter_reads_far_only_frames() -> None:
    meter = ErleMeter()
    loud, silent = np.full(USER_FRAME, 0.1, np.float32), np.zeros(USER_FRAME, np.float32)
    meter.hear(loud, loud / 10, silent, user_speaking=False)
    meter.hear(loud, loud, loud, user_speaking=True)
    assert meter.erle_db is None
    for _ in range(50):
        meter.hear(loud, loud / 10, loud, user_speaking=False)
        meter.hear(loud, loud, loud, user_speaking=True)
    assert meter.erle_db == pytest.approx(20, abs=0.1)
    for _ in range(500):
        meter.hear(loud, silent, loud, user_speaking=False)
    assert 20 < meter.erle_db <= 80
    meter.reset()
    assert meter.erle_db is None


@pytest.mark.parametrize("bad", [{"audible_db": 3.0}, {"hold_ms": -1}, {"trust_after_ms": -1}, {"erle_half_life_ms": 0}])
def test_the_configuration_is_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        EchoConfig(**bad)  # type: ignore[arg-type]


def test_the_control_joins_canceller_guard_and_meter(webrtc: EchoCanceller) -> None:
    far = babble(4, 1, 110)
    near = room(far, 80)
    control = EchoControl(webrtc)
    assert not control.trusted
    assert control.erle_db is None
    for begin in range(0, len(far), USER_FRAME):
        control.process(near[begin : begin + USER_FRAME], far[begin : begin + USER_FRAME])
    assert control.trusted
    assert control.erle_db is not None
    assert control.erle_db > 15
    control.reset()
    assert not control.trusted
    assert control.erle_db is None


@pytest.mark.parametrize("canceller", [HalfDuplex(), NoEcho()])
def test_where_no_echo_can_be_left_there_is_trust_from_the_start(canceller: EchoCanceller) -> None:
    assert EchoControl(canceller).trusted
