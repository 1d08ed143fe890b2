"""The official client talks with the real models: a question, its answer, an interruption, a truncation, a lost connection."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.build import build_parts
from agent.profiles import load_profile
from apps.bench_clips import clips
from apps.bench_serve_client import microphone
from tests.apps.realtime_client import talk
from tests.apps.served import served


@pytest.mark.weights
async def test_a_conversation_with_the_real_models(edge_weights: dict[str, Path]) -> None:
    question, story = clips("questions")[0], clips("long_questions")[0]
    stop = next(clip for clip in clips("interruptions"))
    parts = await asyncio.to_thread(build_parts, load_profile("edge"))
    with served(parts, max_sessions=1, profile="edge", overrides=()) as server:
        async with talk(server, instructions="You are a storyteller. Answer at length, in many sentences.") as talking:
            talking.say(b"".join(microphone(question.samples())))
            first = await talking.until("response.output_audio.delta", 60)
            heard = next(e for e in talking.events if e.type.endswith("transcription.completed"))
            wanted = {word.strip("?.,").lower() for word in question.text.split()}
            assert len(wanted & {word.strip("?.,").lower() for word in heard.transcript.split()}) >= len(wanted) * 0.6
            await talking.until("response.done", 90)
            talking.events.clear()

            talking.say(b"".join(microphone(story.samples())))
            await talking.until("response.output_audio.delta", 60)
            await asyncio.sleep(0.8)
            talking.say(b"".join(microphone(stop.samples())))
            done = await talking.until("response.done", 60)
            item = done.response.output[0]
            said = [e for e in talking.events if e.type == "duologue.heard" and e.final][-1]
            assert said.text.startswith(said.heard)
            await talking.connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=0)
            assert (await talking.until("conversation.item.truncated", 20)).transcript == ""
            await talking.connection.conversation.item.retrieve(item_id=item.id)
            kept = await talking.until("conversation.item.retrieved", 20)
            assert kept.item.content[0].transcript == ""
            assert first.response_id != done.response.id
            assert done.response.status in ("cancelled", "completed")  # a busy machine may not answer long enough

        function = {"type": "function", "name": "get_time", "description": "Get the current time in a city"}
        schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        settings = {"output_modalities": ["text"], "instructions": "You are a helpful assistant."}
        async with talk(server, stream=False, **settings, tools=[{**function, "parameters": schema}]) as talking:
            content = [{"type": "input_text", "text": "What time is it in Paris?"}]
            await talking.connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
            await talking.connection.response.create()
            call = (await talking.until("response.done", 60)).response.output[-1]
            assert call.type == "function_call", call
            assert "Paris" in call.arguments
            output = {"type": "function_call_output", "call_id": call.call_id, "output": "10:15"}
            await talking.connection.conversation.item.create(item=output)
            await talking.connection.response.create()
            answer = await talking.until("response.done", 60)  # so small an LLM may well call again
            assert answer.response.status == "completed"
