"""Devices that go away and come back, refuse their rate, or change it: the conversation goes on."""

from __future__ import annotations

import asyncio
import json
import textwrap
import threading
import time
from typing import Any

import numpy as np
import pytest

from apps.devices import Device, find_again
from apps.sound_card_state import RateWatch, SoundCardConfig
from apps.sound_card_thread import aside
from apps.sound_cards import SoundCards
from duplex.audio import AGENT_FRAME, AGENT_RATE_HZ, USER_FRAME
from duplex.errors import DeviceError
from duplex.resample import resample
from tests.apps.fake_sound_cards import FakeCards, device, lag_ms, open_fake_fixture, silence, talk  # noqa: F401
from tests.apps.test_sound_cards import CLIENT
from tests.apps.virtual_sound import Pulse, best_match, pulse_fixture, sound_in, speechlike  # noqa: F401
from tests.waiting import until

# -- a scripted PortAudio ---------------------------------------------------------------------------------------------------------


def noting(cards: SoundCards) -> tuple[list[str], list[int]]:
    """Notes and reopenings from now on."""
    notes: list[str] = []
    reopened: list[int] = []
    cards.on_note, cards.on_reopened = notes.append, lambda: reopened.append(1)
    return notes, reopened


async def wait_for_it(fake: FakeCards, cards: SoundCards, away_ms: int) -> None:
    """Ask for a frame in vain while the devices are away, and were looked for in vain."""
    receiving = asyncio.ensure_future(cards.receive())
    looked = fake.rescans
    for _ in range(away_ms // 10):
        fake.now_s += 0.01
        await asyncio.sleep(0.001)
    async with asyncio.timeout(30):
        while fake.rescans < looked + 2:  # noqa: ASYNC110  (on threads, which a busy machine lets wait)
            await asyncio.sleep(0.001)
    assert not receiving.done()
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)


async def test_an_unplugged_headset_comes_back_and_only_the_gap_is_lost(open_fake: Any) -> None:
    fake = FakeCards()
    cards = await open_fake(fake)
    notes, reopened = noting(cards)
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(200 * AGENT_FRAME) / AGENT_RATE_HZ)).astype(np.float32)

    def agent(index: int) -> Any:
        return tone[index * AGENT_FRAME : (index + 1) * AGENT_FRAME]

    await talk(fake, cards, 100, agent)
    fake.unplug()
    await wait_for_it(fake, cards, 1_500)
    assert len(notes) == 1
    assert notes[0].endswith("stopped answering; the conversation waits for it.")
    fake.unplugged = False
    await talk(fake, cards, 100, agent, first=100)  # `talk` checks that the conversation's clock goes on where it stood
    assert notes[1:] == ["The conversation goes on with 'card 0' and 'card 1'."]
    assert reopened == [1]
    assert cards.stats.reopened == 1
    assert fake.rescans >= 2
    fake.advance(300)
    parts = []
    for played in (fake.played_before[1], fake.played):
        sounding = np.flatnonzero(np.abs(played) > 1e-3)
        parts.append(played[sounding[0] : sounding[-1] + 1])
    whole_ms = sum(len(part) for part in parts) / 48
    assert whole_ms == pytest.approx(1000 * len(tone) / AGENT_RATE_HZ, abs=5)  # what waited in the queue was played afterwards
    assert cards.stats.underruns <= 30  # only after the end


async def test_the_reference_lines_up_again_after_the_gap(open_fake: Any) -> None:
    fake = FakeCards(echo_ms=30)
    cards = await open_fake(fake)
    narrow = resample(np.random.default_rng(0).normal(0, 0.1, 6_000 * 6).astype(np.float32), 6_000, AGENT_RATE_HZ)

    def agent(index: int) -> Any:
        return narrow[index * AGENT_FRAME : (index + 1) * AGENT_FRAME]

    await talk(fake, cards, 77, agent)
    fake.unplug()
    await wait_for_it(fake, cards, 500)
    fake.unplugged, fake.devices = False, [device(8_000, 0), device(8_000, 1)]  # the same headset, now as a telephone
    near, far = await talk(fake, cards, 200, agent, first=77)
    delay_ms, match = lag_ms(far[16_000:], near[16_000:])
    assert delay_ms == pytest.approx(30 + cards.config.lead_ms, abs=3)
    assert match > 0.9


