"""A server whose conversations say back what they hear at once: what remains is the door's own round trip."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np
from websockets.asyncio.client import connect

from agent.host import Host
from agent.session import Session
from agent.transport import Transport
from apps.bench_serve_client import FRAME_BYTES, append
from duplex.audio import AGENT_RATE_HZ, FRAME_MS, USER_RATE_HZ
from duplex.events import ResponseStarted
from duplex.resample import LiveResampler

CLICK_EVERY = 25
"""Frames from one click to the next."""
SETTLING = 100
"""Frames before the first one: what was sent while the conversation was being set up is still to be taken in."""


class EchoSession(Session):
    """A session in all but what it says."""

    @property
    def sending(self) -> int | None:
        """Always sound."""
        return 1

    async def _hear(self) -> None:
        back = LiveResampler(USER_RATE_HZ, AGENT_RATE_HZ)
        self._emit(ResponseStarted(0, 1, None))
        while (frame := await self._transport.receive()) is not None:
            await self._transport.send(back.push(frame.near))


class EchoHost(Host):
    """A host of such sessions."""

    @asynccontextmanager
    async def session(self, transport: Transport, **options: Any) -> AsyncIterator[Session]:
        """See Host.session."""
        async with super().session(transport, **options) as session:
            echo = EchoSession(self.parts, transport, self.worker, session.config)
            yield echo


async def round_trips(address: str, seconds: float) -> list[float]:
    """Seconds from sending a click to the arrival of its echo, a few a second."""
    loop = asyncio.get_running_loop()
    trips: list[float] = []
    sent: list[float] = []

    async with connect(address, max_size=None) as socket:

        async def read() -> None:
            loud = False
            async for text in socket:
                event = cast(dict[str, Any], json.loads(text))
                if event["type"] != "response.output_audio.delta":
                    continue
                pcm = np.frombuffer(base64.b64decode(event["delta"]), "<i2")
                heard = bool(np.abs(pcm.astype(np.int32)).max(initial=0) > 8000)
                if heard and not loud and sent:
                    trips.append(loop.time() - sent[-1])
                loud = heard

        reading = asyncio.create_task(read())
        click = np.zeros(FRAME_BYTES // 2, "<i2")
        click[len(click) // 2 :] = (20_000 * np.sin(np.arange(len(click) // 2) * 0.3)).astype("<i2")
        due = loop.time()
        for number in range(round(1000 * seconds / FRAME_MS)):
            due += FRAME_MS / 1000
            await asyncio.sleep(max(due - loop.time(), 0))
            if number % CLICK_EVERY == CLICK_EVERY - 1 and number > SETTLING:
                sent.append(loop.time())
                await socket.send(append(click.tobytes()))
            else:
                await socket.send(append(bytes(FRAME_BYTES)))
        await asyncio.sleep(0.2)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    return trips
