"""Texts of the application's, spoken by the agent in a running conversation: announcements, a skill's answer, a greeting.

A line waits for a quiet floor, is spoken as a response of its own, may be interrupted like any other, and goes into the history as far
as it was heard. Nothing here runs by itself: whoever reads the session's events hands them to `take`, which costs microseconds.
"""

from __future__ import annotations

import asyncio
from collections import deque

from agent.session import Session
from duplex.events import Event, ResponseEnded, SpeculationDiscarded

MOST_LINES = 16
"""Lines that may wait; one more is refused."""


class Announcer:
    """Speaks one line after another. Use from the session's own event loop."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lines: deque[tuple[str, asyncio.Future[ResponseEnded]]] = deque()
        self._epoch: int | None = None  # of the response that speaks the first line
        self._live = False  # the session has begun: there were events

    @property
    def busy(self) -> bool:
        """A line is being spoken, or waits."""
        return bool(self._lines)

    @property
    def speaking(self) -> bool:
        """The response under way, if any, is a line of ours."""
        return self._epoch is not None

    def say(self, text: str) -> asyncio.Future[ResponseEnded]:
        """Speak `text` when the floor is quiet; the future tells how that ended, and is cancelled when the conversation ends first.

        A line whose future is cancelled before it began is not spoken. Raises ValueError when MOST_LINES wait already, or for no words.
        """
        if not text.strip():
            raise ValueError("there are no words to say")
        if len(self._lines) >= MOST_LINES:
            raise ValueError(f"{MOST_LINES} texts wait to be spoken already; send the next one when one of them has ended")
        spoken: asyncio.Future[ResponseEnded] = asyncio.get_running_loop().create_future()
        self._lines.append((text, spoken))
        self._begin()
        return spoken

    def take(self, event: Event) -> None:
        """Every event of the session, in order. Not from within the session: it is asked to speak from here."""
        self._live = True
        if isinstance(event, SpeculationDiscarded) and event.epoch == self._epoch:
            self._epoch = None  # the user spoke first: nobody heard the line, so it is still to be said
        elif isinstance(event, ResponseEnded) and event.epoch == self._epoch:
            self._epoch = None
            _, spoken = self._lines.popleft()
            if not spoken.done():
                spoken.set_result(event)
        self._begin()

    def close(self) -> None:
        """The conversation is over: what was not spoken to its end is cancelled. May be called twice."""
        while self._lines:
            self._lines.popleft()[1].cancel()
        self._epoch = None

    def _begin(self) -> None:
        if not self._live or self._epoch is not None or self._session.turns.floor != "quiet" or self._session.finished:
            return
        while self._lines and self._lines[0][1].cancelled():
            self._lines.popleft()
        if self._lines:
            self._session.line = self._lines[0][0]
            self._session.ask("")
            self._epoch = self._session.turns.current
