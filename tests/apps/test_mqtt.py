"""`duologue mqtt` against a real mosquitto with passwords, access rules and TLS: two sites at once, the broker killed in their midst, the
command as users start it, and once a conversation with the real weights."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.doubles import spoken
from apps import mqtt
from apps.bench_clips import clips
from apps.hermes import topics
from apps.mqtt import conversation_config, serve, site_ids
from apps.mqtt_conversation import ConversationConfig
from apps.mqtt_link import BrokerConfig, Link
from duplex.errors import ConfigError
from tests.apps.mosquitto_broker import AGENT, PASSWORD, Mosquitto, running_mosquitto
from tests.apps.satellite_wire import house
from tests.apps.satellites import Satellite, Sessions, when

ROOT = Path(__file__).parents[2]
LONG = "This answer goes on for quite a while so that there is time for the broker to die in the middle of it."


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    with running_mosquitto(tmp_path) as broker:
        yield broker


@contextlib.asynccontextmanager
async def agent(broker: Mosquitto, sessions: Sessions, *sites: str) -> AsyncIterator[Link]:
    """The program itself, with scripted models, over TLS."""
    secure = BrokerConfig(
        "localhost", broker.tls_port, AGENT, PASSWORD, tls=True, tls_ca_certs=str(broker.ca), first_wait_s=0.3, longest_wait_s=0.5
    )
    link = Link(secure, topics(sites))
    task = asyncio.create_task(serve(link, sessions, ConversationConfig(quiet_s=20.0), sites, 2))
    try:
        await when(lambda: link.connected or task.done(), 30)
        yield link
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def wake(satellite: Satellite) -> str:
    satellite.tell("hermes/hotword/porcupine/detected", siteId=satellite.site)
    return str((await satellite.until("sessionStarted", longest_s=30))["sessionId"])


@pytest.mark.broker
async def test_two_sites_talk_while_the_broker_is_killed_and_no_complete_turn_is_lost(mosquitto: Mosquitto) -> None:
    sessions = Sessions(["First question?", "Second question?", "Third question?"], ["Short answer.", LONG, "Good."], word_s=0.2)
    async with (
        asyncio.timeout(180),
        house(mosquitto, "kitchen", "study") as wire,
        agent(mosquitto, sessions, "kitchen", "study") as link,
    ):
        kitchen, study = wire.satellites
        ids = await asyncio.gather(wake(kitchen), wake(study))

        kitchen.speak(spoken(0.7))
        study.speak(spoken(0.7, seed=3))
        await asyncio.gather(kitchen.said(1), study.said(1))

        study.speak(spoken(0.7))
        await study.until("textCaptured", 2)
        await when(lambda: len(study.plays) >= 4)  # the study's agent is in the middle of its long answer
        kitchen.speak(spoken(0.7))
        await when(lambda: len(kitchen.events("user_stopped")) == 2)  # the kitchen's user has finished, and was heard to
        mosquitto.kill()
        await when(lambda: not link.connected, 30)
        await asyncio.sleep(1.0)
        mosquitto.start()

        await asyncio.gather(kitchen.until("textCaptured", 2, 30), kitchen.said(2, 60), study.said(2, 60))
        kitchen.speak(spoken(0.7))
        study.speak(spoken(0.7))
        await asyncio.gather(kitchen.said(3, 60), study.said(3, 60))

        for satellite, id in zip((kitchen, study), ids, strict=True):
            captured = [(c["text"], c["siteId"], c["sessionId"]) for c in satellite.of("textCaptured")]
            assert captured == [(text, satellite.site, id) for text in sessions.texts]
            assert [e["reason"] for e in satellite.events("response_ended")] == ["completed"] * 3
            assert satellite.events("response_ended")[1]["heard"] == LONG
            assert satellite.of("sessionEnded") == []
        for session in sessions.opened:
            assert [m.text for m in session.history.messages if m.role == "user"] == list(sessions.texts)
        assert link.stats.connections == 2 and link.stats.lost == 0


@pytest.mark.broker
async def test_the_end_of_the_program_is_told_to_everybody(mosquitto: Mosquitto) -> None:
    async with asyncio.timeout(90), house(mosquitto, "kitchen") as wire:
        async with agent(mosquitto, Sessions(replies=[LONG]), "kitchen"):
            (kitchen,) = wire.satellites
            await wake(kitchen)
            kitchen.speak(spoken(0.7))
            await when(lambda: bool(kitchen.plays))
        await kitchen.until("sessionEnded", longest_s=30)
        await when(lambda: wire.log[-1] == ("duologue/status", b"offline"), 30)
        assert kitchen.of("sessionEnded")[0]["termination"]["reason"] == "abortedByUser"
        assert kitchen.of("/state")[-1] == "idle"
        assert [t for _, t, _ in kitchen.messages if "hotword/toggle" in t][-1].endswith("toggleOn")


async def command(*words: str) -> asyncio.subprocess.Process:
    environment = {**os.environ, "DUOLOGUE_MQTT_PASSWORD": PASSWORD, "PYTHONUNBUFFERED": "1"}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "apps",
        "mqtt",
        *words,
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def told(process: asyncio.subprocess.Process) -> tuple[int, str]:
    async with asyncio.timeout(180):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, (out + err).decode()


@pytest.mark.broker
async def test_the_command_with_a_wrong_password_ends_with_one_sentence(mosquitto: Mosquitto) -> None:
    words = ("--profile", "tiny", "--host", "127.0.0.1", "--port", str(mosquitto.port), "--username", AGENT, "--password", "wrong")
    code, text = await told(await command(*words))
    assert code == 2
    assert text.strip().splitlines()[-1].startswith("duologue: The broker 127.0.0.1:") and "Traceback" not in text


@pytest.mark.broker
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_the_command_serves_over_tls_until_it_is_told_to_stop(mosquitto: Mosquitto, number: int, code: int) -> None:
    async with house(mosquitto, "kitchen") as wire:
        (kitchen,) = wire.satellites
        words = ("--profile", "tiny", "--host", "localhost", "--port", str(mosquitto.tls_port), "--username", AGENT)
        process = await command(*words, "--tls", "--tls-ca-certs", str(mosquitto.ca), "--site-id", "kitchen")
        await when(lambda: ("duologue/status", b"online") in wire.log, 120)
        kitchen.tell("hermes/hotword/x/detected", siteId="kitchen")
        await kitchen.until("sessionStarted", longest_s=30)
        process.send_signal(number)
        assert (await told(process))[0] == code
        await when(lambda: wire.log[-1] == ("duologue/status", b"offline"), 30)
        assert kitchen.of("sessionEnded")[0]["termination"]["reason"] == "abortedByUser"


@pytest.mark.broker
@pytest.mark.weights
async def test_a_question_is_answered_with_the_real_weights(mosquitto: Mosquitto, edge_weights: dict[str, Path]) -> None:
    clip = clips("questions")[0]
    async with house(mosquitto, "kitchen") as wire:
        (kitchen,) = wire.satellites
        words = ("--host", "127.0.0.1", "--port", str(mosquitto.port), "--username", AGENT, "--site-id", "kitchen")
        process = await command(*words)
        try:
            await when(lambda: ("duologue/status", b"online") in wire.log, 120)
            kitchen.tell(
                "hermes/dialogueManager/startSession", siteId="kitchen", init={"type": "action", "text": "How can I help?"}
            )
            assert (await kitchen.said(1, 60))["heard"] == "How can I help?"
            kitchen.speak(clip.samples())
            captured = await kitchen.until("textCaptured", longest_s=60)
            answer = await kitchen.said(2, 90)
            assert len(set(words_of(captured["text"])) & set(words_of(clip.text))) >= len(set(words_of(clip.text))) / 2
            assert answer["reason"] == "completed" and answer["heard"]
            assert any(word.lower() in answer["heard"].lower() for word in clip.expect)
            assert np.sqrt(np.mean(kitchen.plays[-1].samples ** 2)) > 1e-3
            kitchen.tell("hermes/dialogueManager/endSession", sessionId=captured["sessionId"])
            assert (await kitchen.until("sessionEnded", longest_s=30))["termination"]["reason"] == "nominal"
        finally:
            process.send_signal(signal.SIGTERM)
            code, text = await told(process)
        assert code == 0, text


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    mqtt.add_arguments(parser)
    return parser.parse_args(words)


def test_arguments_become_settings() -> None:
    args = arguments("--site-id", "a", "--site-id", "b", "--site-id", "a", "--streaming", "--quiet", "3")
    assert site_ids(args) == ("a", "b")
    config = conversation_config(args)
    assert (config.quiet_s, config.playback.streaming, config.playback.chunk_ms) == (3.0, True, 100)
    assert conversation_config(arguments()).playback.chunk_ms == 300
    for wrong in (["--chunk-ms", "5"], ["--play-rate", "1"], ["--quiet", "0"], ["--max-sessions", "0"]):
        with pytest.raises(ConfigError):
            conversation_config(arguments(*wrong))
    with pytest.raises(ConfigError, match="site"):
        site_ids(arguments("--site-id", "a/b"))


def test_the_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mqtt.PASSWORD_VARIABLE, "secret")
    assert mqtt.broker_config(arguments("--username", "me")).password == "secret"
    assert mqtt.broker_config(arguments("--username", "me", "--password", "other")).password == "other"
    monkeypatch.delenv(mqtt.PASSWORD_VARIABLE)
    assert json.dumps(mqtt.broker_config(arguments()).password) == "null"