async def test_a_device_that_stays_away_ends_the_talk_and_says_which(open_fake: Any) -> None:
    fake = FakeCards()
    cards = await open_fake(fake, away_s=3)
    await talk(fake, cards, 50, silence)
    fake.unplug()
    receiving = asyncio.ensure_future(cards.receive())
    async with asyncio.timeout(30):
        while not receiving.done():  # the three seconds begin once both are closed, on threads
            fake.now_s += 0.01
            await asyncio.sleep(0.001)
    with pytest.raises(DeviceError, match=r"stopped answering, and did not come back within 3 s"):
        receiving.result()
    assert await cards.receive() is None


async def test_closing_while_a_device_is_away_ends_the_waiting(open_fake: Any) -> None:
    fake = FakeCards()
    cards = await open_fake(fake)
    await talk(fake, cards, 50, silence)
    fake.unplug()
    receiving = asyncio.ensure_future(cards.receive())
    await asyncio.sleep(0.05)
    assert not receiving.done()
    await cards.close()
    assert await asyncio.wait_for(receiving, 30) is None
    await asyncio.to_thread(until, lambda: "sound" not in [thread.name for thread in threading.enumerate()])  # a last look ends
    tries = fake.tries
    await asyncio.sleep(0.1)
    assert fake.tries == tries
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "mend-sound"] == []


async def test_a_device_that_refuses_its_rate_runs_at_another(open_fake: Any) -> None:
    fake = FakeCards(rates=(44_100,))
    cards = await open_fake(fake, 48_000, 22_050)
    assert (fake.input.rate, fake.output.rate) == (44_100, 44_100)
    assert cards.names() == ("'card 0' at 44100 Hz", "'card 1' at 44100 Hz")
    narrow = resample(np.random.default_rng(0).normal(0, 0.1, 6_000 * 3).astype(np.float32), 6_000, AGENT_RATE_HZ)
    near, far = await talk(fake, cards, 120, lambda i: narrow[i * AGENT_FRAME : (i + 1) * AGENT_FRAME])
    assert lag_ms(far[16_000:], near[16_000:])[1] > 0.95


async def test_a_device_that_refuses_every_rate_names_the_first_refusal(open_fake: Any) -> None:
    with pytest.raises(DeviceError, match=r"'card 1' cannot be opened .*Invalid sample rate"):
        await open_fake(FakeCards(rates=()))


async def test_a_busy_device_is_not_asked_for_every_rate(open_fake: Any) -> None:
    fake = FakeCards()
    fake.unplugged = True
    with pytest.raises(DeviceError, match="Device unavailable"):
        await open_fake(fake)
    assert fake.tries == 1


async def test_a_microphone_that_changes_its_rate_is_opened_anew(open_fake: Any) -> None:
    fake = FakeCards()
    cards = await open_fake(fake)
    notes, _ = noting(cards)
    await talk(fake, cards, 200, silence)
    fake.in_pace = 16_000 / 48_000  # what arrives is a third of what was agreed
    fake.input.count = round((fake.now_s - fake.input.began_s) * fake.in_pace * 48_000)
    fake.devices = [device(16_000, 0), device(48_000, 1)]
    for index in range(200, 1_000):
        receiving = asyncio.ensure_future(cards.receive())
        while not receiving.done():
            fake.advance(10)
            await asyncio.sleep(0.002)
            if fake.input.rate == 16_000:
                fake.in_pace = 1.0
        frame = receiving.result()
        assert frame is not None and frame.start == index * USER_FRAME
        await cards.send(silence(index))
        if len(notes) == 2:
            break
    assert notes[0] == "The microphone 'card 0' runs at about 16000 Hz instead of 48000; the conversation waits for it."
    assert fake.input.rate == 16_000
    await talk(fake, cards, 400, silence, first=index + 1)
    assert len(notes) == 2


async def test_a_device_whose_rate_stays_wrong_is_opened_anew_once_only(open_fake: Any) -> None:
    fake = FakeCards()
    fake.in_pace = 0.9
    cards = await open_fake(fake)
    notes, reopened = noting(cards)
    for index in range(900):
        receiving = asyncio.ensure_future(cards.receive())
        while not receiving.done():
            fake.advance(10)
            await asyncio.sleep(0)
            if cards.stats.reopened == 0 and notes:
                await asyncio.sleep(0.002)
        receiving.result()
        await cards.send(silence(index))
    assert reopened == [1]


