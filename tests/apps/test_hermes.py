"""Hermes messages: what the ecosystem sends is understood, and what is none is told to the right topic."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from apps import hermes
from apps.hermes import AudioFrame, ContinueSession, EndSession, HermesError, ListenToggle, Played, Say, StartSession, parse

DOCS = Path(__file__).parents[2] / "docs" / "mqtt.md"


def sent(topic: str, **values: Any) -> hermes.Incoming | None:
    return parse(topic, json.dumps(values).encode())


def test_what_rhasspy_sends_is_understood() -> None:
    assert parse("hermes/audioServer/kitchen/audioFrame", b"RIFF") == AudioFrame("kitchen", b"RIFF")
    assert parse("hermes/audioServer/kitchen/some-session/audioSessionFrame", b"x") == AudioFrame("kitchen", b"x")
    assert sent("hermes/audioServer/kitchen/playFinished", id="7", sessionId=None) == Played("kitchen", "7")
    assert sent("hermes/audioServer/kitchen/streamFinished", id="7") == Played("kitchen", "7")
    detected = {"modelId": "x", "modelVersion": "", "modelType": "personal", "currentSensitivity": 1.0, "siteId": "k", "lang": None}
    assert sent("hermes/hotword/porcupine/detected", **detected) == StartSession("k", queue=False, wakeword="porcupine")
    start = "hermes/dialogueManager/startSession"
    action = {"type": "action", "text": " Yes? ", "canBeEnqueued": False, "intentFilter": ["a"], "sendIntentNotRecognized": True}
    assert sent(start, init=action, siteId="k", customData="c", lang="en") == StartSession("k", "Yes?", False, False, "c", "en")
    assert sent(start, init={"type": "notification", "text": "Hi"}) == StartSession("default", "Hi", True)
    assert sent(start) == StartSession("default")
    assert sent("hermes/dialogueManager/continueSession", sessionId="s", text="And?", slot=None) == ContinueSession("s", "And?")
    assert sent("hermes/dialogueManager/endSession", sessionId="s") == EndSession("s", "")
    assert sent("hermes/tts/say", text="Hi", siteId="k", id="1", volume=None) == Say("k", "Hi", "1", None)
    assert sent("hermes/asr/toggleOff", siteId="k", reason="ttsSay") == ListenToggle("k", False)
    assert parse("hermes/asr/toggleOn", b"") == ListenToggle("default", True)


@pytest.mark.parametrize(
    "topic", ["", "hermes", "hermes/nlu/query", "rhasspy/audioServer/setVolume", "hermes/audioServer/k/x", "a/b/c"]
)
def test_what_is_not_ours_is_passed_over(topic: str) -> None:
    assert parse(topic, b"\xff{") is None


@pytest.mark.parametrize(
    ("topic", "payload", "component", "words"),
    [
        ("hermes/tts/say", b"{", "tts", "not JSON"),
        ("hermes/tts/say", b"[1]", "tts", "JSON object"),
        ("hermes/tts/say", b"{}", "tts", "needs a text"),
        ("hermes/tts/say", b'{"text": "\\ud800"}', "tts", "Unicode"),
        ("hermes/tts/say", b'{"text": "' + b"x" * 5000 + b'"}', "tts", "at most 4000"),
        ("hermes/tts/say", b" " * 70_000, "tts", "70000 bytes"),
        ("hermes/tts/say", b"[" * 60_000, "tts", "not JSON"),
        ("hermes/asr/toggleOff", b'{"siteId": "a/b"}', "asr", "is no name"),
        ("hermes/asr/toggleOff", b'{"siteId": 7}', "asr", "is no name"),
        ("hermes/audioServer/a+b/audioFrame", b"", "asr", "is no name"),
        ("hermes/hotword//detected", b"{}", "hotword", "is no name"),
        ("hermes/dialogueManager/startSession", b'{"init": {"type": "party"}}', "dialogueManager", "init.type"),
        ("hermes/dialogueManager/startSession", b'{"init": {"type": "notification"}}', "dialogueManager", "init.text"),
        ("hermes/dialogueManager/endSession", b"{}", "dialogueManager", "sessionId is missing"),
        ("hermes/dialogueManager/endSession", b'{"sessionId": {}}', "dialogueManager", "must be a text"),
    ],
)
def test_what_cannot_be_followed_is_told_where_it_belongs(topic: str, payload: bytes, component: str, words: str) -> None:
    with pytest.raises(HermesError, match=re.escape(words)) as told:
        parse(topic, payload)
    assert told.value.component == component


@given(st.text(max_size=60), st.binary(max_size=80))
def test_parsing_raises_nothing_else(topic: str, payload: bytes) -> None:
    for name in (
        topic,
        f"hermes/{topic}",
        "hermes/dialogueManager/startSession",
        f"hermes/hotword/{topic}/detected",
        "hermes/tts/say",
    ):
        try:
            parse(name, payload)
        except HermesError as error:
            assert json.loads(hermes.error(error.component, str(error), error.site, error.session, name).payload)


def test_what_goes_out_has_hermes_form() -> None:
    start = StartSession("k", custom="c", lang="en")
    ended = hermes.session_ended("s", "k", "c", "timeout")
    assert ended.topic == "hermes/dialogueManager/sessionEnded" and ended.keep and not ended.retain
    assert json.loads(ended.payload) == {
        "termination": {"reason": "timeout"},
        "sessionId": "s",
        "siteId": "k",
        "customData": "c",
    }
    assert json.loads(hermes.session_started("s", start).payload) == {
        "sessionId": "s",
        "siteId": "k",
        "customData": "c",
        "lang": "en",
    }
    assert hermes.play("k", "s:1.0", b"RIFF") == hermes.Outgoing("hermes/audioServer/k/playBytes/s:1.0", b"RIFF", keep=False)
    assert hermes.play_stream("k", "s:1", 3, True, b"").topic == "hermes/audioServer/k/playBytesStreaming/s:1/3/1"
    assert hermes.status(False) == hermes.Outgoing("duologue/status", b"offline", retain=True)
    assert hermes.topics(("a", "b"))[4] == "hermes/audioServer/b/audioFrame"
    assert hermes.topics(())[0] == "hermes/audioServer/+/audioFrame"


def test_the_examples_of_the_documentation_are_messages_that_are_understood() -> None:
    """Every YAML block is valid, and what its automations publish is followed; so is each mosquitto_pub line."""
    text = DOCS.read_text(encoding="utf-8")
    published: list[tuple[str, str]] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if value.get("action") == "mqtt.publish":
                published.append((value["data"]["topic"], value["data"]["payload"]))
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    blocks = re.findall(r"```yaml\n(.*?)```", text, re.S)
    assert blocks
    for block in blocks:
        look(yaml.safe_load(block))
    published += re.findall(r"mosquitto_pub [^\n]*-t '?([\w/]+)'? -m '([^\n]*)'", text)
    kinds = set()
    for topic, payload in published:
        filled = re.sub(r"\{\{.*?\}\}", "x", payload)
        message = parse(topic, filled.encode())
        assert message is not None, topic
        kinds.add(type(message))
    assert {StartSession, EndSession} <= kinds
