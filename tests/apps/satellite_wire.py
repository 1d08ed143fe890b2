"""Satellites on a real broker: one connection of their own for all of a house, which comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import aiomqtt

from tests.apps.mosquitto_broker import PASSWORD, SATELLITE, Mosquitto
from tests.apps.satellites import Satellite, when


class Wire:
    """Everything that the satellites say and hear goes through here. Sound is dropped while the broker is away, the rest is kept."""

    def __init__(self, broker: Mosquitto, user: str = SATELLITE) -> None:
        self._broker, self._user = broker, user
        self.satellites: list[Satellite] = []
        self.log: list[tuple[str, bytes]] = []
        self.connected = asyncio.Event()
        self._out: deque[tuple[str, bytes]] = deque(maxlen=5000)
        self._ready = asyncio.Event()

    def add(self, site: str, **options: Any) -> Satellite:
        self.satellites.append(Satellite(site, self.publish, **options))
        return self.satellites[-1]

    def publish(self, topic: str, payload: bytes) -> None:
        if self.connected.is_set() or not topic.endswith("Frame"):
            self._out.append((topic, payload))
            self._ready.set()

    async def run(self) -> None:
        while True:
            with contextlib.suppress(aiomqtt.MqttError):
                async with aiomqtt.Client(
                    "127.0.0.1", self._broker.port, username=self._user, password=PASSWORD, timeout=10, keepalive=15
                ) as client:
                    await client.subscribe("hermes/#", qos=1)
                    await client.subscribe("duologue/#", qos=1)
                    await self._serve(client)
            await asyncio.sleep(0.02)

    async def _serve(self, client: aiomqtt.Client) -> None:
        async def receive() -> None:
            async for message in client.messages:
                topic, payload = message.topic.value, message.payload
                assert isinstance(payload, bytes)
                if not topic.endswith("audioFrame"):
                    self.log.append((topic, payload))
                    for satellite in self.satellites:
                        satellite.take(topic, payload)

        async def send() -> None:
            while True:
                while self._out:
                    topic, payload = self._out[0]
                    await client.publish(topic, payload, qos=0 if topic.endswith("Frame") else 1)
                    self._out.popleft()
                self._ready.clear()
                await self._ready.wait()

        self.connected.set()
        tasks = [asyncio.create_task(receive()), asyncio.create_task(send())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.connected.clear()
            self._out = deque((m for m in self._out if not m[0].endswith("Frame")), 5000)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def house(broker: Mosquitto, *sites: str, **options: Any) -> AsyncIterator[Wire]:
    """Satellites whose microphones run, connected, for the length of a block."""
    wire = Wire(broker)
    tasks = [asyncio.create_task(wire.run()), *(asyncio.create_task(wire.add(site, **options).run()) for site in sites)]
    try:
        await when(wire.connected.is_set, 30.0)
        yield wire
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
