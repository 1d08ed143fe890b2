"""The Realtime server and the official OpenAI client, over a real socket, with doubles for the models."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets
from openai import AsyncOpenAI

from apps.realtime import AccessConfig
from tests.apps.served import Served, b64, doubles, served, tone

DOCUMENTATION = (Path(__file__).resolve().parents[2] / "docs" / "realtime.md").read_text(encoding="utf-8")
QUESTION, STORY, STOP = 800, 1200, 1600
PHRASES = {QUESTION: "What is the capital of France?", STORY: "Tell me a story.", STOP: "Wait, stop that right now."}
LONG = "This is a rather long answer that goes on and on about the matter at hand until someone stops it at last."


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(doubles(PHRASES, ["Paris is."])) as running:
        yield running


class Talk:
    """One connection of the official client, with a microphone that streams in real time."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.events: list[Any] = []
        self.heard: list[str] = []
        self._speech: asyncio.Queue[bytes] = asyncio.Queue()

    def say(self, sound: bytes) -> None:
        for at in range(0, len(sound), 960):
            self._speech.put_nowait(sound[at : at + 960].ljust(960, b"\0"))

    async def stream(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            frame = self._speech.get_nowait() if not self._speech.empty() else bytes(960)
            await self.connection.input_audio_buffer.append(audio=b64(frame))
            due += 0.02
            await asyncio.sleep(max(due - loop.time(), 0))

    async def until(self, kind: str, within_s: float = 15.0) -> Any:
        async def look() -> Any:
            async for event in self.connection:
                self.events.append(event)
                if event.type == kind:
                    return event
            raise AssertionError(f"the connection ended before {kind}")

        try:
            return await asyncio.wait_for(look(), within_s)
        except TimeoutError:
            raise AssertionError(f"no {kind}; there came {[e.type for e in self.events]}") from None

    def types(self) -> list[str]:
        return [e.type for e in self.events if not e.type.startswith("duologue.")]


@asynccontextmanager
async def talk(server: Served, stream: bool = True, key: str = "any", **session: Any) -> AsyncIterator[Talk]:
    client = AsyncOpenAI(api_key=key, base_url=f"{server.http}/v1")
    async with client.realtime.connect(model="local") as connection:
        talking = Talk(connection)
        await talking.until("session.created")
        if session:
            await connection.session.update(session={"type": "realtime", **session})
            await talking.until("session.updated")
        streaming = asyncio.create_task(talking.stream()) if stream else None
        try:
            yield talking
        finally:
            if streaming is not None:
                streaming.cancel()
                await asyncio.gather(streaming, return_exceptions=True)
    await client.close()


async def test_a_spoken_question_is_answered_in_the_order_of_the_protocol(server: Served) -> None:
    async with talk(server) as talking:
        talking.say(tone(QUESTION))
        done = await talking.until("response.done")
    wanted = [
        "input_audio_buffer.speech_started",
        "conversation.item.input_audio_transcription.delta",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.input_audio_transcription.completed",
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.done",
    ]
    kinds = talking.types()
    places = [kinds.index(kind) for kind in wanted]
    assert places == sorted(places), kinds
    completed = next(e for e in talking.events if e.type.endswith("transcription.completed"))
    assert completed.transcript == PHRASES[QUESTION]
    assert done.response.status == "completed"
    assert done.response.output[0].content[0].transcript == "Paris is."
    ids = {e.item_id for e in talking.events if e.type.startswith(("input_audio_buffer.", "conversation.item.input"))}
    assert len(ids) == 1
    latency = next(e for e in talking.events if e.type == "duologue.latency")
    assert 200 < latency.response_ms < 2000
    heard = [e for e in talking.events if e.type == "duologue.heard"][-1]
    assert (heard.heard, heard.final) == ("Paris is.", True)


async def test_the_sound_that_comes_back_is_the_voice_in_real_time(server: Served) -> None:
    loop = asyncio.get_running_loop()
    async with talk(server) as talking:
        talking.say(tone(QUESTION))
        await talking.until("response.output_audio.delta")
        began = loop.time()
        await talking.until("response.done")
        took = loop.time() - began
    sound = b"".join(base64.b64decode(e.delta) for e in talking.events if e.type == "response.output_audio.delta")
    pcm = np.frombuffer(sound, "<i2") / 32768
    assert len(pcm) == pytest.approx(2 * 0.25 * 24_000, abs=960)
    assert float(np.abs(np.fft.rfft(pcm)).argmax()) * 24_000 / len(pcm) == pytest.approx(220, abs=5)
    assert took > 0.3


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
async def test_g711_both_ways(server: Served, kind: str) -> None:
    from apps.realtime_audio import SoundOut

    audio = {"input": {"format": {"type": kind}}, "output": {"format": {"type": kind}}}
    async with talk(server, stream=False, audio=audio) as talking:
        pcm = np.frombuffer(tone(QUESTION), "<i2").astype(np.float32) / 32768
        await talking.connection.input_audio_buffer.append(audio=b64(SoundOut(kind).encode(pcm)))
        done = await talking.until("response.done")
    assert next(e for e in talking.events if e.type.endswith("completed")).transcript == PHRASES[QUESTION]
    assert done.response.output[0].content[0].transcript == "Paris is."
    count = sum(len(base64.b64decode(e.delta)) for e in talking.events if e.type == "response.output_audio.delta")
    assert count == pytest.approx(0.5 * 8000, abs=320)


async def test_text_in_text_out_without_any_sound(server: Served) -> None:
    async with talk(server, stream=False, output_modalities=["text"]) as talking:
        content = [{"type": "input_text", "text": "What is the capital of France?"}]
        await talking.connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await talking.connection.response.create()
        done = await talking.until("response.done")
    assert done.response.output[0].content[0].text == "Paris is."
    assert "".join(e.delta for e in talking.events if e.type == "response.output_text.delta") == "Paris is."
    assert not any("audio" in e.type for e in talking.events)


async def test_without_turn_detection_the_client_commits(server: Served) -> None:
    async with talk(server, stream=False, audio={"input": {"turn_detection": None}}) as talking:
        connection = talking.connection
        await connection.input_audio_buffer.append(audio=b64(tone(STORY)))
        await connection.input_audio_buffer.clear()
        await talking.until("input_audio_buffer.cleared")
        await connection.input_audio_buffer.append(audio=b64(tone(QUESTION)))
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        done = await talking.until("response.done")
        await connection.input_audio_buffer.commit()
    completed = [e.transcript for e in talking.events if e.type.endswith("transcription.completed")]
    assert completed == [PHRASES[QUESTION]]
    assert done.response.status == "completed"


async def test_server_vad_waits_for_its_silence_and_may_leave_the_answer_to_the_client(server: Served) -> None:
    detection = {"type": "server_vad", "silence_duration_ms": 900, "create_response": False}
    async with talk(server, audio={"input": {"turn_detection": detection}}) as talking:
        talking.say(tone(QUESTION) + bytes(2 * 12_000) + tone(STORY))
        await talking.until("conversation.item.input_audio_transcription.completed")
        await talking.connection.response.create()
        await talking.until("response.done")
    completed = next(e for e in talking.events if e.type.endswith("transcription.completed"))
    assert completed.transcript == f"{PHRASES[QUESTION]} {PHRASES[STORY]}"
    started = next(e for e in talking.events if e.type == "input_audio_buffer.speech_started")
    assert completed.item_id == started.item_id


async def test_an_interruption_a_truncation_and_what_is_remembered() -> None:
    parts = doubles(PHRASES, [LONG, "Fine."])
    with served(parts) as server:
        async with talk(server) as talking:
            talking.say(tone(STORY))
            await talking.until("response.output_audio.delta")
            await asyncio.sleep(1.5)
            talking.say(tone(STOP, 1.5))
            interrupted = await talking.until("response.done")
            assert interrupted.response.status == "cancelled"
            assert interrupted.response.status_details.reason == "turn_detected"
            kinds = talking.types()
            assert kinds.index("input_audio_buffer.speech_started", 5) < kinds.index("response.output_audio.done")
            heard = [e for e in talking.events if e.type == "duologue.heard" and e.final][-1]
            assert heard.heard and LONG.startswith(heard.heard) and len(heard.heard) < len(LONG) * 0.7
            stop = next(e for e in talking.events if e.type == "duologue.latency" and hasattr(e, "stop_ms"))
            assert 0 < stop.stop_ms < 600
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
            done = await talking.until("response.done", 3)
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


async def test_a_lost_connection_is_resumed_and_the_dialogue_remembered(server: Served) -> None:
    async with websockets.connect(server.ws) as first:
        created = json.loads(await first.recv())["session"]
        first.transport.abort()
    async with websockets.connect(f"{server.ws}?resume={created['duologue']['resume_token']}") as second:
        again = json.loads(await second.recv())
        assert (again["type"], again["session"]["id"]) == ("session.created", created["id"])
        assert json.loads(await second.recv())["type"] == "duologue.resumed"
        assert again["session"]["duologue"]["resume_token"] != created["duologue"]["resume_token"]
    async with websockets.connect(f"{server.ws}?resume={created['duologue']['resume_token']}") as third:
        fresh = json.loads(await third.recv())
        assert fresh["session"]["id"] != created["id"]
        assert json.loads(await third.recv())["error"]["code"] == "resume_failed"


async def test_the_official_client_reconnects_by_itself(server: Served) -> None:
    tokens: list[str] = []

    def again(event: Any) -> dict[str, Any]:
        return {"extra_query": {**event.extra_query, "resume": tokens[-1]}}

    client = AsyncOpenAI(api_key="any", base_url=f"{server.http}/v1")
    ids = []
    async with client.realtime.connect(model="local", on_reconnecting=again, initial_delay=0.1) as connection:
        async with asyncio.timeout(10):
            async for event in connection:
                if event.type == "session.created":
                    ids.append(event.session.id)
                    tokens.append(event.session.duologue["resume_token"])
                    if len(ids) == 1:
                        connection._connection.transport.abort()
                if event.type == "duologue.resumed":
                    break
    await client.close()
    assert len(ids) == 2 and ids[0] == ids[1]


async def test_one_above_the_limit_is_refused_at_once_and_the_others_go_on() -> None:
    with served(doubles(PHRASES, ["Paris is."]), max_sessions=1) as server:
        async with talk(server) as talking:
            async with websockets.connect(server.ws) as refused:
                assert json.loads(await refused.recv())["error"]["code"] == "server_full"
                with pytest.raises(websockets.ConnectionClosed):
                    await refused.recv()
                assert refused.close_code == 1013
            talking.say(tone(QUESTION))
            assert (await talking.until("response.done")).response.status == "completed"


async def test_a_session_that_is_too_long_is_ended() -> None:
    with served(doubles(PHRASES, [LONG]), access=AccessConfig(longest_session_s=1.0)) as server:
        async with websockets.connect(server.ws) as socket:
            kinds = [json.loads(message) async for message in socket]
        assert kinds[-1]["error"]["code"] == "session_expired"
        assert socket.close_code == 1000


async def test_items_are_told_apart_kept_and_deleted() -> None:
    parts = doubles(PHRASES, ["First.", "Second."])
    with served(parts) as server:
        async with talk(server, stream=False, output_modalities=["text"]) as talking:
            item = talking.connection.conversation.item
            for item_id, text in (("one", "Forget me."), ("two", "Keep me.")):
                content = [{"type": "input_text", "text": text}]
                await item.create(item={"id": item_id, "type": "message", "role": "user", "content": content})
            added = await talking.until("conversation.item.done")
            assert added.item.id == "one"
            await item.retrieve(item_id="two")
            assert (await talking.until("conversation.item.retrieved")).item.content[0].text == "Keep me."
            await item.delete(item_id="one")
            assert (await talking.until("conversation.item.deleted")).item_id == "one"
            await item.create(item={"id": "two", "type": "message", "role": "user", "content": content})
            assert (await talking.until("error")).error.param == "item.id"
            await talking.connection.response.create()
            await talking.until("response.done")
    assert [(m.role, m.text) for m in parts.thinker.seen[-1]] == [("user", "Keep me.")]


async def test_sound_as_an_item_is_recognised(server: Served) -> None:
    async with talk(server, stream=False, output_modalities=["text"]) as talking:
        content = [{"type": "input_audio", "audio": b64(tone(QUESTION))}]
        await talking.connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await talking.connection.response.create()
        completed = await talking.until("conversation.item.input_audio_transcription.completed")
        await talking.until("response.done")
    assert completed.transcript == PHRASES[QUESTION]


async def test_what_the_client_played_is_what_was_heard() -> None:
    with served(doubles(PHRASES, [LONG])) as server:
        async with talk(server) as talking:
            talking.say(tone(STORY))
            started = await talking.until("response.output_item.added")
            await asyncio.sleep(1.5)
            ack = {"type": "duologue.playback.ack", "item_id": started.item.id, "played_ms": 300}
            await talking.connection._connection.send(json.dumps(ack))
            await talking.connection.response.cancel()
            await talking.until("response.done")
    final = next(e for e in talking.events if e.type == "duologue.heard" and e.final)
    assert final.heard.strip() == "This"


async def test_a_long_silence_may_be_broken_by_the_agent() -> None:
    detection = {"type": "server_vad", "idle_timeout_ms": 1000}
    with served(doubles(PHRASES, ["Paris is."])) as server:
        async with talk(server, audio={"input": {"turn_detection": detection}}) as talking:
            talking.say(tone(QUESTION))
            await talking.until("response.done")
            await talking.until("input_audio_buffer.timeout_triggered")
            await talking.until("response.done")


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


async def test_a_response_under_way_when_the_connection_is_lost_falls_silent_and_is_told_later() -> None:
    parts = doubles(PHRASES, [LONG])
    with served(parts) as server:
        async with websockets.connect(server.ws) as first:
            token = json.loads(await first.recv())["session"]["duologue"]["resume_token"]
            await first.send(json.dumps({"type": "input_audio_buffer.append", "audio": b64(tone(STORY))}))
            while json.loads(await first.recv())["type"] != "response.output_audio.delta":
                pass
            first.transport.abort()
        await asyncio.sleep(0.5)
        kinds = []
        async with websockets.connect(f"{server.ws}?resume={token}") as second:
            while kinds[-1:] != ["response.done"]:
                event = json.loads(await asyncio.wait_for(second.recv(), 10))
                kinds.append(event["type"])
        assert event["response"]["status"] == "cancelled"
        assert kinds[:2] == ["session.created", "duologue.resumed"]
        assert "response.output_audio.delta" not in kinds


async def test_the_example_in_the_documentation_runs(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    example = DOCUMENTATION.split("```python\n")[1].split("```")[0].replace("http://127.0.0.1:8765", server.http)
    space: dict[str, Any] = {}
    exec(compile(example.replace("asyncio.run(main())", ""), "example", "exec"), space)
    await asyncio.wait_for(space["main"](), 20)
    assert capsys.readouterr().out == "Paris is."
