"""The Realtime server and the official OpenAI client, over a real socket, with doubles for the models."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.apps.realtime_client import PHRASES, QUESTION, STORY, talk
from tests.apps.served import Served, b64, doubles, served, tone
from tests.waiting import until

DOCUMENTATION = (Path(__file__).resolve().parents[2] / "docs" / "realtime.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(doubles(PHRASES, ["Paris is."])) as running:
        yield running


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
    assert 200 < latency.response_ms < 10_000
    heard = [e for e in talking.events if e.type == "duologue.heard"][-1]
    assert (heard.heard, heard.final) == ("Paris is.", True)


async def test_the_sound_that_comes_back_is_the_voice_in_real_time() -> None:
    loop = asyncio.get_running_loop()
    with served(doubles(PHRASES, [" ".join(20 * ["word"])])) as server:
        async with talk(server) as talking:
            began = loop.time()
            talking.say(tone(QUESTION))
            await talking.until("response.done")
            took = loop.time() - began
    sound = b"".join(base64.b64decode(e.delta) for e in talking.events if e.type == "response.output_audio.delta")
    pcm = np.frombuffer(sound, "<i2") / 32768
    assert len(pcm) == pytest.approx(20 * 0.25 * 24_000, abs=960)
    assert float(np.abs(np.fft.rfft(pcm)).argmax()) * 24_000 / len(pcm) == pytest.approx(220, abs=5)
    assert took > 4.7  # of 5 s, at most 0.2 s ahead, and it cannot have begun before the question; sent at once, it takes two


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
    detection = {"type": "server_vad", "silence_duration_ms": 1500, "create_response": False}
    async with talk(server, audio={"input": {"turn_detection": detection}}) as talking:
        talking.say(tone(QUESTION) + bytes(2 * 12_000) + tone(STORY))
        await talking.until("conversation.item.input_audio_transcription.completed")
        await talking.connection.response.create()
        await talking.until("response.done")
    completed = next(e for e in talking.events if e.type.endswith("transcription.completed"))
    assert completed.transcript == f"{PHRASES[QUESTION]} {PHRASES[STORY]}"
    started = next(e for e in talking.events if e.type == "input_audio_buffer.speech_started")
    assert completed.item_id == started.item_id


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


async def test_a_long_silence_may_be_broken_by_the_agent() -> None:
    detection = {"type": "server_vad", "idle_timeout_ms": 1000}
    with served(doubles(PHRASES, ["Paris is."])) as server:
        async with talk(server, audio={"input": {"turn_detection": detection}}) as talking:
            talking.say(tone(QUESTION))
            await talking.until("response.done")
            await talking.until("input_audio_buffer.timeout_triggered")
            await talking.until("response.done")


async def test_the_example_in_the_documentation_runs(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    example = DOCUMENTATION.split("```python\n")[1].split("```")[0].replace("http://127.0.0.1:8765", server.http)
    space: dict[str, Any] = {}
    exec(compile(example.replace("asyncio.run(main())", ""), "example", "exec"), space)
    await asyncio.wait_for(space["main"](), 60)
    assert capsys.readouterr().out == "Paris is."


async def test_the_agents_backchannel_comes_whole_and_belongs_to_no_response() -> None:
    overrides = ["session.response.group_tokens=1", "session.turns.backchannels=true", "session.turns.backchannel_after_s=0.8"]
    with served(doubles({QUESTION: "I would like the"}, ["Yes?"]), overrides=overrides) as server:
        async with talk(server) as talking:
            (session,) = [kept.conversation._session for kept in server.door._kept]
            await asyncio.to_thread(until, lambda: session._backchannels.of(session.manner.speaker))  # made when it begins
            talking.say(tone(QUESTION))
            given = await talking.until("duologue.agent_backchannel")
            assert not any(kind.startswith("response.") for kind in talking.types())
            sound = np.frombuffer(base64.b64decode(given.audio), "<i2")
            assert given.text == "Uh-huh." and len(sound) == 6000 and 0.09 < np.abs(sound).max() / 32767 < 0.11
            await talking.until("response.done")
