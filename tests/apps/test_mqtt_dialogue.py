"""The dialogue manager on a virtual clock: satellites, conversations with scripted models, and everything that can happen between them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.doubles import spoken
from agent.virtual_time import run_virtual
from apps.hermes_audio import write_wav
from apps.mqtt_conversation import ConversationConfig
from apps.mqtt_dialogue import MOST_WAITING, Dialogue
from apps.mqtt_playback import PlaybackConfig
from tests.apps.satellites import House, Satellite, Sessions, when

LONG = "This answer goes on for quite a while so that there is time to interrupt it in the middle of what it says."
Act = Callable[[House, Dialogue], Awaitable[Any]]


def at_home(
    act: Act, *sites: str, sessions: Sessions | None = None, config: ConversationConfig | None = None, most: int = 4, **options: Any
) -> House:
    """Run `act` in a house with these sites; afterwards nothing may be running any more."""
    house = House(sessions or Sessions())

    async def main() -> None:
        async with Dialogue(house.sessions, house.send, config or ConversationConfig(quiet_s=4.0), sites, most) as dialogue:
            house.take = dialogue.take
            microphones = [asyncio.create_task(house.add(site, **options).run()) for site in sites]
            dialogue.changed(True)
            await asyncio.sleep(0.1)
            await act(house, dialogue)
            for microphone in microphones:
                microphone.cancel()
        await asyncio.gather(*microphones, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())
    return house


async def wake(satellite: Satellite) -> str:
    """The wake word; the session's id."""
    count = len(satellite.of("sessionStarted"))
    satellite.tell("hermes/hotword/porcupine/detected", siteId=satellite.site, modelId="porcupine")
    return str((await satellite.until("sessionStarted", count + 1))["sessionId"])


async def ask(satellite: Satellite, lasts_s: float = 1.0) -> None:
    """Say something, and hear the answer out."""
    satellite.speak(spoken(lasts_s))
    await satellite.until("textCaptured", len(satellite.of("textCaptured")) + 1)
    await satellite.silent(0.5)


def test_a_wake_word_starts_a_conversation_that_ends_when_nobody_speaks() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        await wake(kitchen)
        await ask(kitchen)
        await kitchen.until("sessionEnded")

    kitchen = at_home(act, "kitchen").satellites["kitchen"]
    started, ended, captured = (kitchen.of(end)[0] for end in ("sessionStarted", "sessionEnded", "textCaptured"))
    assert ended["termination"] == {"reason": "nominal"} and ended["sessionId"] == started["sessionId"]
    assert (captured["text"], captured["wakewordId"], captured["siteId"]) == ("What bites?", "porcupine", "kitchen")
    assert 0.9 < captured["seconds"] < 2.0
    assert [v["reason"] for v in kitchen.of("hotword/toggleOff")] == ["dialogueSession"]
    assert len(kitchen.of("hotword/toggleOn")) == 2  # once at the start, for whoever died before, and after the conversation
    assert len(kitchen.of("asr/startListening")) == len(kitchen.of("asr/stopListening")) == 1
    states = kitchen.of("/state")
    assert states[-1] == "idle" and [s for s in ("hearing", "thinking", "speaking") if s not in states] == []
    (said,) = kitchen.events("response_ended")
    assert (said["reason"], said["heard"], said["siteId"]) == ("completed", "Bees and wasps do, and some dogs.", "kitchen")


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


def test_skills_speak_in_a_conversation_and_end_it() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        kitchen.tell(
            "hermes/dialogueManager/startSession",
            siteId="kitchen",
            customData="a",
            init={"type": "action", "text": "Shall I turn on the light?", "canBeEnqueued": True},
        )
        session = (await kitchen.until("sessionStarted"))["sessionId"]
        await kitchen.said(1)
        kitchen.tell("hermes/dialogueManager/continueSession", sessionId=session, text="Say yes or no.", customData="b")
        await kitchen.said(2)
        kitchen.speak(spoken(1.0))
        await kitchen.until("textCaptured")
        kitchen.tell("hermes/dialogueManager/endSession", sessionId=session, text="The light is on.")
        await kitchen.until("sessionEnded")

    kitchen = at_home(act, "kitchen", sessions=Sessions(replies=[LONG])).satellites["kitchen"]
    heard = [(e["reason"], e["heard"]) for e in kitchen.events("response_ended")]
    assert heard[0] == ("completed", "Shall I turn on the light?")
    assert heard[1] == ("completed", "Say yes or no.")
    assert heard[2][0] == "cancelled" and LONG.startswith(heard[2][1])  # the skill knew better than the model
    assert heard[3] == ("completed", "The light is on.")
    ended = kitchen.of("sessionEnded")[0]
    assert (ended["termination"]["reason"], ended["customData"]) == ("nominal", "b")
    assert kitchen.messages[-1][0] >= kitchen.plays[-1].ends - 0.05  # not before the last word was played


