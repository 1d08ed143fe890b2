"""Replies: the one in the making, and of those that are over, which words had been heard by which place in their sound.

A client that plays the sound itself may know better than we do what left its loudspeaker, and may say so long after; so for the newest
replies the places are kept at which words became heard.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field

from agent.response import Made, Manner
from agent.user_turn import UserTurn

MOST_REMEMBERED = 64
"""Replies whose sound can still be cut short in hindsight."""


@dataclass(slots=True)
class HeardMarks:
    """Which words had been played by which place. Places are agent samples of the reply's own sound, counted as they were sent."""

    sent: int = 0
    """How much of the reply was sent."""
    text: str = ""
    """The longest heard text."""
    places: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    words: int = 0
    """How many words that is."""

    def note(self, heard: str, words: int) -> None:
        """With what has been sent so far, `words` words have been heard."""
        self.words = words
        if len(heard) > len(self.text):
            self.text = heard
            self.places.append(self.sent)
            self.lengths.append(len(heard))

    def until(self, place: int) -> str:
        """The text heard by `place`; beyond the end is all of it, 0 nothing."""
        count = bisect_right(self.places, place)
        return self.text[: self.lengths[count - 1]] if count else ""


@dataclass(slots=True, eq=False)
class Reply:
    """The response in the making."""

    epoch: int
    task: asyncio.Task[None]
    turn: UserTurn | None
    """The user's turn that it answers; None when the application asked for it."""
    manner: Manner
    user_text: str | None = None
    released: bool = False
    started: bool = False
    """It is audible, or, without a voice, readable."""
    made: Made = field(default_factory=Made)
    texts: tuple[str, str] = ("", "")
    marks: HeardMarks = field(default_factory=HeardMarks)
    acknowledged: tuple[int, int] | None = None
    """(agent samples that the client has played, user sample at which it said so)."""

    def heard(self, heard: str, now: int, rate: float) -> str:
        """What of `heard` has left the client's loudspeaker, as far as it tells. rate: agent samples per user sample."""
        if self.acknowledged is None or not self.marks.text:
            return heard
        played, at = self.acknowledged
        return self.marks.until(min(played + round((now - at) * rate), self.marks.sent))


class Ledger:
    """The newest replies that are over."""

    def __init__(self) -> None:
        self._marks: OrderedDict[int, HeardMarks] = OrderedDict()

    def keep(self, epoch: int, marks: HeardMarks) -> None:
        """Remember a reply; the oldest beyond MOST_REMEMBERED is forgotten."""
        self._marks[epoch] = marks
        if len(self._marks) > MOST_REMEMBERED:
            self._marks.popitem(last=False)

    def marks(self, epoch: int) -> HeardMarks | None:
        """Of a reply that is over, if it is remembered."""
        return self._marks.get(epoch)
