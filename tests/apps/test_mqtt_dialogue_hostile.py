"""The dialogue manager among strangers: sites without number, and messages that make no sense."""

from __future__ import annotations

import asyncio
import json

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.doubles import spoken
from agent.virtual_time import run_virtual
from apps.hermes_audio import write_wav
from apps.mqtt_conversation import ConversationConfig
from apps.mqtt_dialogue import Dialogue
from tests.apps.mqtt_home import at_home, wake
from tests.apps.satellites import House

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
