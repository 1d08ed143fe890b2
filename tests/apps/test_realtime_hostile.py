"""Malformed, hostile and dying clients: every message is an `error` or a proper close, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.sync.client import connect

from apps import serve_app
from apps.realtime import AccessConfig
from tests.apps.realtime_client import LONG, PHRASES, QUESTION, STORY, talk
from tests.apps.served import Served, b64, doubles, served, tone
from tests.waiting import until

EXAMPLES, MESSAGES = 100, 10

words = st.sampled_from(
    [
        "session.update",
        "input_audio_buffer.append",
        "input_audio_buffer.commit",
        "input_audio_buffer.clear",
        "conversation.item.create",
        "conversation.item.retrieve",
        "conversation.item.delete",
        "conversation.item.truncate",
        "response.create",
        "response.cancel",
        "duologue.playback.ack",
        "no.such.event",
    ]
)
FIELDS = """type session item item_id audio response input output format turn_detection eagerness threshold silence_duration_ms tools
    name parameters tool_choice instructions output_modalities max_output_tokens voice content text role call_id audio_end_ms played_ms
    id rate duologue levels event_id previous_item_id metadata conversation idle_timeout_ms"""
keys = st.sampled_from(sorted(FIELDS.split()))
values = st.sampled_from(
    [
        "realtime", "message", "user", "assistant", "function_call_output", "function", "input_text", "input_audio", "server_vad",
        "semantic_vad", "audio/pcm", "audio/pcmu", "low", "inf", "auto", "none", "AAAA", "AAA", "////", b64(tone(900, 0.1)), "\ud800",
        "<|im_end|>", "x" * 30_000, "\0", -1, 0, 1, 10**400, 1e308, float("nan"), float("inf"), True, False, None, [], {},
        ["audio"], ["text"], [[]], [{}], [{"type": "input_text", "text": "Hello"}], {"type": "audio/pcm", "rate": 24000},
    ]
)  # fmt: skip
anything = st.recursive(
    values | st.text(max_size=20) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=12,
)
events = st.builds(lambda kind, fields: json.dumps({**fields, "type": kind}), words, st.dictionaries(keys, anything, max_size=6))
raw = st.one_of(
    st.text(max_size=200).filter(lambda text: text.isprintable()),
    st.binary(max_size=200),
    anything.map(json.dumps),
    st.just("[" * 100_000),
    st.just('{"type": ' + "9" * 5_000 + "}"),
    events.map(lambda text: text[:-1]),
)


class Victim(threading.Thread):
    """Another client, which talks all the while."""

    def __init__(self, server: Served) -> None:
        super().__init__(daemon=True)
        self.server, self.over, self.answers, self.failure = server, threading.Event(), 0, ""

    def run(self) -> None:
        async def converse() -> None:
            async with talk(self.server) as talking:
                while not self.over.is_set():
                    talking.say(tone(QUESTION))
                    done = await talking.until("response.done")
                    talking.events.clear()
                    assert done.response.status == "completed", done.response.status
                    self.answers += 1

        try:
            asyncio.run(converse())
        except BaseException as error:
            self.failure = repr(error)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(doubles(PHRASES, ["Paris is."]), access=AccessConfig(resume_s=0.2)) as running:
        yield running


def test_a_thousand_hostile_messages(server: Served) -> None:
    before = len(_tasks(server))
    victim = Victim(server)
    victim.start()
    seen = {"messages": 0, "errors": 0}
    line = [connect(server.ws, max_size=None)]

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.one_of(events, raw), min_size=MESSAGES, max_size=MESSAGES))
    def attack(messages: list[str | bytes]) -> None:
        for number, message in enumerate(messages):
            socket = line[0]
            seen["messages"] += 1
            try:
                socket.send(message if isinstance(message, bytes) else message.encode("utf-8", "replace").decode())
                mark = f"mark-{seen['messages']}"
                socket.send(json.dumps({"type": "mark", "event_id": mark}))
                answered = _until_mark(socket, mark)
            except websockets.ConnectionClosed:
                assert socket.close_code in (1000, 1007, 1008, 1009), (socket.close_code, message)
                line[0] = connect(server.ws, max_size=None)
                continue
            errors = [event["error"]["code"] for event in answered if event["type"] == "error"]
            assert "server_error" not in errors, (number, message)
            seen["errors"] += len(errors)
            if _is_nonsense(message):
                assert errors, message

    try:
        attack()
    finally:
        line[0].close()
        victim.over.set()
        victim.join(60)
    assert seen["messages"] >= EXAMPLES * MESSAGES and seen["errors"] > EXAMPLES
    assert victim.failure == "" and victim.answers >= 1
    until(lambda: len(_tasks(server)) <= before)  # the last connection may still be waiting to be resumed


def _until_mark(socket: Any, mark: str) -> list[dict[str, Any]]:
    found = []
    while True:
        event = json.loads(socket.recv(timeout=60))
        if event["type"] == "error" and event["error"]["event_id"] == mark:
            return found
        found.append(event)


def _is_nonsense(message: str | bytes) -> bool:
    """No JSON, or no event."""
    if isinstance(message, bytes):
        return True
    try:
        event = json.loads(message)
    except (ValueError, RecursionError):
        return True
    return not isinstance(event, dict) or not isinstance(event.get("type"), str) or event["type"] == "no.such.event"


def test_a_message_that_is_too_long_closes_the_connection() -> None:
    with served(doubles(PHRASES, ["x"]), access=AccessConfig(most_message_bytes=4096)) as server:
        with connect(server.ws) as socket:
            socket.recv()
            socket.send("x" * 5000)
            with pytest.raises(websockets.ConnectionClosed):
                while True:
                    socket.recv(timeout=30)
            assert socket.close_code == 1009


def test_sound_without_end_is_refused_and_not_kept(server: Served) -> None:
    with connect(server.ws) as socket:
        minute = json.dumps({"type": "input_audio_buffer.append", "audio": b64(bytes(2 * 24_000 * 10))})
        codes: set[str] = set()
        for _ in range(12):
            socket.send(minute)
        socket.send(json.dumps({"type": "mark", "event_id": "end"}))
        codes |= {event["error"]["code"] for event in _until_mark(socket, "end") if event["type"] == "error"}
    assert "input_audio_buffer_full" in codes


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts sockets by /proc")
def test_clients_that_die_in_the_middle_of_a_word_leave_nothing_behind() -> None:
    with served(doubles(PHRASES, [LONG]), access=AccessConfig(resume_s=0.1), max_sessions=4) as server:
        first: tuple[int, ...] = ()
        for round_number in range(6):
            for moment in range(4):
                socket = connect(server.ws)
                socket.recv()
                sound = tone(STORY if moment % 2 else QUESTION, 0.5) + bytes(2 * 12_000 * (moment % 3))
                socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": b64(sound)}))
                time.sleep(0.05 + 0.2 * moment)
                socket.socket.shutdown(2)
                socket.close()
            until(lambda: server.host.places_taken == 0)
            if round_number == 1:  # what is made once has been made
                time.sleep(1.0)
                first = _held(server)
            elif first:  # what was left behind stays; what only takes a while to end does not
                until(partial(_holds_no_more_than, server, first))
        with connect(server.ws) as socket:
            assert json.loads(socket.recv())["type"] == "session.created"


def _holds_no_more_than(server: Served, then: tuple[int, ...]) -> bool:
    return all(now <= before for now, before in zip(_held(server), then, strict=True))


def _held(server: Served) -> tuple[int, ...]:
    """How many tasks, threads and open files there are."""
    gc.collect()
    return len(_tasks(server)), threading.active_count(), len(os.listdir("/proc/self/fd"))


def _tasks(server: Served) -> list[asyncio.Task[Any]]:
    found: list[asyncio.Task[Any]] = server.running.ask(lambda: [t for t in asyncio.all_tasks() if t is not asyncio.current_task()])
    return found


def test_a_client_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_app, "DEAD_S", 2.0)
    with served(doubles(PHRASES, ["x"]), access=AccessConfig(resume_s=0.2)) as server:
        blind = connect(server.ws, max_queue=1, close_timeout=0.1)
        ended = threading.Event()

        def flood() -> None:
            with contextlib.suppress(websockets.ConnectionClosed, OSError):
                while True:
                    blind.send(json.dumps({"type": "x" * 70}))
            ended.set()

        threading.Thread(target=flood, daemon=True).start()
        assert ended.wait(60), "the flood goes on"
        until(lambda: server.host.places_taken == 0)
