"""The sound cards: against a scripted PortAudio on a manual clock, and against PulseAudio with virtual devices (marker `sound`)."""

from __future__ import annotations

import asyncio
import json
import subprocess
import textwrap
import time
from typing import Any

import numpy as np
import pytest

from apps.sample_ring import SampleRing
from apps.sound_card_state import SoundCardConfig, StreamClock
from duplex.audio import AGENT_FRAME, AGENT_RATE_HZ, USER_RATE_HZ, Samples
from duplex.errors import ConfigError, DeviceError
from duplex.resample import resample
from tests.apps.fake_sound_cards import FakeCards, lag_ms, open_fake_fixture, silence, talk  # noqa: F401
from tests.apps.virtual_sound import Pulse, best_match, pulse_fixture, sound_in, speechlike  # noqa: F401

# -- the ring and the clock -------------------------------------------------------------------------------------------------------


def test_the_ring_gives_back_what_it_took_in_order_and_refuses_what_does_not_fit() -> None:
    ring, rng = SampleRing(100), np.random.default_rng(0)
    sent, got, counter = [], [], 0
    for _ in range(500):
        block = np.arange(counter, counter + rng.integers(0, 60)).astype(np.float32)
        taken = ring.write(block)
        assert taken == min(len(block), 100 - (len(ring) - taken))
        sent.append(block[:taken])
        counter += taken
        out = np.empty(rng.integers(0, 60), np.float32)
        got.append(out[: ring.read_into(out)])
    got.append(ring.read())
    assert len(ring) == 0
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate(sent))


def test_the_clock_sees_through_jitter() -> None:
    clock, rng = StreamClock(48_000), np.random.default_rng(0)
    assert clock.origin_s() is None
    for block in range(100):
        late = 0.2 if block % 10 == 0 else 0.0
        clock.stamp(block * 480, 12.5 + block / 100 + rng.normal(0, 0.001) + late)
    assert clock.origin_s() == pytest.approx(12.5, abs=0.001)


# -- a scripted PortAudio ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("in_rate", "out_rate"), [(48_000, 48_000), (16_000, 16_000), (44_100, 44_100), (8_000, 8_000)])
async def test_the_reference_lies_just_before_its_echo(open_fake: Any, in_rate: int, out_rate: int) -> None:
    fake = FakeCards(echo_ms=30)
    cards = await open_fake(fake, in_rate, out_rate)
    rng = np.random.default_rng(0)
    narrow = resample(rng.normal(0, 0.1, 6_000 * 4).astype(np.float32), 6_000, AGENT_RATE_HZ)
    near, far = await talk(fake, cards, 150, lambda i: narrow[i * AGENT_FRAME : (i + 1) * AGENT_FRAME])
    delay_ms, match = lag_ms(far[16_000:], near[16_000:])
    assert delay_ms == pytest.approx(30 + cards.config.lead_ms, abs=2)
    assert match > 0.97
    assert cards.stats.underruns == 0
    assert cards.stats.lost_input_ms == 0


async def test_stamps_that_wander_leave_the_reference_where_it_is(open_fake: Any) -> None:
    fake = FakeCards(echo_ms=30)
    fake.stamp_off_s = lambda now_s: 0.02 * np.sin(2 * np.pi * (now_s - 100) / 8)  # as through PulseAudio
    cards = await open_fake(fake)
    narrow = resample(np.random.default_rng(0).normal(0, 0.1, 6_000 * 20).astype(np.float32), 6_000, AGENT_RATE_HZ)
    near, far = await talk(fake, cards, 1_000, lambda i: narrow[i * AGENT_FRAME : (i + 1) * AGENT_FRAME])
    seconds = [slice(start, start + USER_RATE_HZ) for start in range(2 * USER_RATE_HZ, len(near) - USER_RATE_HZ, USER_RATE_HZ)]
    delays_ms = [lag_ms(far[part], near[part])[0] for part in seconds]
    assert max(delays_ms) - min(delays_ms) < 0.2
    assert min(delays_ms) > 30  # still ahead of its echo
    assert cards.stats.realigned == 0


async def test_a_jump_that_the_stamps_keep_to_moves_the_reference_once(open_fake: Any) -> None:
    fake = FakeCards(echo_ms=30)
    fake.stamp_off_s = lambda now_s: 0.0 if now_s < 105 else -0.1
    cards = await open_fake(fake)
    narrow = resample(np.random.default_rng(0).normal(0, 0.1, 6_000 * 12).astype(np.float32), 6_000, AGENT_RATE_HZ)
    near, far = await talk(fake, cards, 600, lambda i: narrow[i * AGENT_FRAME : (i + 1) * AGENT_FRAME])
    before, after = slice(3 * USER_RATE_HZ, 5 * USER_RATE_HZ), slice(9 * USER_RATE_HZ, 11 * USER_RATE_HZ)
    moved_ms = lag_ms(far[after], near[after])[0] - lag_ms(far[before], near[before])[0]
    assert moved_ms == pytest.approx(-100, abs=1)
    assert cards.stats.realigned == 1


