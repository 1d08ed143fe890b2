"""A server in a thread of this process, for measurements, tests and notebooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from fastapi import FastAPI

from apps.realtime import AccessConfig
from apps.serve_app import DrainingServer
from duplex.errors import DeviceError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Running:
    """A server that listens."""

    port: int
    loop: asyncio.AbstractEventLoop
    """Of the server's thread."""

    @property
    def address(self) -> str:
        """Of the Realtime door."""
        return f"ws://127.0.0.1:{self.port}/v1/realtime"

    def ask(self, what: Callable[[], T]) -> T:
        """The value of `what()`, called in the server's thread."""

        async def call() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)


@contextmanager
def running(app: FastAPI, access: AccessConfig, port: int = 0, drain_s: float = 5.0) -> Iterator[Running]:
    """Serve `app` on this machine until the block ends. Raises DeviceError when it cannot be started or ended."""
    server = DrainingServer(app, access, port, drain_s)
    ready = threading.Event()
    found: list[Running] = []

    async def main() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():  # noqa: ASYNC110  (uvicorn tells nobody)
            await asyncio.sleep(0.01)
        if server.started:
            found.append(Running(server.servers[0].sockets[0].getsockname()[1], asyncio.get_running_loop()))
        ready.set()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="serving", daemon=True)
    thread.start()
    ready.wait(60)
    if not found:
        raise DeviceError("The server could not be started.")
    try:
        yield found[0]
    finally:
        server.should_exit = True
        thread.join(30)
        if thread.is_alive():
            raise DeviceError("The server did not end within 30 s.")
