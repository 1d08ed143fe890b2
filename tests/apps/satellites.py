"""Satellites as they are in a house: a microphone that sends WAV messages, a loudspeaker that plays what comes and reports it.

The same satellite runs against a dialogue on a virtual clock and over a real broker. `sessions` makes conversations with scripted
models, which hear the n-th thing said to them as the n-th text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.doubles import LevelVad, ScriptedThinker, ToneVoice
from agent.parts import Parts
from agent.response import ResponseConfig
from agent.session import Session, SessionConfig
from agent.transport import Transport
from agent.worker import VirtualWorker
from apps.hermes_audio import read_wav, write_wav
from duplex.audio import Samples
from duplex.predictor import RulePredictor
from duplex.turns import TurnConfig
from encoders.ears import Transcript


async def when(condition: Callable[[], bool], longest_s: float = 60.0) -> None:
    """Until it holds; TimeoutError when it does not in time."""
    async with asyncio.timeout(longest_s):
        while not condition():  # noqa: ASYNC110  (whatever a test looks at wakes nobody)
            await asyncio.sleep(0.01)


COSTS_S = {"listen": 0.02, "think": 0.005, "speak": 0.01}


@dataclass(slots=True)
class _Counting:
    turn: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class CountingEars:
    """Hears the n-th turn as the n-th text (then the last one again)."""

    texts: Sequence[str]

    @property
    def interim_s(self) -> float:
        return 0.6

    def open(self) -> _Counting:
        return _Counting()

    def feed(self, state: _Counting, samples: Samples) -> None:
        state.end += len(samples)

    def begin_turn(self, state: _Counting, start: int) -> None:
        state.turn += 1

    def window(self, state: _Counting) -> tuple[int, int]:
        return state.turn, state.end

    def transcribe(self, window: tuple[int, int]) -> Transcript:
        turn, end = window
        return Transcript(self.texts[min(turn, len(self.texts)) - 1], end)

    def settle(self, state: _Counting, window: tuple[int, int], transcript: Transcript) -> None:
        pass


@dataclass
class Sessions:
    """Opens conversations with scripted models."""

    texts: Sequence[str] = ("What bites?",)
    replies: Sequence[str] = ("Bees and wasps do, and some dogs.",)
    word_s: float = 0.25
    fail: bool = False
    broken: bool = False
    """No session can be opened."""
    turns: TurnConfig = field(default_factory=TurnConfig)
    opened: list[Session] = field(default_factory=list)

    @asynccontextmanager
    async def __call__(self, transport: Transport) -> AsyncIterator[Session]:
        if self.broken:
            raise RuntimeError("no memory for another conversation")
        thinker = ScriptedThinker(self.replies, fail=self.fail)
        parts = Parts(CountingEars(self.texts), LevelVad(), thinker, ToneVoice(self.word_s), RulePredictor())
        config = SessionConfig(response=ResponseConfig(group_tokens=3), turns=self.turns)
        self.opened.append(Session(parts, transport, VirtualWorker(cost_s=COSTS_S.__getitem__), config))
        yield self.opened[-1]


@dataclass
class Play:
    """A sound as the satellite played it, on the loop's clock."""

    id: str
    begins: float
    ends: float
    samples: Samples
    rate: int


