"""A Realtime server with several profiles: clients name one as the model, and each has voices of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import websockets
from openai import AsyncOpenAI

from agent.host import Host, Loaded
from agent.profiles import load_profile
from duplex.errors import ConfigError
from tests.apps.realtime_client import PHRASES, QUESTION, talk
from tests.apps.served import Served, doubles, served, tone


def pirate() -> Loaded:
    profile = load_profile("edge", ["session.response.system_prompt=You are a pirate.", "session.response.group_tokens=1"])
    return Loaded(profile, doubles(PHRASES, ["Arr."]), {"high": 880.0})


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(doubles(PHRASES, ["Paris is."]), others=[pirate()]) as running:
        yield running


@pytest.mark.parametrize(
    ("model", "profile", "answer"),
    [
        ("edge", "edge", "Arr."),
        ("tiny", "tiny", "Paris is."),
        ("gpt-realtime", "tiny", "Paris is."),
        ("local", "tiny", "Paris is."),
    ],
)
async def test_the_model_is_the_profile(server: Served, model: str, profile: str, answer: str) -> None:
    async with talk(server, model=model) as talking:
        session = talking.events[0].session
        assert (session.model, session.duologue["profile"], session.duologue["profiles"]) == (profile, profile, ["tiny", "edge"])
        assert session.duologue["voices"] == (["default", "high"] if profile == "edge" else ["default"])
        assert ("pirate" in session.instructions) == (profile == "edge")
        talking.say(tone(QUESTION))
        done = await talking.until("response.done")
    assert done.response.output[0].content[0].transcript == answer


async def test_no_model_is_the_first_and_an_unknown_one_is_told_what_there_is(server: Served) -> None:
    async with websockets.connect(server.ws) as socket:
        assert json.loads(await socket.recv())["session"]["model"] == "tiny"
    async with websockets.connect(f"{server.ws}?model=minmo-7b") as socket:
        error = json.loads(await socket.recv())["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "'minmo-7b'" in error["message"] and error["message"].endswith("choose one of: tiny, edge.")
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1008


async def test_a_session_keeps_its_model(server: Served) -> None:
    async with talk(server, stream=False, model="edge") as talking:
        for model in ("edge", "gpt-realtime"):  # what OpenAI's clients send along
            await talking.connection.session.update(session={"type": "realtime", "model": model})
            assert (await talking.until("session.updated")).session.model == "edge"
        for model, code in (("tiny", "invalid_value"), ("none", "model_not_found"), (1, "invalid_type")):
            await talking.connection.session.update(session={"type": "realtime", "model": model})
            error = (await talking.until("error")).error
            assert (error.code, error.param) == (code, "session.model")


async def test_the_list_of_models(server: Served) -> None:
    async with AsyncOpenAI(api_key="any", base_url=f"{server.http}/v1") as client:
        assert [model.id for model in (await client.models.list()).data] == ["tiny", "edge"]


async def test_places_are_counted_together() -> None:
    with served(doubles(PHRASES, ["x"]), max_sessions=1, others=[pirate()]) as server:
        async with websockets.connect(f"{server.ws}?model=edge") as first:
            assert json.loads(await first.recv())["type"] == "session.created"
            async with websockets.connect(f"{server.ws}?model=tiny") as second:
                assert json.loads(await second.recv())["error"]["code"] == "server_full"


def test_two_profiles_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="same name"):
        Host(load_profile("edge"), doubles({}, ["x"]), others=[pirate()])
