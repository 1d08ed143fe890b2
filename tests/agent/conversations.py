"""Scripted conversations on a manual clock: doubles for the models, the real session around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.doubles import LevelVad, ScriptedEars, ScriptedThinker, ToneVoice, spoken
from agent.parts import Parts
from agent.response import ResponseConfig
from agent.scripted_user import Say, ScriptedUser
from agent.session import Session, SessionConfig
from agent.virtual_time import run_virtual
from agent.worker import VirtualWorker
from duplex.audio import Samples, user_samples
from duplex.events import Event
from duplex.predictor import RulePredictor

COSTS_S = {"listen": 0.05, "think": 0.01, "speak": 0.03}


@dataclass
class Line:
    """What the user says: words, how long it takes, and when."""

    text: str
    lasts_s: float = 1.0
    when: str = "silence"
    delay_s: float = 1.0
    hum: bool = False
    then: str = ""
    """More words of the same utterance, after `gap_s` of silence and as long again."""
    gap_s: float = 0.0

    def sound(self) -> Samples:
        if self.hum:
            return (0.1 * np.sin(2 * np.pi * 130 * np.arange(user_samples(self.lasts_s)) / 16_000)).astype(np.float32)
        first = spoken(self.lasts_s)
        if not self.then:
            return first
        return np.concatenate([first, np.zeros(user_samples(self.gap_s), np.float32), first])


@dataclass
class Outcome:
    """A finished conversation."""

    session: Session
    user: ScriptedUser
    thinker: ScriptedThinker
    events: list[Event] = field(default_factory=list)

    def of(self, kind: type) -> list:
        return [e for e in self.events if isinstance(e, kind)]

    def history(self) -> list[tuple[str, str]]:
        return [(m.role, m.text) for m in self.session.history.messages]


def converse(
    lines: Sequence[Line],
    replies: Sequence[str],
    config: SessionConfig | None = None,
    costs_s: dict[str, float] | None = None,
    word_s: float = 0.25,
    fail: bool = False,
    **user_options: float,
) -> Outcome:
    """Run a conversation to its end on a virtual clock."""
    user = ScriptedUser([Say(n.sound(), n.when, n.delay_s, n.text) for n in lines], **user_options)  # type: ignore[arg-type]
    words = _Words(user, lines)
    thinker = ScriptedThinker(replies, fail=fail)
    parts = Parts(ScriptedEars(words), LevelVad(), thinker, ToneVoice(word_s), RulePredictor())
    costs = costs_s or COSTS_S
    config = config or SessionConfig(response=ResponseConfig(group_tokens=1))

    async def main() -> Outcome:
        session = Session(parts, user, VirtualWorker(cost_s=costs.__getitem__), config)
        events = session.events()
        async with session:
            await session.wait()
        return Outcome(session, user, thinker, [e async for e in events])

    return run_virtual(main())


class _Words(Sequence):
    """The words said so far, as (start, end, text); they are heard a little before their sound ends."""

    def __init__(self, user: ScriptedUser, lines: Sequence[Line]) -> None:
        self._user, self._lines = user, lines

    def _all(self) -> list[tuple[int, int, str]]:
        words = []
        for said, line in zip(self._user.said, self._lines, strict=False):
            half = user_samples(line.lasts_s)
            words.append((said.start, said.start + half - 640, line.text))
            if line.then:
                words.append((said.end - half, said.end - 640, line.then))
        return words

    def __getitem__(self, index):
        return self._all()[index]

    def __len__(self) -> int:
        return len(self._all())