async def test_what_is_sent_is_played_unbroken_on_every_channel(open_fake: Any) -> None:
    fake = FakeCards(mono_refused=True)
    cards = await open_fake(fake)
    assert fake.output.channels == 2
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(100 * AGENT_FRAME) / AGENT_RATE_HZ)).astype(np.float32)
    await talk(fake, cards, 100, lambda i: tone[i * AGENT_FRAME : (i + 1) * AGENT_FRAME])
    fake.advance(200)
    expected = resample(tone, AGENT_RATE_HZ, 48_000)
    begin = int(np.argmax(np.abs(fake.played) > 1e-3))
    played = fake.played[begin : begin + len(expected) - 5_000]
    _, match = lag_ms(played, expected[: len(played)])
    assert match > 0.999


@pytest.mark.parametrize("pace", [0.99, 1.01])
async def test_a_loudspeaker_whose_clock_drifts_is_followed_in_the_silences(open_fake: Any, pace: float) -> None:
    fake = FakeCards(pace=pace)
    cards = await open_fake(fake)
    speech = np.full(AGENT_FRAME, 0.1, np.float32)
    silence = np.zeros(AGENT_FRAME, np.float32)
    committed = []

    def agent(index: int) -> Samples:
        committed.append(cards.committed_ms())
        return speech if index % 100 < 60 else silence

    await talk(fake, cards, 2_000, agent)  # 40 s at 1 %: 400 ms apart
    assert max(committed[50:]) <= 200
    assert cards.stats.underruns == 0
    moved = cards.stats.left_out_ms if pace < 1 else cards.stats.repeated_ms
    assert moved >= 300
    assert cards.committed() == round(cards.committed_ms() * 24)


async def test_send_waits_while_enough_is_committed(open_fake: Any) -> None:
    fake = FakeCards()
    cards = await open_fake(fake)
    loud = np.full(AGENT_FRAME, 0.1, np.float32)

    async def flood() -> None:
        while True:
            await cards.send(loud)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(flood(), 1.0)
    assert 200 <= cards.committed_ms() <= 240
    fake.advance(100)
    await asyncio.wait_for(cards.send(loud), 30)


async def test_a_microphone_that_nobody_fetches_loses_sound_and_says_so(open_fake: Any) -> None:
    fake = FakeCards()
    cards = await open_fake(fake)
    fake.advance(3_000)
    assert cards.stats.lost_input_ms == pytest.approx(1_000, abs=20)


@pytest.mark.parametrize("which", ["microphone", "loudspeaker"])
async def test_a_device_that_falls_silent_is_gone(open_fake: Any, which: str) -> None:
    fake = FakeCards()
    cards = await open_fake(fake, away_s=0)
    await talk(fake, cards, 150, silence)
    fell_silent_s = fake.now_s

    async def go_on() -> None:
        while True:
            await asyncio.sleep(0.001)
            fake.advance(10, feed_in=which != "microphone", feed_out=which != "loudspeaker")

    going_on = asyncio.ensure_future(go_on())
    with pytest.raises(DeviceError, match=f"The {which} .* stopped answering"):
        while fake.now_s < fell_silent_s + 3:
            await cards.receive()
            await cards.send(np.zeros(AGENT_FRAME, np.float32))
    going_on.cancel()
    assert fake.input.closed
    assert fake.output.closed
    assert await cards.receive() is None


async def test_a_device_that_never_starts_is_noticed(open_fake: Any) -> None:
    fake = FakeCards()
    cards = await open_fake(fake)
    receiving = asyncio.ensure_future(cards.receive())
    await asyncio.sleep(0.01)
    assert not receiving.done()
    fake.advance(2_600, feed_in=False, feed_out=False)
    with pytest.raises(DeviceError, match="does not start"):
        await asyncio.wait_for(receiving, 30)


async def test_a_device_that_cannot_be_opened_is_named_and_the_other_one_closed(open_fake: Any) -> None:
    fake = FakeCards()

    def busy(**_: Any) -> None:
        raise fake.PortAudioError("Device unavailable", -9985)

    fake.InputStream = busy  # type: ignore[assignment,method-assign]
    with pytest.raises(DeviceError, match=r"microphone 'card 0' cannot be opened .*Device unavailable.*--input"):
        await open_fake(fake)
    assert fake.output.closed


async def test_close_ends_the_conversation_and_may_be_called_twice(open_fake: Any) -> None:
    cards = await open_fake(FakeCards())
    waiting = asyncio.ensure_future(cards.receive())
    await asyncio.sleep(0.01)
    await cards.close()
    assert await asyncio.wait_for(waiting, 30) is None
    await cards.close()
    assert await cards.receive() is None


def test_the_configuration_is_checked() -> None:
    with pytest.raises(ConfigError, match="most_committed_ms"):
        SoundCardConfig(most_committed_ms=100)
    with pytest.raises(ConfigError, match="queue_ms"):
        SoundCardConfig(queue_ms=0)


