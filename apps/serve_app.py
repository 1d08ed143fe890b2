"""The FastAPI application of `duologue serve`, on which a page can be mounted, and the uvicorn server that drains before it ends."""

from __future__ import annotations

import asyncio
import hmac
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse

from agent.host import Host
from apps.realtime import AccessConfig, Door
from apps.realtime_models import models_list
from apps.serve_metrics import Metrics
from apps.serve_protocol import AnsweredProtocol
from duplex.errors import DeviceError

DEAD_S = 45.0
"""A connection whose other end takes nothing for so long is dropped, with what was to be sent (where the system can do that)."""
HEARTBEAT_S = 20.0
"""How often a client is pinged, and how long it may take to answer."""


def build_app(host: Host, access: AccessConfig) -> FastAPI:
    """The application; `app.state.door` and `app.state.metrics` are its parts. It opens and closes the host with its lifespan."""
    metrics = Metrics(host)
    door = Door(
        host,
        access,
        on_event=metrics.take,
        on_error=lambda code: metrics.errors.labels(code).inc(),
        on_refused=lambda reason: metrics.refused.labels(reason).inc(),
        on_end=lambda end: metrics.ended.labels(end).inc(),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with host:
            yield
            await door.drain(0.0)

    app = FastAPI(title="Duologue", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.door, app.state.metrics = door, metrics

    @app.websocket("/v1/realtime")
    async def realtime(websocket: WebSocket) -> None:
        await door.serve(websocket)

    @app.get("/healthz")
    async def healthz() -> Response:
        return PlainTextResponse("ok")

    @app.get("/readyz")
    async def readyz() -> Response:
        if host.draining:
            return PlainTextResponse("draining", 503)
        if host.places_taken >= host.max_sessions:
            return PlainTextResponse("full", 503)
        return PlainTextResponse("ready")

    def locked(request: Request) -> Response | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("utf-8", "replace")
        if access.api_key is not None and not hmac.compare_digest(given, access.api_key.encode()):
            return PlainTextResponse("The API key is missing or wrong.", 401)
        return None

    @app.get("/metrics")
    async def figures(request: Request) -> Response:
        return locked(request) or Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return locked(request) or JSONResponse(models_list(host))

    return app


class DrainingServer(uvicorn.Server):
    """Ends on SIGTERM only after the conversations have; a second signal, or Ctrl-C, ends it at once."""

    def __init__(self, app: FastAPI, access: AccessConfig, port: int, drain_s: float = 20.0, **options: Any) -> None:
        """options: uvicorn's, such as ssl_certfile."""
        super().__init__(
            uvicorn.Config(
                app,
                access.host,
                port,
                ws=AnsweredProtocol,
                ws_max_size=access.most_message_bytes,
                ws_ping_interval=HEARTBEAT_S,
                ws_ping_timeout=HEARTBEAT_S,
                ws_per_message_deflate=False,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=5,
                **options,
            )
        )
        self._door: Door = app.state.door
        self._drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: Any = None) -> None:
        """Until a signal. Raises DeviceError when the address is taken."""
        self._loop = asyncio.get_running_loop()
        try:
            await super().serve(sockets)
        except SystemExit as error:
            raise DeviceError(
                f"The server could not start on {self.config.host}, port {self.config.port}: is it in use? Choose another with --port."
            ) from error
        finally:
            if self._draining is not None:
                self._draining.cancel()
                await asyncio.gather(self._draining, return_exceptions=True)

    async def startup(self, sockets: Any = None) -> None:
        """uvicorn's; connections take their limits from the listening sockets."""
        await super().startup(sockets)
        for server in getattr(self, "servers", []):
            for listening in server.sockets:
                if hasattr(socket, "TCP_USER_TIMEOUT"):
                    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * DEAD_S))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's signal handler."""
        if sig == signal.SIGTERM and self._draining is None and self._loop is not None and self.started:
            self._loop.call_soon_threadsafe(self._begin_to_drain)
        else:
            super().handle_exit(sig, frame)

    def _begin_to_drain(self) -> None:
        async def drain() -> None:
            await self._door.drain(self._drain_s)
            self.should_exit = True

        if self._draining is None:
            self._draining = asyncio.create_task(drain(), name="drain")