def test_a_notification_is_spoken_to_a_site_without_a_microphone_and_waits_its_turn() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        await wake(kitchen)
        kitchen.tell("hermes/dialogueManager/startSession", siteId="kitchen", init={"type": "notification", "text": "Dinner."})
        await kitchen.until("sessionQueued")
        await kitchen.until("sessionEnded", 1)
        kitchen.on = False
        await kitchen.until("sessionEnded", 2)

    kitchen = at_home(act, "kitchen").satellites["kitchen"]
    assert [e["termination"]["reason"] for e in kitchen.of("sessionEnded")] == ["timeout", "nominal"]
    assert [e["heard"] for e in kitchen.events("response_ended")] == ["Dinner."]
    assert kitchen.of("sessionQueued")[0]["sessionId"] == kitchen.of("sessionStarted")[1]["sessionId"]
    assert len(kitchen.of("asr/startListening")) == 1  # the announcement listens to nobody


def test_tts_say_is_answered_with_and_without_a_conversation() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        kitchen.tell("hermes/tts/say", siteId="kitchen", text="Good morning.", id="one")
        assert (await kitchen.until("sayFinished"))["id"] == "one"
        assert kitchen.of("sessionStarted") == []
        session = await wake(kitchen)
        kitchen.tell("hermes/tts/say", siteId="kitchen", text="It is nine.", id="two", sessionId=session)
        finished = await kitchen.until("sayFinished", 2)
        assert (finished["id"], finished["sessionId"]) == ("two", session)
        assert kitchen.plays[-1].ends <= asyncio.get_running_loop().time() + 0.05

    at_home(act, "kitchen")


def test_a_say_that_is_cut_off_by_the_end_is_answered_all_the_same_and_a_stream_gets_its_last_piece() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        session = await wake(kitchen)
        kitchen.tell("hermes/tts/say", siteId="kitchen", text=LONG, id="one", sessionId=session)
        await when(lambda: len(kitchen.plays) > 3)
        kitchen.tell("hermes/dialogueManager/endSession", sessionId=session)
        assert (await kitchen.until("sayFinished"))["id"] == "one"
        await kitchen.until("sessionEnded")

    config = ConversationConfig(playback=PlaybackConfig(100, streaming=True))
    kitchen = at_home(act, "kitchen", config=config).satellites["kitchen"]
    assert [p.id.split("/")[2] for p in kitchen.plays] == [*("0" for _ in kitchen.plays[1:]), "1"]
    assert len(kitchen.sound()) / 24_000 < 1.0  # of more than five seconds


def test_two_sites_talk_at_the_same_time_and_hear_nothing_of_each_other() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        one, two = house.satellites["kitchen"], house.satellites["study"]
        await asyncio.gather(wake(one), wake(two))
        await asyncio.gather(ask(one), ask(two, 2.0))
        assert dialogue.talking == 2

    house = at_home(act, "kitchen", "study")
    for satellite in house.satellites.values():
        assert [c["siteId"] for c in satellite.of("textCaptured")] == [satellite.site]
        assert satellite.events("response_ended")[0]["reason"] == "completed"


def test_more_than_fits_waits_or_is_refused() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        one, two = house.satellites["kitchen"], house.satellites["study"]
        await wake(one)
        two.tell("hermes/hotword/x/detected", siteId="study")
        assert "taken" in (await two.until("error/dialogueManager"))["error"]
        two.tell("hermes/dialogueManager/startSession", siteId="study", init={"type": "action", "canBeEnqueued": False})
        assert "busy" in (await two.until("error/dialogueManager", 2))["error"]
        for _ in range(MOST_WAITING + 1):
            two.tell("hermes/dialogueManager/startSession", siteId="study", init={"type": "action", "text": "Hello."})
        assert "wait" in (await two.until("error/dialogueManager", 3))["error"]
        assert len(two.of("sessionQueued")) == MOST_WAITING
        taken_back = two.of("sessionQueued")[-1]["sessionId"]
        two.tell("hermes/dialogueManager/endSession", sessionId=taken_back)
        assert (await two.until("sessionEnded"))["sessionId"] == taken_back
        one.tell("hermes/dialogueManager/endSession", sessionId=one.of("sessionStarted")[0]["sessionId"])
        assert (await two.until("sessionStarted"))["sessionId"] == two.of("sessionQueued")[0]["sessionId"]

    at_home(act, "kitchen", "study", most=1)


def test_a_wake_word_in_a_conversation_aborts_it_and_begins_a_new_one() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        first, second = await wake(kitchen), await wake(kitchen)
        assert first != second
        await ask(kitchen)

    kitchen = at_home(act, "kitchen").satellites["kitchen"]
    assert kitchen.of("sessionEnded")[0]["termination"]["reason"] == "abortedByUser"


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


