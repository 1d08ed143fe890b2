"""The official OpenAI client in a conversation with a served agent, for tests: it streams its microphone and keeps all events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI

from tests.apps.served import Served, b64

QUESTION, STORY, STOP = 800, 1200, 1600
PHRASES = {QUESTION: "What is the capital of France?", STORY: "Tell me a story.", STOP: "Wait, stop that right now."}
LONG = "This is a rather long answer that goes on and on about the matter at hand until someone stops it at last."


class Talk:
    """One connection of the official client, with a microphone that streams in real time."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.events: list[Any] = []
        self._speech: asyncio.Queue[bytes] = asyncio.Queue()

    def say(self, sound: bytes) -> None:
        for at in range(0, len(sound), 960):
            self._speech.put_nowait(sound[at : at + 960].ljust(960, b"\0"))

    async def stream(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            frame = self._speech.get_nowait() if not self._speech.empty() else bytes(960)
            await self.connection.input_audio_buffer.append(audio=b64(frame))
            due += 0.02
            await asyncio.sleep(max(due - loop.time(), 0))

    async def until(self, kind: str, within_s: float = 30.0) -> Any:
        async def look() -> Any:
            async for event in self.connection:
                self.events.append(event)
                if event.type == kind:
                    return event
            raise AssertionError(f"the connection ended before {kind}")

        try:
            return await asyncio.wait_for(look(), within_s)
        except TimeoutError:
            raise AssertionError(f"no {kind}; there came {[e.type for e in self.events]}") from None

    def types(self) -> list[str]:
        return [e.type for e in self.events if not e.type.startswith("duologue.")]


@asynccontextmanager
async def talk(server: Served, stream: bool = True, key: str = "any", model: str = "local", **session: Any) -> AsyncIterator[Talk]:
    """session: what a `session.update` says before anything else."""
    client = AsyncOpenAI(api_key=key, base_url=f"{server.http}/v1")
    async with client.realtime.connect(model=model) as connection:
        talking = Talk(connection)
        await talking.until("session.created")
        if session:
            await connection.session.update(session={"type": "realtime", **session})
            await talking.until("session.updated")
        streaming = asyncio.create_task(talking.stream()) if stream else None
        try:
            yield talking
        finally:
            if streaming is not None:
                streaming.cancel()
                await asyncio.gather(streaming, return_exceptions=True)
    await client.close()