@pytest.mark.parametrize("lost_s", [0.0, 0.5])
def test_a_stall_is_no_change_of_rate(lost_s: float) -> None:
    """Half a second is late, or is lost for good: one window looks odd, the next one does not."""
    watch = RateWatch(48_000, SoundCardConfig())
    for tick in range(2_000):
        stalled = 500 <= tick < 550
        seen_s = (500 if stalled else tick) / 100 - (lost_s if tick >= 550 else 0)
        assert watch.measure(round(48_000 * seen_s), 10 + tick / 100) is None


def test_another_rate_is_noticed_within_seven_seconds() -> None:
    watch = RateWatch(48_000, SoundCardConfig())
    found = [tick / 100 for tick in range(2_000) if watch.measure(441 * tick, 10 + tick / 100) is not None]
    assert found[0] <= 7


def test_a_number_is_known_by_its_name_once_numbers_are_dealt_anew() -> None:
    usb = Device(3, "USB Headset", "ALSA", 1, 2, 48_000, False, False)
    now = [
        Device(0, "HDA Intel", "ALSA", 2, 2, 48_000, True, True),
        Device(1, "USB Headset", "ALSA", 1, 2, 16_000, False, False),
    ]
    assert find_again(usb, "input", "3", now).index == 1
    assert find_again(usb, "input", None, now).index == 0  # the system's default, whatever it is now
    assert find_again(usb, "input", "headset", now).index == 1
    with pytest.raises(DeviceError, match="'USB Headset' is not connected"):
        find_again(usb, "input", "3", now[:1])


async def test_blocking_work_that_hangs_is_left_behind_and_closed_when_it_ends() -> None:
    hanging, closed = threading.Event(), threading.Event()

    def work() -> str:
        hanging.wait(60)
        return "stream"

    with pytest.raises(TimeoutError):
        await aside(work, 0.05, lambda stream: closed.set() if stream == "stream" else None)
    assert not closed.is_set()
    hanging.set()
    assert await asyncio.to_thread(closed.wait, 30)
    assert await aside(lambda: 7, 30) == 7
    with pytest.raises(ZeroDivisionError):
        await aside(lambda: 1 // 0, 30)


# -- PulseAudio -------------------------------------------------------------------------------------------------------------------


@pytest.mark.sound
@pytest.mark.parametrize("pulse", [(48_000, None), (8_000, None)], indirect=True, ids=["48k", "8k"])
def test_a_sound_server_that_dies_and_comes_back_leaves_only_a_gap(pulse: Pulse) -> None:
    agent = speechlike(AGENT_RATE_HZ, 20, 5)
    np.save(pulse.folder / "agent.npy", agent)
    client = pulse.python(textwrap.dedent(CLIENT), 11, 60, pulse.folder / "agent.npy", pulse.folder / "out.npz")
    assert client.stdout is not None
    assert client.stdout.readline().strip() == "READY"
    time.sleep(2.5)
    pulse.kill()
    gone = client.stdout.readline()
    time.sleep(1)
    pulse.serve()
    back = client.stdout.readline()
    heard_file = pulse.folder / "heard.raw"
    pulse.record("spk.monitor", heard_file)
    time.sleep(0.5)
    user = speechlike(pulse.rate, 2, 6)
    pulse.say(user)
    told, _ = client.communicate(timeout=60)
    assert client.returncode == 0, told
    assert gone.startswith("NOTE The ") and "stopped answering; the conversation waits for it." in gone
    assert back.startswith("NOTE The conversation goes on with")
    assert json.loads(told.splitlines()[-1])["reopened"] == 1
    recording = np.load(pulse.folder / "out.npz")
    spoken = resample(user, pulse.rate, 16_000)
    assert best_match(spoken, recording["near"]) > 0.9
    heard = resample(sound_in(heard_file), pulse.rate, 16_000)
    assert best_match(heard[len(heard) // 4 : 3 * len(heard) // 4], resample(agent, AGENT_RATE_HZ, 16_000)) > 0.9
