"""A server for the page's tests that does what the test says: it sends any event, keeps what comes, refuses, closes, vanishes."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Response, WebSocket, WebSocketDisconnect

from duplex.audio import Samples
from tests.waiting import until


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(app: FastAPI, port: int) -> Iterator[str]:
    """Serves an app from a thread; the address. Waits until it listens, and until it has stopped."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@dataclass
class ScriptedRealtime:
    """The wire of the Realtime server, with the test as its mind; one connection at a time."""

    refuse_with: int | None = None
    """Close code for new connections, after the error event `server_full` for 1013."""
    received: list[dict[str, Any]] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)
    protocols: list[str] = field(default_factory=list)
    sessions: int = 0
    keep_session: bool = False
    """The next connection gets the last session's id, as after a resume."""
    _socket: WebSocket | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    def install(self, app: FastAPI) -> None:
        """Adds the routes."""
        app.get("/healthz")(lambda: Response("ready"))
        app.websocket("/v1/realtime")(self._serve)

    async def _serve(self, websocket: WebSocket) -> None:
        self.queries.append(dict(websocket.query_params))
        self.protocols.append(websocket.headers.get("sec-websocket-protocol", ""))
        await websocket.accept(subprotocol="realtime")
        if self.refuse_with is not None:
            await websocket.send_json({"type": "error", "error": {"code": "server_full", "message": "full"}})
            await websocket.close(self.refuse_with)
            return
        self._socket, self._loop = websocket, asyncio.get_running_loop()
        self.sessions += not self.keep_session
        session = {"id": f"sess_{self.sessions}", "duologue": {"resume_token": f"token_{len(self.queries)}"}}
        await websocket.send_json({"type": "session.created", "session": session})
        try:
            while True:
                self.received.append(await websocket.receive_json())
        except (WebSocketDisconnect, RuntimeError):
            if self._socket is websocket:
                self._socket = None

    def send(self, *events: dict[str, Any]) -> None:
        """From the test's thread; waits until they are sent."""
        assert self._socket is not None and self._loop is not None, "nobody is connected"
        for event in events:
            asyncio.run_coroutine_threadsafe(self._socket.send_json(event), self._loop).result(30)

    def close(self, code: int) -> None:
        """Closes the connection from this side."""
        assert self._socket is not None and self._loop is not None
        asyncio.run_coroutine_threadsafe(self._socket.close(code), self._loop).result(30)

    def packet(self, item: str, samples: Samples) -> dict[str, Any]:
        """The event that carries [n] agent samples of an item."""
        pcm = (samples * 32767).astype("<i2").tobytes()
        return {"type": "response.output_audio.delta", "item_id": item, "delta": base64.b64encode(pcm).decode()}

    def say(self, item: str, samples: Samples) -> None:
        """[n] agent samples of an item in packets of 20 ms, in real time."""
        began = time.monotonic()
        for number, start in enumerate(range(0, len(samples), 480)):
            self.send(self.packet(item, samples[start : start + 480]))
            time.sleep(max(began + 0.02 * number - time.monotonic(), 0))

    def played_ms(self, item: str) -> float:
        """How much of an item has left the page's loudspeaker, as the page says."""
        acks = [event["played_ms"] for event in self.of("duologue.playback.ack") if event["item_id"] == item]
        return acks[-1] if acks else 0.0

    def of(self, kind: str) -> list[dict[str, Any]]:
        """What came of one type."""
        return [event for event in list(self.received) if event["type"] == kind]

    def microphone(self) -> Samples:
        """[n] agent-rate samples that came so far."""
        pcm = b"".join(base64.b64decode(event["audio"]) for event in self.of("input_audio_buffer.append"))
        return np.frombuffer(pcm, "<i2").astype(np.float32) / 32768

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 30.0) -> None:
        """Until the condition holds; fails after the time."""
        until(condition, timeout_s)
