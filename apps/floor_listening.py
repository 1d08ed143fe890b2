"""What the agent's own ears and LLM know at each tick of a built conversation, without waiting for the clock.

The sound goes frame by frame through the session's voice activity, ears and LLM as a conversation's does: recognised every so often while
the user speaks, when the voice fades and when it has stopped, one job at a time; the LLM reads what is new. A result is known as long after
its job began as the job took here, so measure on an idle machine; `Took` sets fixed times instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from agent.session import SessionConfig
from agent.tick import TickSound
from agent.user_turn import UserTurn
from duplex.audio import TICK_FRAMES, USER_FRAME, user_samples
from duplex.levels import level_db
from duplex.predictor import Ending, TickInput
from duplex.predictor_features import Heard
from duplex.scenario import Scenario
from duplex.scenario_hearing import VoiceModel
from duplex.vad import VoiceActivity, VoiceActivityConfig, VoiceChange, VoiceFade, VoiceStart
from encoders.ears import Ears, Transcript

FORGET_S = 0.7
"""Silence after which the next sound over the agent's voice is another one."""


class Reader(Protocol):
    """Ears, and what an LLM makes of their words; `apps.train_stock.WordsReader`."""

    @property
    def ears(self) -> Ears:
        """Recognise."""
        ...

    def ends(self, said: Transcript) -> Ending | None:
        """How likely a user's sentence ends after these words; None for no words."""
        ...


@dataclass(frozen=True, slots=True)
class Took:
    """How long the work takes; None: as long as it takes here and now, which is noted."""

    hear_s: float | None = None
    """To recognise."""
    read_s: float | None = None
    """To read the words and say how likely the sentence ends."""
    heard_s: list[float] = field(default_factory=list)
    """How long it took to recognise each time."""
    was_read_s: list[float] = field(default_factory=list)
    """How long to read."""


@dataclass(frozen=True, slots=True)
class Known:
    """One tick."""

    heard: Heard
    """For a predictor that listens itself."""
    known: TickInput | None
    """For its decision; None before anything was said."""
    changes: tuple[VoiceChange, ...] = ()
    """What voice activity found since the tick before."""
    said: Transcript | None = None
    """The newest words, with what the recogniser's layers made of the sound."""
    read: bool = False
    """The LLM has read them."""


def listen(
    scenario: Scenario, vad: VoiceModel, reader: Reader, took: Took | None = None, config: SessionConfig | None = None
) -> list[Known]:
    """All ticks of a conversation."""
    one = _Listening(scenario, vad, reader, took or Took(), config or SessionConfig(activity=VoiceActivityConfig(offset_ms=128)))
    for frame in range(scenario.ticks * TICK_FRAMES):
        one.take(frame)
    return one.found


