"""Responses of the Realtime server, over a real socket: as they were asked for, interrupted, cut short, cancelled, with functions."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from agent.parts import Parts
from duplex.events import Trouble
from tests.apps.realtime_client import LONG, PHRASES, QUESTION, STOP, STORY, Talk, talk
from tests.apps.served import Served, doubles, served, tone
from tests.waiting import until


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(doubles(PHRASES, ["Paris is."])) as running:
        yield running


async def test_an_interruption_a_truncation_and_what_is_remembered() -> None:
    parts = doubles(PHRASES, [LONG, "Fine."])
    with served(parts) as server:
        async with talk(server) as talking:
            talking.say(tone(STORY))
            await talking.until("response.output_audio.delta")
            await asyncio.sleep(1.5)
            talking.say(tone(STOP, 3.0))
            interrupted = await talking.until("response.done")
            assert interrupted.response.status == "cancelled"
            assert interrupted.response.status_details.reason == "turn_detected"
            kinds = talking.types()
            assert kinds.index("input_audio_buffer.speech_started", 5) < kinds.index("response.output_audio.done")
            heard = [e for e in talking.events if e.type == "duologue.heard" and e.final][-1]
            assert heard.heard and LONG.startswith(heard.heard) and len(heard.heard) < len(LONG)
            stop = next(e for e in talking.events if e.type == "duologue.latency" and hasattr(e, "stop_ms"))
            assert 0 < stop.stop_ms < 3000
            item_id = interrupted.response.output[0].id
            await talking.connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=600)
            truncated = await talking.until("conversation.item.truncated")
            await talking.until("response.done")
    assert truncated.transcript == "This is"
    assert [(m.role, m.text) for m in parts.thinker.seen[-1]] == [
        ("user", PHRASES[STORY]),
        ("assistant", "This is"),
        ("user", PHRASES[STOP]),
    ]


async def test_a_truncation_is_clamped_and_nothing_heard_is_forgotten(server: Served) -> None:
    async with talk(server) as talking:
        talking.say(tone(QUESTION))
        done = await talking.until("response.done")
        item_id = done.response.output[0].id
        for end_ms, left in ((10**9, "Paris is."), (0, "")):
            await talking.connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=end_ms)
            assert (await talking.until("conversation.item.truncated")).transcript == left
        await talking.connection.conversation.item.truncate(item_id="none", content_index=0, audio_end_ms=0)
        assert (await talking.until("error")).error.code == "item_not_found"


async def test_cancelling_with_and_without_a_response() -> None:
    with served(doubles(PHRASES, [LONG])) as server:
        async with talk(server) as talking:
            await talking.connection.response.cancel()
            assert (await talking.until("error")).error.code == "response_cancel_not_active"
            talking.say(tone(STORY))
            await talking.until("response.output_audio.delta")
            await talking.connection.response.create()
            assert (await talking.until("error")).error.code == "conversation_already_has_active_response"
            await talking.connection.response.cancel()
            done = await talking.until("response.done")
            assert (done.response.status, done.response.status_details.reason) == ("cancelled", "client_cancelled")


async def test_a_backchannel_is_no_start_of_speech_and_the_answer_goes_on() -> None:
    with served(doubles(PHRASES, [LONG])) as server:
        async with talk(server) as talking:
            talking.say(tone(STORY))
            await talking.until("response.output_audio.delta")
            await asyncio.sleep(1.0)
            talking.say(tone(130, 0.4))
            await talking.until("duologue.backchannel")
            done = await talking.until("response.done")
    assert done.response.status == "completed"
    assert talking.types().count("input_audio_buffer.speech_started") == 1


async def test_what_the_client_played_is_what_was_heard() -> None:
    with served(doubles(PHRASES, [LONG])) as server:
        async with talk(server) as talking:
            talking.say(tone(STORY))
            started = await talking.until("response.output_item.added")
            while sound_s(talking.events) < 1.5:
                await talking.until("response.output_audio.delta")
            ack = {"type": "duologue.playback.ack", "item_id": started.item.id, "played_ms": 260}
            await talking.connection._connection.send(json.dumps(ack))
            await talking.connection.response.cancel()
            await talking.until("response.done")
    final = next(e for e in talking.events if e.type == "duologue.heard" and e.final)
    assert final.heard.strip() == "This"


async def test_a_response_may_be_text_for_once_and_levels_are_told_when_asked_for(server: Served) -> None:
    async with talk(server, duologue={"levels": True}) as talking:
        content = [{"type": "input_text", "text": "Hello."}]
        await talking.connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await talking.connection.response.create(response={"output_modalities": ["text"], "metadata": {"k": "v"}})
        done = await talking.until("response.done")
        levels = await talking.until("duologue.levels")
    assert done.response.metadata == {"k": "v"}
    assert done.response.output[0].content[0].text == "Paris is."
    assert levels.user_db < -60


def sound_of(events: list[Any]) -> np.ndarray:
    """[n] samples of all the sound that came."""
    return np.frombuffer(b"".join(base64.b64decode(e.delta) for e in events if e.type == "response.output_audio.delta"), "<i2")


def sound_s(events: list[Any]) -> float:
    """How much sound came."""
    return len(sound_of(events)) / 24_000


def pitch(events: list[Any]) -> float:
    """Hz of all the sound that came."""
    return float(np.abs(np.fft.rfft(sound_of(events))).argmax()) / sound_s(events)


PATIENT = {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 8000}}}
"""A response is prepared after four seconds, and given after eight."""


@asynccontextmanager
async def pausing(parts: Parts, **options: Any) -> AsyncIterator[Talk]:
    """A conversation in a pause of the user, in which a response has been prepared, unheard."""
    with served(parts, **options) as server:
        async with talk(server, audio=PATIENT) as talking:
            talking.say(tone(STORY))
            (conversation,) = [kept.conversation for kept in server.door._kept]
            await asyncio.to_thread(until, lambda: conversation._session.turns.current is not None)
            assert conversation._session.turns.floor == "pause"
            yield talking


async def test_a_response_asked_for_in_a_pause_is_as_the_client_wants_it() -> None:
    tool = {"type": "function", "name": "get_time", "parameters": {"type": "object", "properties": {}}}
    parts = doubles(PHRASES, [LONG])
    async with pausing(parts) as talking:
        wanted = {"instructions": "You are a pirate.", "output_modalities": ["text"], "max_output_tokens": 7, "tools": [tool]}
        await talking.connection.response.create(response={**wanted, "metadata": {"k": "v"}})
        done = await talking.until("response.done")
    assert (done.response.status, done.response.output_modalities, done.response.metadata) == ("incomplete", ["text"], {"k": "v"})
    assert done.response.output[0].content[0].text == LONG[:7]
    assert parts.thinker.prompts[-1].startswith("You are a pirate.") and "get_time" in parts.thinker.prompts[-1]
    assert not any(e.type == "response.output_audio.delta" for e in talking.events)
    assert [(m.role, m.text) for m in parts.thinker.seen[-1]] == [("user", PHRASES[STORY])]
    assert talking.types().count("response.created") == 1


async def test_a_response_may_have_another_voice_and_another_format_for_once() -> None:
    parts = doubles(PHRASES, ["One two three."])
    async with pausing(parts, voices={"high": 880.0}) as talking:
        assert talking.events[0].session.duologue["voices"] == ["default", "high"]
        await talking.connection.response.create(response={"audio": {"output": {"voice": "high"}}})
        await talking.until("response.done")
        assert pitch(talking.events) == pytest.approx(880, abs=5)
        talking.events.clear()
        await talking.connection.response.create(response={"audio": {"output": {"format": {"type": "audio/pcmu"}}}})
        await talking.until("response.done")
        count = sum(len(base64.b64decode(e.delta)) for e in talking.events if e.type == "response.output_audio.delta")
        assert count == pytest.approx(3 * 0.25 * 8000, abs=320)
        talking.events.clear()
        await talking.connection.session.update(session={"type": "realtime", "audio": {"output": {"voice": "high"}}})
        await talking.connection.response.create()
        await talking.until("response.done")
        assert pitch(talking.events) == pytest.approx(880, abs=5)
        await talking.connection.response.create(response={"audio": {"output": {"voice": 1}}})
        assert (await talking.until("error")).error.param == "response.audio.output.voice"


async def test_trouble_is_told_in_words_for_who_is_at_the_other_end() -> None:
    parts = doubles(PHRASES, ["Never."])
    parts.thinker.fail = True
    with served(parts) as server:
        async with talk(server) as talking:
            talking.say(tone(QUESTION))
            done = await talking.until("response.done")
            (conversation,) = [kept.conversation for kept in server.door._kept]
            slow = Trouble(0, "The agent's voice ran dry for a moment: this machine is too slow for the profile.", "too_slow")
            server.running.ask(lambda: conversation._take(slow))
            while (trouble := await talking.until("duologue.trouble")).code != "too_slow":
                pass
    assert done.response.status == "failed"
    first = next(e for e in talking.events if e.type == "duologue.trouble")
    assert first.code == "response_failed" and "server" in first.message and "scripted thinker" not in first.message
    assert "server cannot keep up" in trouble.message and "this machine" not in trouble.message


async def test_a_function_is_called_and_its_result_is_answered() -> None:
    call = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Paris"}}\n</tool_call>'
    parts = doubles(PHRASES, [call, "It is noon."])
    tool = {"type": "function", "name": "get_time", "description": "The time", "parameters": {"type": "object", "properties": {}}}
    with served(parts) as server:
        async with talk(server, tools=[tool], instructions="Be brief.") as talking:
            talking.say(tone(QUESTION))
            done = await talking.until("response.done")
            (item,) = done.response.output
            assert (item.type, item.name, json.loads(item.arguments)) == ("function_call", "get_time", {"city": "Paris"})
            assert not any(e.type == "response.output_audio.delta" for e in talking.events)
            output = {"type": "function_call_output", "call_id": item.call_id, "output": "12:00"}
            await talking.connection.conversation.item.create(item=output)
            await talking.connection.response.create()
            answer = await talking.until("response.done")
    assert answer.response.output[0].content[0].transcript == "It is noon."
    assert [(m.role, m.text) for m in parts.thinker.seen[-1]] == [
        ("user", PHRASES[QUESTION]),
        ("assistant", '<tool_call>\n{"name": "get_time", "arguments": {"city": "Paris"}}\n</tool_call>'),
        ("user", "<tool_response>\n12:00\n</tool_response>"),
    ]


async def test_a_malformed_call_is_dropped_and_told() -> None:
    tool = {"type": "function", "name": "get_time", "parameters": {"type": "object", "properties": {}}}
    with served(doubles(PHRASES, ['Well. <tool_call>{"name": "rm"}</tool_call>'])) as server:
        async with talk(server, tools=[tool]) as talking:
            talking.say(tone(QUESTION))
            done = await talking.until("response.done")
    assert [item.type for item in done.response.output] == ["message"]
    assert done.response.output[0].content[0].transcript.strip() == "Well."
    assert any(e.type == "duologue.trouble" for e in talking.events)
