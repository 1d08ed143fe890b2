"""Events to whoever wants them: each subscriber has a bounded queue of its own; a slow one loses its oldest events and is told so.

An observer is called at once instead, in order with the sound that goes out; it must be quick and may not wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable

from duplex.events import Event, Trouble

log = logging.getLogger(__name__)


class Subscription:
    """An async iterator over events; ends when the conversation does."""

    def __init__(self, most: int) -> None:
        self._events: deque[Event] = deque(maxlen=most)
        self._ready = asyncio.Event()
        self._closed = False
        self._dropped = 0

    def put(self, event: Event) -> None:
        """Never waits; drops the oldest event when the subscriber is `most` events behind."""
        if len(self._events) == self._events.maxlen:
            self._dropped += 1
        self._events.append(event)
        self._ready.set()

    def close(self) -> None:
        """No more events."""
        self._closed = True
        self._ready.set()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """The next event. Cancelling loses none."""
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        if self._dropped:
            count, self._dropped = self._dropped, 0
            return Trouble(self._events[0].at, f"{count} events were dropped because they were not read in time.", "events_dropped")
        return self._events.popleft()


class Feed:
    """One source, many subscriptions."""

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._subscriptions: list[Subscription] = []
        self._observers: list[Callable[[Event], None]] = []
        self._closed = False

    def subscribe(self) -> Subscription:
        """All events from now on."""
        subscription = Subscription(self._most)
        if self._closed:
            subscription.close()
        self._subscriptions.append(subscription)
        return subscription

    def observe(self, observer: Callable[[Event], None]) -> None:
        """Call `observer` with every event from now on, as it happens. What it raises is logged and goes no further."""
        self._observers.append(observer)

    def put(self, event: Event) -> None:
        """To every subscriber and observer."""
        for subscription in self._subscriptions:
            subscription.put(event)
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                log.exception("an observer failed at %s", event)

    def close(self) -> None:
        """The conversation is over."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()