class _Listening:
    """One conversation as its session would listen to it."""

    def __init__(self, scenario: Scenario, vad: VoiceModel, reader: Reader, took: Took, config: SessionConfig) -> None:
        self.scenario, self.vad, self.reader, self.took, self.config = scenario, vad, reader, took, config
        self.ears = reader.ears
        self.ear, self.voices, self.activity = self.ears.open(), vad.open(), VoiceActivity(config.activity)
        self.sound = TickSound()
        self.turn: UserTurn | None = None
        self.found: list[Known] = []
        self.now = self.listened_at = 0
        self.speaking = self.wanted = self.to_read = False
        self.busy_until = 0
        self.result: Callable[[], None] | None = None
        self.changes: list[VoiceChange] = []

    def take(self, frame: int) -> None:
        """The next 20 ms."""
        near = self.scenario.user[frame * USER_FRAME : (frame + 1) * USER_FRAME]
        self.now = (frame + 1) * USER_FRAME
        self._agent(bool(self.scenario.speaking[frame // TICK_FRAMES]))
        self.sound.take(near)
        self.ears.feed(self.ear, near)
        for end, probability in self.vad.feed(self.voices, near):
            self.sound.voice(probability)
            for change in self.activity.update(end, probability, level_db(near)):
                self._voice_changed(change)
        if self.activity.active and self.turn is not None:
            self.turn.last_voiced = self.activity.last_voiced
            interim_s = self.ears.interim_s if self.config.interim_s is None else self.config.interim_s
            self._want(self.config.overlap_interim_s if self.speaking else interim_s)
        self._work()
        if frame % TICK_FRAMES == TICK_FRAMES - 1:
            self.found.append(self._tick())

    def _agent(self, speaking: bool) -> None:
        """The agent begins to speak, which ends the turn that it answers, or ends, and what was no interruption is forgotten."""
        if speaking == self.speaking:
            return
        self.speaking = speaking
        if self.turn is not None and not self.activity.active and (speaking or not self._interrupted(self.turn)):
            self.turn = None

    def _interrupted(self, turn: UserTurn) -> bool:
        return any(e.kind == "interruption" and e.end > turn.onset and e.start < self.now for e in self.scenario.events)

    def _voice_changed(self, change: VoiceChange) -> None:
        self.changes.append(change)
        if isinstance(change, VoiceFade):
            if not self.speaking:
                self._want()
        elif isinstance(change, VoiceStart):
            late = self.turn is not None and self.speaking and change.at - self.turn.last_voiced > user_samples(FORGET_S)
            if self.turn is None or late:
                self.turn = UserTurn(0, change.at, change.at)
                self.ears.begin_turn(self.ear, max(change.at - user_samples(self.config.preroll_s), 0))
                self.listened_at = self.now
        elif self.turn is not None:
            self.turn.last_voiced = change.at
            self._want()

    def _want(self, every_s: float = 0.0) -> None:
        if self.now - self.listened_at >= user_samples(every_s):
            self.wanted = True

    def _work(self) -> None:
        """What is done comes in; the next job begins."""
        if self.result is not None and self.now >= self.busy_until:
            done, self.result = self.result, None
            done()
        if self.result is None and self.turn is not None and self.to_read:
            self.to_read = False
            self._read(self.turn)
        elif self.result is None and self.turn is not None and self.wanted:
            self.wanted = False
            if not self.turn.fresh():
                self._hear(self.turn)

    def _hear(self, turn: UserTurn) -> None:
        began, self.listened_at = time.perf_counter(), self.now
        window = self.ears.window(self.ear)
        said = self.ears.transcribe(window)
        self._begin(self.took.hear_s, began, self.took.heard_s)

        def done() -> None:
            if self.turn is not turn:
                return
            self.ears.settle(self.ear, window, said)
            changed, turn.transcript = said.text != turn.text, said
            turn.ends = None if changed else turn.ends
            self.to_read = bool(said.text) and turn.ends is None and not self.speaking

        self.result = done

    def _read(self, turn: UserTurn) -> None:
        said = turn.transcript
        assert said is not None
        began = time.perf_counter()
        ends = self.reader.ends(said)
        self._begin(self.took.read_s, began, self.took.was_read_s)

        def done() -> None:
            if turn.transcript is not None and turn.transcript.text == said.text:
                turn.ends = ends

        self.result = done

    def _begin(self, took_s: float | None, began: float, noted: list[float]) -> None:
        noted.append(time.perf_counter() - began)
        self.busy_until = self.now + user_samples(noted[-1] if took_s is None else took_s)

    def _tick(self) -> Known:
        voiced, last = self.activity.active, self.activity.last_voiced
        heard = self.sound.heard(self.turn, voiced, last, self.now, agent_speaking=self.speaking)
        changes, self.changes = tuple(self.changes), []
        heard = replace(heard, sound=heard.sound.copy())
        if self.turn is None:
            return Known(heard, None, changes)
        known = self.sound.known(self.turn, voiced, last, self.now, overlap=self.speaking)
        return Known(heard, known, changes, self.turn.transcript, self.turn.ends is not None)
