"""The dialogue manager on a virtual clock: how conversations of many sites begin, wait for each other, and end."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from agent.doubles import spoken
from apps.mqtt_conversation import ConversationConfig
from apps.mqtt_dialogue import MOST_WAITING, Dialogue
from apps.mqtt_playback import PlaybackConfig
from duplex.turns import TurnConfig
from tests.apps.mqtt_home import LONG, ask, at_home, wake
from tests.apps.satellites import House, Sessions, when


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


@pytest.mark.parametrize("half_duplex", [False, True])
def test_the_agents_backchannel_is_played_and_takes_no_floor(half_duplex: bool) -> None:
    async def act(house: House, dialogue: Dialogue) -> None:
        kitchen = house.satellites["kitchen"]
        await wake(kitchen)
        await asyncio.sleep(2.0)  # the backchannels are made
        kitchen.speak(spoken(1.5))
        await when(lambda: bool(kitchen.plays), 10.0)
        assert not kitchen.events("response_started"), "a backchannel is no response"
        await kitchen.until("textCaptured")
        await kitchen.until("sessionEnded")

    sessions = Sessions(["I would like the"], ["Which one?"], turns=TurnConfig(backchannels=True, backchannel_after_s=0.8))
    config = ConversationConfig(quiet_s=4.0, half_duplex=half_duplex)
    kitchen = at_home(act, "kitchen", sessions=sessions, config=config).satellites["kitchen"]
    murmur, answer = kitchen.plays[0], kitchen.plays[1]
    assert 0.2 < murmur.ends - murmur.begins < 1.0 and 0.0 < np.abs(murmur.samples).max() < 0.6 * np.abs(answer.samples).max()
    (given,) = kitchen.events("agent_backchannel")
    assert given["text"] == "Uh-huh."
    assert [one["heard"] for one in kitchen.events("response_ended")] == ["Which one?"]


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
