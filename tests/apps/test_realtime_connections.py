"""Connections to the Realtime server that are lost, come back, are one too many, or last too long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import websockets
from openai import AsyncOpenAI

from apps.realtime import AccessConfig
from tests.apps.realtime_client import LONG, PHRASES, QUESTION, STORY, talk
from tests.apps.served import Served, b64, doubles, served, tone
from tests.waiting import until


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(doubles(PHRASES, ["Paris is."])) as running:
        yield running


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
        async with asyncio.timeout(30):
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


async def test_a_response_under_way_when_the_connection_is_lost_falls_silent_and_is_told_later() -> None:
    parts = doubles(PHRASES, [LONG])
    with served(parts) as server:
        async with websockets.connect(server.ws) as first:
            token = json.loads(await first.recv())["session"]["duologue"]["resume_token"]
            await first.send(json.dumps({"type": "input_audio_buffer.append", "audio": b64(tone(STORY))}))
            while json.loads(await first.recv())["type"] != "response.output_audio.delta":
                pass
            first.transport.abort()
        until(lambda: all(kept.conversation.outbox.away for kept in server.door._kept))
        kinds = []
        async with websockets.connect(f"{server.ws}?resume={token}") as second:
            while kinds[-1:] != ["response.done"]:
                event = json.loads(await asyncio.wait_for(second.recv(), 30))
                kinds.append(event["type"])
        assert event["response"]["status"] == "cancelled"
        assert kinds[:2] == ["session.created", "duologue.resumed"]
        assert "response.output_audio.delta" not in kinds


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
