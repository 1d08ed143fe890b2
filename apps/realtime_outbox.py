"""What waits to be sent to a client: events in order, sound joined while it waits, bounded, and kept while the client is away.

Sound is encoded only when it is sent, so a burst of frames becomes one message.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.realtime_audio import SoundOut
from duplex.audio import Samples

MOST_WAITING = 2048
"""Events; a client that does not read them in time is cut off, one that is away loses the oldest."""


@dataclass(slots=True)
class _Sound:
    event: dict[str, Any]
    encoder: SoundOut
    frames: list[Samples]


class Outbox:
    """One conversation's; it outlives a connection."""

    def __init__(self) -> None:
        self._waiting: deque[dict[str, Any] | _Sound] = deque()
        self._ready = asyncio.Event()
        self._numbers = itertools.count(1)
        self._prefix = uuid.uuid4().hex[:8]
        self.away = False
        """Nobody reads: sound is dropped, and the oldest events when there are too many."""
        self.dropped = 0
        """Events that were dropped while the client was away."""
        self.overfull = asyncio.Event()
        """Set when the client does not read what it is sent."""

    def put(self, event: dict[str, Any]) -> None:
        """Send an event; never waits."""
        if len(self._waiting) >= MOST_WAITING:
            if not self.away:
                self.overfull.set()
                return
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append({"event_id": f"event_{self._prefix}_{next(self._numbers)}", **event})
        self._ready.set()

    def put_sound(self, event: dict[str, Any], encoder: SoundOut, frame: Samples) -> None:
        """Send a frame within `event`, whose `delta` is filled in when it is sent."""
        if self.away:
            return
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, _Sound) and last.encoder is encoder:
            last.frames.append(frame)
            return
        before = len(self._waiting)
        self.put(event)
        if len(self._waiting) > before and isinstance(filled := self._waiting[-1], dict):
            self._waiting[-1] = _Sound(filled, encoder, [frame])

    def go_away(self) -> None:
        """The client is gone, for now: its sound is worth nothing later."""
        self.away = True
        self._waiting = deque(entry for entry in self._waiting if not isinstance(entry, _Sound))

    def come_back(self, first: list[dict[str, Any]]) -> None:
        """A client reads again; `first` goes before what waited."""
        waited, self._waiting = self._waiting, deque()
        self.away = False
        for event in first:
            self.put(event)
        self._waiting.extend(waited)
        self.dropped = 0
        self._ready.set()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self) -> None:
        """Until there is something to send. Cancelling loses nothing."""
        while not self._waiting:
            self._ready.clear()
            await self._ready.wait()

    def take(self) -> str:
        """The oldest message, as JSON."""
        entry = self._waiting.popleft()
        if isinstance(entry, _Sound):
            entry.event["delta"] = base64.b64encode(entry.encoder.encode(np.concatenate(entry.frames))).decode()
            entry = entry.event
        return json.dumps(entry)
