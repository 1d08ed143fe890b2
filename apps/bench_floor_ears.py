"""What the agent's own ears and LLM would know at each tick of a built conversation, without waiting for the clock.

The sound itself is recognised, at the moments at which a session asks for it: when the user's voice fades, and every 240 ms of a sound over
the agent's voice. A result is known after a fixed time, as long as the work takes on an idle machine; here the machine may be busy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from agent.tick import to_listen_by
from apps.train_stock import WordsReader
from duplex.audio import TICK, seconds, user_samples
from duplex.hum import hum_likeness
from duplex.predictor import Ending, TickInput
from duplex.predictor_features import Heard
from duplex.scenario import Scenario
from duplex.scenario_hearing import VoiceModel, hear
from duplex.vad import VoiceActivityConfig
from encoders.ears import Transcript

EARS_S = 0.15
"""A transcript is known so long after it was asked for."""
READ_S = 0.10
"""P(sentence ends) is known so much later."""
INTERIM_S = 0.24
"""How often a sound over the agent's voice is recognised while it lasts."""
PREROLL_S = 0.3
FORGET_S = 0.7
"""Silence after which the next sound over the agent's voice is another one."""


@dataclass(slots=True)
class _Turn:
    onset: int
    last_voiced: int
    asked: int
    asked_in_quiet: bool = False
    hum: float = 1.0
    said: Transcript = field(default_factory=lambda: Transcript("", -1))
    ends: Ending | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """One tick."""

    heard: Heard
    """For a predictor that listens itself."""
    known: TickInput | None
    """For its decision; None before anything was said."""


def listen(scenario: Scenario, vad: VoiceModel, reader: WordsReader) -> list[Known]:
    """All ticks of a conversation."""
    found: list[Known] = []
    turn: _Turn | None = None
    waiting: list[tuple[int, Transcript, Ending | None]] = []  # known from, words, P(ends)
    before = False
    limit = VoiceActivityConfig().offset_threshold
    for tick, heard in enumerate(hear(scenario, vad)):
        at = (tick + 1) * TICK
        last = at - user_samples(heard.silence_s)
        if (
            heard.voiced
            and not before
            and (turn is None or (heard.agent_speaking and at - turn.last_voiced > user_samples(FORGET_S)))
        ):
            turn, waiting = _Turn(max(at - 1600, 0), at, at), []
        if turn is not None:
            turn.last_voiced = max(last, turn.onset)
            interim = heard.voiced and heard.agent_speaking and at - turn.asked >= user_samples(INTERIM_S)
            quiet = not heard.voiced or (heard.voice_p < limit and not heard.agent_speaking)
            if interim or (quiet and not turn.asked_in_quiet):
                turn.asked = at
                start = max(turn.onset - user_samples(PREROLL_S), 0)
                said = replace(reader.hear(scenario.user[start:at]), end=at)
                ends = None if heard.agent_speaking else reader.ends(said.text)
                waiting.append((at + user_samples(EARS_S), said, None))
                waiting.append((at + user_samples(EARS_S + READ_S), said, ends))
            turn.asked_in_quiet = quiet
            for due in [w for w in waiting if w[0] <= at]:
                waiting.remove(due)
                turn.said, turn.ends = due[1:]
            if heard.agent_speaking and at - turn.last_voiced < 640:
                turn.hum = min(turn.hum, hum_likeness(scenario.user[at - 1600 : at]))
        found.append(_tick(at, heard, turn))
        before = heard.voiced
    return found


def _tick(at: int, heard: Heard, turn: _Turn | None) -> Known:
    if turn is None:
        return Known(heard, None)
    fresh = turn.said.end >= turn.last_voiced
    known = TickInput(
        at=at,
        voiced=heard.voiced,
        voiced_s=seconds(max(turn.last_voiced - turn.onset, 0)),
        silence_s=heard.silence_s,
        agent_speaking=heard.agent_speaking,
        transcript=turn.said.text,
        transcript_fresh=fresh,
        hum=turn.hum if heard.agent_speaking else 0.0,
        sentence_ends=turn.ends.p if fresh and turn.ends is not None else None,
        listening=turn.said.listening,
    )
    by = to_listen_by(turn.ends) if fresh else None
    return Known(replace(heard, transcript=turn.said.text, fresh=fresh, sentence_ends=by), known)


def last_seconds(samples: np.ndarray, end: int, seconds_: float) -> np.ndarray:
    """The newest samples before `end`, zeros in front of the beginning."""
    count = user_samples(seconds_)
    part = samples[max(end - count, 0) : end]
    return np.concatenate([np.zeros(count - len(part), np.float32), part])
