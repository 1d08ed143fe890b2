"""A conversation with one site, on a virtual clock: its sound both ways, interruptions, silence, and a broker that stays away."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from agent.doubles import spoken
from apps.mqtt_conversation import ConversationConfig
from apps.mqtt_dialogue import Dialogue
from apps.mqtt_playback import PlaybackConfig
from tests.apps.mqtt_home import LONG, ask, at_home, wake
from tests.apps.satellites import House, Sessions, when


@pytest.mark.parametrize("streaming", [False, True])
def test_every_sample_of_the_answer_is_played_once_in_order_and_without_a_gap(streaming: bool) -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        await wake(house.satellites["kitchen"])
        await ask(house.satellites["kitchen"])

    playback = PlaybackConfig(100 if streaming else 300, streaming=streaming, rate_hz=16_000)
    kitchen = at_home(act, "kitchen", config=ConversationConfig(playback=playback)).satellites["kitchen"]
    sound = np.trim_zeros(kitchen.sound())
    assert {p.rate for p in kitchen.plays} == {16_000}
    assert len(sound) / 16_000 == pytest.approx(7 * 0.25, abs=0.08)  # seven words
    tone = np.abs(np.fft.rfft(sound))
    assert tone.argmax() * 16_000 / len(sound) == pytest.approx(220, abs=3)
    assert np.abs(np.diff(sound)).max() < 0.2 * 2 * np.pi * 220 / 16_000 * 1.6  # no jump: nothing is missing in between
    gaps = [b.begins - a.ends for a, b in zip(kitchen.plays, kitchen.plays[1:], strict=False)]
    assert max(gaps) == 0.0
    if streaming:
        assert [p.id.split("/")[1:] for p in kitchen.plays][-1][1] == "1"
        assert [int(p.id.split("/")[1]) for p in kitchen.plays] == list(range(len(kitchen.plays)))


def test_a_satellite_that_stops_sending_ends_its_conversation() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        await wake(kitchen)
        kitchen.on = False
        began = asyncio.get_running_loop().time()
        await kitchen.until("sessionEnded")
        assert asyncio.get_running_loop().time() - began == pytest.approx(3.0, abs=0.3)

    kitchen = at_home(act, "kitchen", config=ConversationConfig(starved_s=3.0)).satellites["kitchen"]
    termination = kitchen.of("sessionEnded")[0]["termination"]
    assert termination["reason"] == "timeout" and "no sound" in termination["error"]


def test_a_satellite_that_sends_only_speech_is_answered_too() -> None:
    """Silence is put where it sends nothing, or its turn would never end."""

    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        await wake(kitchen)
        kitchen.speak(spoken(1.0))
        await when(lambda: not kitchen.speaking)
        kitchen.on = False
        await kitchen.until("textCaptured", longest_s=3.0)
        await kitchen.silent()

    kitchen = at_home(act, "kitchen").satellites["kitchen"]
    assert kitchen.events("response_ended")[0]["reason"] == "completed"


@pytest.mark.parametrize(("reports", "gap_s"), [(True, 0.0), (False, 0.0), (True, 0.08)])
def test_an_interruption_is_soon_silent_and_only_what_was_played_is_remembered(reports: bool, gap_s: float) -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        await wake(kitchen)
        kitchen.speak(spoken(1.0))
        await kitchen.until("textCaptured")
        await when(lambda: bool(kitchen.plays))
        await asyncio.sleep(1.7)
        kitchen.speak(spoken(1.5, seed=2))
        onset = kitchen.spoke_at
        await when(lambda: bool(kitchen.events("response_ended")))
        played = list(kitchen.plays)
        ended = kitchen.events("response_ended")[0]
        assert ended["reason"] == "interrupted"
        bound_s = PlaybackConfig().stop_bound_ms / 1000 * (1 if gap_s == 0 else 2)
        assert played[-1].ends - onset < 0.35 + bound_s  # detection, and what had been handed over
        words_played = len(np.concatenate([p.samples for p in played])) / 24_000 / 0.25
        words_heard = len(ended["heard"].split())
        assert words_heard == pytest.approx(words_played, abs=1.1)
        remembered = [m.text for m in house.sessions.opened[0].history.messages if m.role == "assistant"]
        assert remembered[0] == " ".join(ended["heard"].split())
        await kitchen.until("textCaptured", 2)

    at_home(act, "kitchen", sessions=Sessions(["Tell me.", "And who else?"], [LONG, "Nobody."]), reports=reports, gap_s=gap_s)


def test_a_pause_of_the_broker_freezes_the_conversation() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        await wake(kitchen)
        kitchen.speak(spoken(1.0))
        await when(lambda: not kitchen.speaking)
        kitchen.on = False  # the user's turn is complete, and nobody has been told yet
        dialogue.changed(False)
        await asyncio.sleep(3.0)
        assert kitchen.of("textCaptured") == []
        kitchen.on = True
        dialogue.changed(True)
        await kitchen.until("textCaptured", longest_s=2.0)
        await kitchen.silent()

    kitchen = at_home(act, "kitchen").satellites["kitchen"]
    assert kitchen.events("response_ended")[0]["reason"] == "completed"


def test_asr_toggle_off_closes_the_ears() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        kitchen.tell("hermes/asr/toggleOff", siteId="kitchen")
        await wake(kitchen)
        kitchen.speak(spoken(1.0))
        await asyncio.sleep(2.5)
        assert kitchen.events("user_started") == []
        kitchen.tell("hermes/asr/toggleOn", siteId="kitchen")
        await ask(kitchen)

    at_home(act, "kitchen")


def test_half_duplex_is_deaf_while_the_agent_speaks() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        await wake(kitchen)
        kitchen.speak(spoken(1.0))
        await when(lambda: bool(kitchen.plays))
        await asyncio.sleep(0.3)
        kitchen.speak(spoken(1.0))  # its own echo
        await kitchen.silent(0.5)

    config = ConversationConfig(quiet_s=4.0, half_duplex=True)
    kitchen = at_home(act, "kitchen", sessions=Sessions(replies=[LONG]), config=config).satellites["kitchen"]
    assert [e["reason"] for e in kitchen.events("response_ended")] == ["completed"]


def test_goodbye_ends_the_conversation_after_the_answer_to_it() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        await wake(kitchen)
        kitchen.speak(spoken(0.6))
        await kitchen.until("sessionEnded", longest_s=6.0)

    config = ConversationConfig(quiet_s=60.0)
    kitchen = at_home(act, "kitchen", sessions=Sessions(["Goodbye!"], ["See you."]), config=config).satellites["kitchen"]
    assert kitchen.of("sessionEnded")[0]["termination"]["reason"] == "nominal"
    assert kitchen.events("response_ended")[0]["heard"] == "See you."
    assert kitchen.messages[-1][0] >= kitchen.plays[-1].ends - 0.05


@pytest.mark.parametrize(("rate", "frame"), [(8_000, 160), (16_000, 4096), (44_100, 1024), (44_101, 1024), (48_000, 13)])
def test_any_rate_and_length_of_audio_frame_is_understood(rate: int, frame: int) -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        await wake(kitchen)
        kitchen.speak(np.repeat(spoken(1.0), 3)[: 3 * rate // 3] if rate > 16_000 else spoken(2.0)[:rate])
        await kitchen.until("textCaptured", longest_s=6.0)

    at_home(act, "kitchen", rate=rate, frame=frame)