def test_a_model_that_fails_is_told_and_the_site_serves_on() -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        await wake(kitchen)
        kitchen.speak(spoken(1.0))
        await kitchen.until("sessionEnded")
        house.sessions.broken = True
        kitchen.tell("hermes/dialogueManager/startSession", siteId="kitchen")
        assert (await kitchen.until("sessionEnded", 2))["termination"]["reason"] == "error"
        assert "could not begin" in kitchen.of("error/dialogueManager")[0]["error"]
        house.sessions.broken = house.sessions.fail = False
        await wake(kitchen)
        await ask(kitchen)

    kitchen = at_home(act, "kitchen", sessions=Sessions(fail=True)).satellites["kitchen"]
    assert "failed" in kitchen.events("trouble")[0]["message"]


@pytest.mark.parametrize("moment_s", [0.0, 0.3, 1.2, 1.7, 2.2, 3.0])
def test_the_program_may_end_at_any_moment_and_leaves_the_site_in_order(moment_s: float) -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        kitchen.tell("hermes/hotword/x/detected", siteId="kitchen")
        kitchen.tell("hermes/dialogueManager/startSession", siteId="kitchen", init={"type": "notification", "text": "Dinner."})
        kitchen.speak(spoken(1.0))
        await asyncio.sleep(moment_s)

    kitchen = at_home(act, "kitchen", sessions=Sessions(replies=[LONG])).satellites["kitchen"]
    started = [v["sessionId"] for v in kitchen.of("sessionStarted")]
    ended = {v["sessionId"]: v["termination"]["reason"] for v in kitchen.of("sessionEnded")}
    assert set(started) <= set(ended) and set(ended.values()) == {"abortedByUser"}
    assert len(ended) == 2
    if started:
        assert [t for _, t, _ in kitchen.messages if "hotword/toggle" in t][-1].endswith("toggleOn")


@pytest.mark.parametrize(("rate", "frame"), [(8_000, 160), (16_000, 4096), (44_100, 1024), (44_101, 1024), (48_000, 13)])
def test_any_rate_and_length_of_audio_frame_is_understood(rate: int, frame: int) -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        await wake(kitchen)
        kitchen.speak(np.repeat(spoken(1.0), 3)[: 3 * rate // 3] if rate > 16_000 else spoken(2.0)[:rate])
        await kitchen.until("textCaptured", longest_s=6.0)

    at_home(act, "kitchen", rate=rate, frame=frame)


def test_without_site_ids_everybody_is_served_and_idle_ones_make_room() -> None:
    house = House()

    async def main() -> None:
        async with Dialogue(house.sessions, house.send) as dialogue:
            dialogue.changed(True)
            for number in range(200):
                dialogue.take("hermes/asr/toggleOff", json.dumps({"siteId": f"room {number}"}).encode())
                await asyncio.sleep(0)
            assert len(asyncio.all_tasks()) < 100

    run_virtual(main())


TOPICS = st.one_of(
    st.sampled_from(
        [
            *(f"hermes/dialogueManager/{w}Session" for w in ("start", "continue", "end")),
            "hermes/tts/say",
            "hermes/asr/toggleOff",
            "hermes/hotword/x/detected",
            "hermes/audioServer/kitchen/audioFrame",
            "hermes/audioServer/kitchen/x/audioSessionFrame",
            "hermes/audioServer/kitchen/playFinished",
            "hermes/audioServer//audioFrame",
        ]
    ),
    st.text(max_size=40),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8) | st.sampled_from(["kitchen", "notification"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["siteId", "sessionId", "init", "type", "text", "id", "customData", "lang"]), inner)
    ),
    max_leaves=8,
)
SOUND = write_wav(np.zeros(64, np.float32), 16_000)
PAYLOADS = st.one_of(
    st.binary(max_size=200),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.tuples(st.integers(0, len(SOUND)), st.binary(max_size=8)).map(lambda cut: SOUND[: cut[0]] + cut[1] + SOUND[cut[0] :]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(TOPICS, PAYLOADS), min_size=5, max_size=25))
def test_whatever_comes_nothing_dies_and_a_running_conversation_is_untouched(messages: list[tuple[str, bytes]]) -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        study = house.satellites["study"]
        await wake(study)
        study.speak(spoken(1.0))
        for topic, payload in messages:
            dialogue.take(topic, payload)
            await asyncio.sleep(0.05)
        await study.until("textCaptured")
        await study.silent()
        assert study.events("response_ended")[0]["reason"] == "completed"

    at_home(act, "study", "kitchen", config=ConversationConfig(quiet_s=30.0))
