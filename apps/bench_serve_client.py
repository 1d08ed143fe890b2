"""A paced client of the Realtime server, for measurements: asks recorded questions as a person would, and times what comes back."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import websockets
from websockets.asyncio.client import ClientConnection, connect

from duplex.audio import AGENT_FRAME, AGENT_RATE_HZ, FRAME_MS, USER_RATE_HZ, Samples
from duplex.resample import resample

FRAME_BYTES = 2 * AGENT_FRAME
PREBUFFER_S = 0.06
PATIENCE_S = 20.0


def microphone(samples: Samples) -> list[bytes]:
    """User samples as the packets of a client: 20 ms of PCM16 at 24 kHz each."""
    pcm = np.clip(resample(samples, USER_RATE_HZ, AGENT_RATE_HZ) * 32767, -32768, 32767).astype("<i2").tobytes()
    return [pcm[at : at + FRAME_BYTES].ljust(FRAME_BYTES, b"\0") for at in range(0, len(pcm), FRAME_BYTES)]


@dataclass
class Talked:
    """What came of a conversation."""

    latencies_s: list[float] = field(default_factory=list)
    """End of the question, as it was sent, to the arrival of the first sound of its answer."""
    dry_s: float = 0.0
    """How long a loudspeaker with PREBUFFER_S of sound would have waited in the middle of answers."""
    sound_s: float = 0.0
    answers: int = 0
    unanswered: int = 0


class Caller:
    """One conversation. Times are those of the running loop."""

    def __init__(self, address: str) -> None:
        self.talked = Talked()
        self._address = address
        self._packets: list[bytes] = []
        self._ended_at = 0.0
        self._first = False
        self._play_until: float | None = None
        self._done = asyncio.Event()

    async def talk(self, questions: Sequence[Samples], pause_s: float = 1.0) -> Talked:
        """Ask all questions, one after another. Raises websockets.ConnectionClosed when the server ends it."""
        async with connect(self._address, max_size=None) as socket:
            sending = asyncio.create_task(self._send(socket))
            reading = asyncio.create_task(self._read(socket))
            try:
                for question in questions:
                    await asyncio.sleep(pause_s)
                    await self._ask(question)
                    if reading.done():
                        reading.result()
            finally:
                for task in (sending, reading):
                    task.cancel()
                await asyncio.gather(sending, reading, return_exceptions=True)
        return self.talked

    async def _ask(self, question: Samples) -> None:
        self._done.clear()
        self._first = True
        self._packets += microphone(question)
        try:
            await asyncio.wait_for(self._done.wait(), PATIENCE_S + len(question) / USER_RATE_HZ)
            self.talked.answers += 1
        except TimeoutError:
            self.talked.unanswered += 1

    async def _send(self, socket: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        due, silence = loop.time(), bytes(FRAME_BYTES)
        while True:
            due += FRAME_MS / 1000
            await asyncio.sleep(max(due - loop.time(), 0.0))
            speaking = bool(self._packets)
            packet = self._packets.pop(0) if speaking else silence
            await socket.send(append(packet))
            if speaking and not self._packets:
                self._ended_at = loop.time()

    async def _read(self, socket: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        async for text in socket:
            event: dict[str, Any] = json.loads(text)
            if event["type"] == "response.output_audio.delta":
                self._take_sound(loop.time(), len(base64.b64decode(event["delta"])) / 2 / AGENT_RATE_HZ)
            elif event["type"] == "duologue.floor" and event["floor"] == "held":
                self._play_until = None
            elif event["type"] == "response.done":
                self._play_until = None
                if not self._packets and not self._first:
                    self._done.set()

    def _take_sound(self, now: float, lasts_s: float) -> None:
        if self._first and not self._packets:
            self._first = False
            self.talked.latencies_s.append(now - self._ended_at)
        if self._play_until is None:
            self._play_until = now + PREBUFFER_S
        elif now > self._play_until:
            self.talked.dry_s += now - self._play_until
            self._play_until = now + PREBUFFER_S
        self._play_until += lasts_s
        self.talked.sound_s += lasts_s


def append(packet: bytes) -> str:
    """The event that carries a packet."""
    return json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(packet).decode()})


async def refusal(address: str) -> tuple[int | None, float]:
    """(close code, seconds until it came) of a client that asks for a place."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with connect(address) as socket:
        with suppress(websockets.ConnectionClosed, TimeoutError):
            async with asyncio.timeout(10):
                async for _ in socket:
                    pass
        return socket.close_code, loop.time() - began


async def die_in_the_middle(address: str, question: Samples, after_s: float, *, politely: bool) -> bool:
    """Connect, begin to ask, and vanish after `after_s`: closed, or just gone. False when there was no place."""
    loop = asyncio.get_running_loop()
    over = loop.time() + after_s
    try:
        async with connect(address, close_timeout=1) as socket:
            for packet in microphone(question):
                if loop.time() >= over:
                    break
                await socket.send(append(packet))
                await asyncio.sleep(FRAME_MS / 1000)
            await asyncio.sleep(max(over - loop.time(), 0))
            if not politely:
                socket.transport.abort()
        return True
    except websockets.ConnectionClosed as closed:
        return closed.rcvd is None or closed.rcvd.code != 1013
