"""`duologue serve`: who may come in, health and figures, and how the process ends."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import websockets
from websockets.sync.client import connect

from apps import serve
from apps.realtime import AccessConfig, is_local
from duplex.errors import ConfigError
from tests.apps.realtime_client import PHRASES, QUESTION
from tests.apps.served import Served, b64, doubles, served, tone
from tests.waiting import until

ROOT = Path(__file__).resolve().parent.parent.parent
KEY = "s3cret"


def get(address: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def status(server: Served, subprotocols: list[str] | None = None, **headers: str) -> int:
    """The HTTP status of a handshake; 101 for one that succeeds."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    origin = given.pop("Origin", None)
    try:
        with connect(server.ws, additional_headers=given, subprotocols=subprotocols, origin=origin) as socket:
            assert json.loads(socket.recv())["type"] == "session.created"
            return 101
    except websockets.InvalidStatus as error:
        return error.response.status_code


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    access = AccessConfig(api_key=KEY, origins=("https://ours.example",))
    with served(doubles(PHRASES, ["Paris is."]), access=access) as server:
        yield server


@pytest.fixture(scope="module")
def local() -> Iterator[Served]:
    with served(doubles(PHRASES, ["Paris is."])) as server:
        yield server


def test_a_key_is_asked_of_everyone_once_there_is_one(locked: Served) -> None:
    assert status(locked) == 401
    assert status(locked, Authorization="Bearer wrong") == 401
    assert status(locked, Authorization=f"Bearer {KEY}") == 101
    assert status(locked, subprotocols=["realtime", f"openai-insecure-api-key.{KEY}"]) == 101
    assert status(locked, subprotocols=["realtime", "openai-insecure-api-key.wrong"]) == 401
    assert get(f"{locked.http}/metrics")[0] == 401
    assert get(f"{locked.http}/metrics", Authorization=f"Bearer {KEY}")[0] == 200
    assert get(f"{locked.http}/healthz") == (200, "ok")


def test_who_is_refused_leaves_no_error_in_the_log(locked: Served, caplog: pytest.LogCaptureFixture) -> None:
    bearer = {"Authorization": f"Bearer {KEY}"}
    with served(doubles(PHRASES, ["x"]), max_sessions=1) as full, connect(full.ws) as first:
        first.recv(timeout=30)
        uvicorn_log = logging.getLogger("uvicorn.error")  # which passes nothing on
        uvicorn_log.addHandler(caplog.handler)
        try:
            uvicorn_log.warning("seen")
            assert (status(locked), status(locked, Origin="https://evil.example", **bearer)) == (401, 403)
            for address, code in ((f"{locked.ws}?model=none", "model_not_found"), (full.ws, "server_full")):
                with connect(address, additional_headers=bearer) as socket:
                    assert json.loads(socket.recv(timeout=30))["error"]["code"] == code
            assert status(locked, **bearer) == 101
        finally:
            uvicorn_log.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == ["seen"]


def test_a_refusal_says_why(locked: Served) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        connect(locked.ws)
    assert bytes(refused.value.response.body) == b"The API key is missing or wrong."


def test_the_subprotocol_is_chosen_when_it_is_offered(local: Served) -> None:
    with connect(local.ws, subprotocols=["realtime", "openai-insecure-api-key.any"]) as socket:
        assert socket.subprotocol == "realtime"


def test_pages_of_others_are_kept_out(locked: Served, local: Served) -> None:
    bearer = f"Bearer {KEY}"
    assert status(locked, Origin="https://evil.example", Authorization=bearer) == 403
    assert status(locked, Origin="https://ours.example", Authorization=bearer) == 101
    assert status(local, Origin=local.http) == 101
    assert status(local, Origin="https://evil.example") == 403
    assert status(local, Origin="null") == 403
    assert status(local, Origin="http://[half") == 403


def test_a_name_of_someone_else_for_this_machine_is_kept_out() -> None:
    from apps.realtime import Door

    with served(doubles({}, ["x"])) as server:
        door: Door = server.door
        evil = {"host": f"evil.example:{server.port}", "origin": f"http://evil.example:{server.port}"}
        refused = door.allows(evil, [])
        assert refused is not None and refused[0] == 403
        assert door.allows({"host": f"localhost:{server.port}"}, []) is None


@pytest.mark.parametrize(
    ("host", "local_"),
    [("127.0.0.1", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False), ("x.org", False)],
)
def test_what_counts_as_this_machine(host: str, local_: bool) -> None:
    assert is_local(host) is local_


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser.parse_args(arguments)


def test_another_address_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUOLOGUE_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="api-key"):
        serve.access_from(parsed("--host", "0.0.0.0"))
    with pytest.raises(ConfigError, match="empty"):
        serve.access_from(parsed("--api-key", ""))
    monkeypatch.setenv("DUOLOGUE_API_KEY", KEY)
    assert serve.access_from(parsed("--host", "0.0.0.0")).api_key == KEY


def test_figures_tell_what_happened() -> None:
    with served(doubles(PHRASES, ["Paris is."]), max_sessions=1) as server:
        assert get(f"{server.http}/readyz") == (200, "ready")
        with connect(server.ws) as socket:
            assert json.loads(socket.recv(timeout=30))["type"] == "session.created"  # only now has it its place
            socket.send("nonsense")
            socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": b64(tone(QUESTION))}))
            assert get(f"{server.http}/readyz") == (503, "full")
            while json.loads(socket.recv(timeout=30))["type"] != "response.done":
                pass
            assert "duologue_sessions 1.0" in get(f"{server.http}/metrics")[1]
        over = 'duologue_sessions_total{end="closed"} 1.0'
        until(lambda: over in get(f"{server.http}/metrics")[1])
        text = get(f"{server.http}/metrics")[1]
    for line in (
        "duologue_sessions 0.0",
        'duologue_responses_total{reason="completed"} 1.0',
        'duologue_client_errors_total{code="invalid_json"} 1.0',
        "duologue_response_latency_seconds_count 1.0",
        'duologue_model_jobs_total{lane="listen"}',
    ):
        assert line in text, text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_process_says_where_it_listens_and_ends_when_told(number: int, code: int) -> None:
    command = [sys.executable, "-m", "apps", "serve", "--profile", "tiny", "--port", "0", "--drain-s", "3"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "Loading" in process.stdout.readline()
        address = process.stdout.readline().split()[-1]
        with connect(address) as socket:
            assert json.loads(socket.recv(timeout=60))["type"] == "session.created"
            process.send_signal(number)
            kinds = []
            with pytest.raises(websockets.ConnectionClosed):
                while True:
                    kinds.append(json.loads(socket.recv(timeout=60))["type"])
            if number == signal.SIGTERM:
                assert "duologue.draining" in kinds
                assert socket.close_code == 1001
        assert process.wait(60) == code, process.stderr.read() if process.stderr else ""
    finally:
        process.kill()
        process.communicate()
