"""How long the door to MQTT takes from a satellite's microphone to its loudspeaker: `python -m tests.apps.mqtt_round_trip`.

The agent is replaced by an echo; everything else is the real thing: mosquitto, 16 ms audio frames in, pieces of voice out. Clicks are
found again in what the satellite plays. Printed are the whole way, sample to sample, and what it adds to the piece and the lead that the
settings ask for.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from agent.session import Session
from agent.transport import Transport
from apps.hermes import topics
from apps.mqtt import serve
from apps.mqtt_conversation import ConversationConfig
from apps.mqtt_link import BrokerConfig, Link
from apps.mqtt_playback import PlaybackConfig
from duplex.audio import AGENT_RATE_HZ, USER_RATE_HZ
from duplex.resample import LiveResampler
from tests.apps.mosquitto_broker import AGENT, PASSWORD, Mosquitto, running_mosquitto
from tests.apps.satellite_wire import Wire
from tests.apps.satellites import Satellite, Sessions, when

CLICK_EVERY = USER_RATE_HZ * 7 // 10  # so that clicks fall on every place of a piece
NOISE = 0.01
PHRASE_S, SPEAKING_S = 2.7, 2.1
"""Sound comes in phrases with pauses between, as speech does."""


class EchoSession(Session):
    """Says what it hears."""

    async def _hear(self) -> None:
        up = LiveResampler(USER_RATE_HZ, AGENT_RATE_HZ)
        while (frame := await self._transport.receive()) is not None:
            await self._transport.send(up.push(frame.near))


@asynccontextmanager
async def echo(transport: Transport) -> AsyncIterator[Session]:
    async with Sessions()(transport) as session:
        session.__class__ = EchoSession
        yield session


class Clicking(Satellite):
    """A microphone with phrases of soft noise and a click now and then; `clicks` are the times at which they were made."""

    clicks: list[float]

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self.clicks = []
        rng = np.random.default_rng(0)
        began = loop.time()
        position = 0
        while True:
            position += self.frame
            await asyncio.sleep(max(began + position / self.rate - loop.time(), 0))
            self._speech = (rng.standard_normal(self.frame) * NOISE).astype(np.float32)
            on = loop.time() % PHRASE_S < SPEAKING_S
            if not on:
                self._speech *= 0
            at = -(position - self.frame) % CLICK_EVERY
            if at < self.frame and on:
                self._speech[at] = 0.9
                self.clicks.append(began + (position - self.frame + at) / self.rate)
            self.publish(f"hermes/audioServer/{self.site}/audioFrame", _wav(self._speech, self.rate))


def _wav(samples: np.ndarray, rate: int) -> bytes:
    from apps.hermes_audio import write_wav

    return write_wav(samples, rate)


async def measure(broker: Mosquitto, playback: PlaybackConfig, sites: int, lasts_s: float) -> np.ndarray:
    """Seconds from each click to its sound, over all sites."""
    wire = Wire(broker)
    names = tuple(f"site{i}" for i in range(sites))
    wire.satellites = [Clicking(name, wire.publish) for name in names]
    link = Link(BrokerConfig("127.0.0.1", broker.port, AGENT, PASSWORD), topics(names))
    tasks = [
        asyncio.create_task(wire.run()),
        asyncio.create_task(serve(link, echo, ConversationConfig(playback=playback), names, sites)),
        *(asyncio.create_task(satellite.run()) for satellite in wire.satellites),
    ]
    try:
        await when(lambda: link.connected and wire.connected.is_set(), 10)
        for satellite in wire.satellites:
            satellite.tell("hermes/dialogueManager/startSession", siteId=satellite.site)
        await asyncio.sleep(2.0)  # what came while the session was opened is caught up
        for satellite in wire.satellites:
            satellite.plays.clear()
        await asyncio.sleep(lasts_s)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return np.concatenate([_delays(satellite) for satellite in wire.satellites])


def _delays(satellite: Satellite) -> np.ndarray:
    heard = [
        play.begins + at / play.rate
        for play in satellite.plays
        for at in np.flatnonzero(play.samples > 0.3)
        if at == 0 or play.samples[at - 1] < play.samples[at]
    ]
    made = np.array(satellite.clicks)
    last = [made[made < time] for time in _thin(heard)]
    return np.array([time - before[-1] for time, before in zip(_thin(heard), last, strict=True) if len(before)])


def _thin(times: list[float]) -> list[float]:
    """One time for each click."""
    kept: list[float] = []
    for time in times:
        if not kept or time - kept[-1] > 0.1:
            kept.append(time)
    return kept


def main(lasts_s: float) -> None:
    with tempfile.TemporaryDirectory() as folder, running_mosquitto(Path(folder)) as broker:
        for playback in (PlaybackConfig(), PlaybackConfig(100, streaming=True)):
            for sites in (1, 4):
                delays = asyncio.run(measure(broker, playback, sites, lasts_s)) * 1000
                asked = playback.chunk_ms + playback.lead_ms
                kind = "playBytesStreaming" if playback.streaming else "playBytes"
                median, worst = np.percentile(delays, [50, 99])
                print(
                    f"{kind} {playback.chunk_ms} + {playback.lead_ms} ms, {sites} site(s), {len(delays)} clicks: "
                    f"median {median:.0f} ms, p99 {worst:.0f} ms; added median {median - asked:.0f}, p99 {worst - asked:.0f} ms"
                )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