# -- PulseAudio -------------------------------------------------------------------------------------------------------------------


CLIENT = """
    import asyncio, json, sys
    import numpy as np
    from apps.sound_card_state import SoundCardConfig
    from apps.sound_cards import SoundCards
    from duplex.errors import DeviceError

    def told(text):
        print("NOTE", text, flush=True)

    async def main(seconds, away_s, agent_file, out_file):
        agent = np.load(agent_file)
        near, far = [], []
        async with await SoundCards.open(config=SoundCardConfig(away_s=away_s)) as cards:
            cards.on_note = told
            for index in range(round(seconds * 50)):
                frame = await cards.receive()
                if index == 25:
                    print("READY", flush=True)
                near.append(frame.near)
                far.append(frame.far)
                block = agent[index * 480 : (index + 1) * 480]
                await cards.send(np.pad(block, (0, 480 - len(block))))
            stats = {name: getattr(cards.stats, name) for name in cards.stats.__slots__}
        np.savez(out_file, near=np.concatenate(near), far=np.concatenate(far))
        print(json.dumps(stats), flush=True)

    try:
        asyncio.run(main(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]))
    except DeviceError as error:
        print("GONE", error, flush=True)
        sys.exit(error.exit_code)
"""


def under_way(pulse: Pulse, seconds: float, agent: Samples, away_s: float = 120.0) -> subprocess.Popen[str]:
    """A conversation of that many seconds, once it is under way; it leaves its recording in out.npz."""
    np.save(pulse.folder / "agent.npy", agent)
    client = pulse.python(textwrap.dedent(CLIENT), seconds, away_s, pulse.folder / "agent.npy", pulse.folder / "out.npz")
    assert client.stdout is not None
    assert client.stdout.readline().strip() == "READY"
    return client


def converse(pulse: Pulse, seconds: float, agent: Samples, user: Samples | None = None) -> tuple[Any, dict[str, float], Samples]:
    """Run the client; returns its recording, its statistics, and what the loudspeaker's monitor heard at the pulse rate."""
    heard_file = pulse.folder / "heard.raw"
    recorder = pulse.record("spk.monitor", heard_file)
    client = under_way(pulse, seconds, agent)
    if user is not None:
        pulse.say(user)
    told, _ = client.communicate(timeout=60)
    assert client.returncode == 0, told
    recorder.terminate()
    recorder.wait(timeout=10)
    return np.load(pulse.folder / "out.npz"), json.loads(told.splitlines()[-1]), sound_in(heard_file)


@pytest.mark.sound
@pytest.mark.parametrize("pulse", [(48_000, None), (44_100, None)], indirect=True)
def test_both_directions_arrive_intact(pulse: Pulse) -> None:
    user, agent = speechlike(pulse.rate, 3, 1), speechlike(AGENT_RATE_HZ, 4, 2)
    recording, stats, heard = converse(pulse, 5.5, agent, user)
    for source, got in (
        (resample(user, pulse.rate, USER_RATE_HZ), recording["near"]),
        (resample(agent, AGENT_RATE_HZ, USER_RATE_HZ), resample(heard, pulse.rate, USER_RATE_HZ)),
    ):
        assert best_match(source, got) > 0.95, stats
    assert stats["underruns"] <= 60  # of 550 blocks: a busy machine, but no queue that runs dry all the time


@pytest.mark.sound
@pytest.mark.parametrize("pulse", [(48_000, 60)], indirect=True)
def test_the_reference_lines_up_with_the_echo(pulse: Pulse) -> None:
    second = USER_RATE_HZ
    spans = [slice(start * second, (start + 1) * second) for start in range(2, 6)]
    for _ in range(5):  # a machine that cannot even play six seconds without a hole says nothing about the reference
        recording, _, _ = converse(pulse, 6, speechlike(AGENT_RATE_HZ, 6, 3))
        # the loopback itself bends its rate to hold its latency, so each second is looked at alone
        found = [lag_ms(recording["far"][span], recording["near"][span]) for span in spans]
        print("echo after the reference, ms and correlation, by second:", [(round(at, 1), round(match, 3)) for at, match in found])
        matching = np.median([match for _, match in found])
        if matching > 0.7:
            break
    assert matching > 0.7  # out of line it is below 0.3
    assert all(0 < at < 250 for at, _ in found)  # a canceller looks for the echo here


@pytest.mark.sound
@pytest.mark.parametrize("pulse", [(48_000, None)], indirect=True)
def test_a_sound_server_that_dies_is_a_device_error_within_three_seconds(pulse: Pulse) -> None:
    client = under_way(pulse, 30, np.zeros(0, np.float32), away_s=0)
    time.sleep(2.5)
    pulse.kill()
    began = time.monotonic()
    assert client.stdout is not None
    told = client.stdout.readline()
    assert time.monotonic() - began < 5.0  # three seconds, and what a busy machine adds to them
    assert told.startswith("GONE The "), told
    client.wait(60)
    assert client.returncode == DeviceError.exit_code