class Satellite:
    """One site. `publish(topic, payload)` goes to the broker; `take` gets what comes from it."""

    def __init__(
        self,
        site: str,
        publish: Callable[[str, bytes], None],
        *,
        rate: int = 16_000,
        frame: int = 256,
        gap_s: float = 0.0,
        reports: bool = True,
        session: str | None = None,
    ) -> None:
        """gap_s: silence before each sound, as a player that is started anew makes it. reports: whether it sends playFinished."""
        self.site, self.rate, self.frame, self.gap_s, self.reports = site, rate, frame, gap_s, reports
        self.publish = publish
        self.plays: list[Play] = []
        self.messages: list[tuple[float, str, Any]] = []
        self.on = True
        """Whether the microphone sends."""
        self._speech = np.zeros(0, np.float32)
        self._noise = np.random.default_rng(1).standard_normal(rate).astype(np.float32) * 1e-4
        self._until = 0.0
        self.spoke_at = 0.0
        """When the newest utterance began."""

    async def run(self) -> None:
        """The microphone, for ever."""
        loop = asyncio.get_running_loop()
        began, number = loop.time(), 0
        while True:
            number += 1
            await asyncio.sleep(max(began + number * self.frame / self.rate - loop.time(), 0))
            sound = self._noise[: self.frame].copy()
            piece, self._speech = self._speech[: self.frame], self._speech[self.frame :]
            sound[: len(piece)] += piece
            if self.on:
                self.publish(f"hermes/audioServer/{self.site}/audioFrame", write_wav(sound, self.rate))

    def speak(self, samples: Samples) -> None:
        """Say something into the microphone, from now on; [n] at the satellite's rate."""
        self.spoke_at = asyncio.get_running_loop().time()
        self._speech = samples

    @property
    def speaking(self) -> bool:
        return len(self._speech) > 0

    def tell(self, topic: str, **values: Any) -> None:
        """Publish JSON."""
        self.publish(topic, json.dumps(values).encode())

    def take(self, topic: str, payload: bytes) -> None:
        """Something from the broker."""
        loop = asyncio.get_running_loop()
        words = topic.split("/")
        if words[:3] == ["hermes", "audioServer", self.site] and words[3] in ("playBytes", "playBytesStreaming"):
            samples, rate = read_wav(payload)
            begins = max(loop.time(), self._until) + self.gap_s
            self._until = begins + len(samples) / rate
            self.plays.append(Play("/".join(words[4:]), begins, self._until, samples, rate))
            if self.reports and (words[3] == "playBytes" or words[6] == "1"):
                kind = "playFinished" if words[3] == "playBytes" else "streamFinished"
                loop.call_at(
                    self._until, lambda: self.tell(f"hermes/audioServer/{self.site}/{kind}", id=words[4], siteId=self.site)
                )
        elif not topic.startswith("hermes/audioServer"):
            value = json.loads(payload) if payload[:1] == b"{" else payload.decode()
            mine = value.get("siteId") == self.site if isinstance(value, dict) else words[1] in (self.site, "status")
            if mine:
                self.messages.append((loop.time(), topic, value))

    def of(self, topic_end: str) -> list[Any]:
        """Values of the messages whose topic ends so."""
        return [value for _, topic, value in self.messages if topic.endswith(topic_end)]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Our own events of one type."""
        return [value for value in self.of("/event") if value["type"] == kind]

    async def until(self, topic_end: str, count: int = 1, longest_s: float = 30.0) -> Any:
        """The count-th value of `of(topic_end)`, waiting for it."""
        await when(lambda: len(self.of(topic_end)) >= count, longest_s)
        return self.of(topic_end)[count - 1]

    async def said(self, count: int = 1, longest_s: float = 60.0) -> dict[str, Any]:
        """Until the agent has ended so many responses, and the last one was played; the end of that."""
        await when(lambda: len(self.events("response_ended")) >= count, longest_s)
        await self.silent(0.3, longest_s)
        return self.events("response_ended")[count - 1]

    async def silent(self, for_s: float = 0.3, longest_s: float = 60.0) -> None:
        """Until it has played something and then nothing for a while."""
        loop = asyncio.get_running_loop()
        await when(lambda: bool(self.plays) and loop.time() >= self._until + for_s, longest_s)

    def sound(self) -> Samples:
        """All that was played, without gaps, at the rate it came in."""
        return np.concatenate([p.samples for p in self.plays]) if self.plays else np.zeros(0, np.float32)


@dataclass
class House:
    """Satellites and a dialogue that hand their messages to each other at once: no broker, any clock."""

    sessions: Sessions = field(default_factory=Sessions)
    satellites: dict[str, Satellite] = field(default_factory=dict)
    take: Callable[[str, bytes], None] = lambda topic, payload: None
    log: list[tuple[str, bytes]] = field(default_factory=list)

    def add(self, site: str, **options: Any) -> Satellite:
        self.satellites[site] = Satellite(site, lambda topic, payload: self.take(topic, payload), **options)
        return self.satellites[site]

    def send(self, message: Any) -> None:
        """What the dialogue publishes."""
        self.log.append((message.topic, message.payload))
        for satellite in self.satellites.values():
            satellite.take(message.topic, message.payload)
