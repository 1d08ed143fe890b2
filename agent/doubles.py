"""Shipped test doubles: a session's parts with scripted behaviour and exact timing, no weights and no download.

They stand in for models in conversations on a manual clock; the turn-taking, playout and session code around them is the real thing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.chat_template import Message
from decoders.voice import Speech, SpokenWord
from duplex.audio import AGENT_RATE_HZ, USER_RATE_HZ, Samples, user_samples
from duplex.levels import level_db
from duplex.vad import WINDOW_SAMPLES
from encoders.ears import Transcript


@dataclass(slots=True)
class _EarState:
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class ScriptedEars:
    """Hears the words that the script places in time: (start, end, text) in user samples; a word counts once it has ended."""

    words: Sequence[tuple[int, int, str]]

    @property
    def interim_s(self) -> float:
        return 0.6

    def open(self) -> _EarState:
        """See encoders.ears.Ears."""
        return _EarState()

    def feed(self, state: _EarState, samples: Samples) -> None:
        """See encoders.ears.Ears."""
        state.end += len(samples)

    def begin_turn(self, state: _EarState, start: int) -> None:
        """See encoders.ears.Ears."""
        state.start = start

    def window(self, state: _EarState) -> tuple[int, int]:
        """See encoders.ears.Ears."""
        return state.start, state.end

    def transcribe(self, window: tuple[int, int]) -> Transcript:
        """See encoders.ears.Ears."""
        start, end = window
        return Transcript(" ".join(text for s, e, text in self.words if s >= start and e <= end), end)

    def settle(self, state: _EarState, window: tuple[int, int], transcript: Transcript) -> None:
        """See encoders.ears.Ears."""


@dataclass(slots=True)
class _LevelState:
    end: int = 0
    rest: Samples = field(default_factory=lambda: np.zeros(0, np.float32))


class LevelVad:
    """Voice is whatever is louder than -45 dBFS; windows of 32 ms, as silero's."""

    def open(self) -> _LevelState:
        """See agent.parts.Vad."""
        return _LevelState()

    def feed(self, state: _LevelState, samples: Samples) -> list[tuple[int, float]]:
        """See agent.parts.Vad."""
        audio = np.concatenate([state.rest, samples])
        found = []
        while len(audio) >= WINDOW_SAMPLES:
            state.end += WINDOW_SAMPLES
            found.append((state.end, 0.99 if level_db(audio[:WINDOW_SAMPLES]) > -45 else 0.01))
            audio = audio[WINDOW_SAMPLES:]
        state.rest = audio
        return found


@dataclass(frozen=True, slots=True)
class ScriptedStep:
    """One character of a scripted reply."""

    token: int
    hidden: Any


@dataclass(slots=True)
class _Position:
    keys: list[int] = field(default_factory=list)
    reply: str = ""


@dataclass(slots=True)
class ScriptedThinker:
    """Answers the n-th different dialogue with the n-th reply (then the last one again), a character a token."""

    replies: Sequence[str]
    seen: list[list[Message]] = field(default_factory=list)
    """The dialogues it was asked to answer."""
    prompts: list[str] = field(default_factory=list)
    """What it was told to be, each time."""
    eos_ids: tuple[int, ...] = (0,)
    fail: bool = False
    """Raise at the first step, as a model that broke would."""
    _asked: dict[tuple[Message, ...], int] = field(default_factory=dict)
    _latest: str = ""

    def open(self) -> _Position:
        """See agent.parts.Thinker."""
        return _Position()

    def render(self, system: str, messages: Sequence[Message], open_assistant: bool = True, open_last: bool = False) -> list[int]:
        """See agent.parts.Thinker."""
        if open_assistant:
            self.seen.append(list(messages))
            self.prompts.append(system)
            number = self._asked.setdefault(tuple(messages), len(self._asked))
            self._latest = self.replies[min(number, len(self.replies) - 1)]
        return [ord(c) for m in messages for c in m.text]

    def sync_steps(self, context: _Position, keys: Sequence[int]) -> Iterator[None]:
        """See agent.parts.Thinker."""
        context.keys = list(keys)
        context.reply = self._latest
        yield None

    def turn_end(self, context: _Position) -> None:
        """See agent.parts.Thinker; a script knows nothing of sentences."""

    def sampler(self, seed: int, calls: bool = False) -> None:
        """See agent.parts.Thinker."""

    def step(self, context: _Position, sampler: None) -> ScriptedStep:
        """See agent.parts.Thinker."""
        if self.fail:
            raise RuntimeError("the scripted thinker fails")
        token = ord(context.reply[0]) if context.reply else 0
        context.reply = context.reply[1:]
        return ScriptedStep(token, np.zeros(1, np.float32))

    def encode(self, text: str) -> list[int]:
        """See agent.parts.Thinker."""
        return [ord(c) for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        """See agent.parts.Thinker."""
        return "".join(map(chr, ids))


@dataclass(slots=True)
class _ToneState:
    hz: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class ToneVoice:
    """Speaks each word as a tone of `word_s`, word by word. A speaker is a pitch in Hz."""

    word_s: float = 0.25
    tone_hz: float = 220.0

    def open(self, seed: int = 0, speaker: float | None = None) -> _ToneState:
        """See decoders.voice.Voice."""
        if speaker is not None and not 20.0 <= speaker <= 8000.0:
            raise ValueError(f"a speaker is a pitch from 20 to 8000 Hz, not {speaker}")
        return _ToneState(speaker or self.tone_hz)

    def push(self, state: _ToneState, tokens: Sequence[int], hidden: Any = None) -> Iterator[Speech]:
        """See decoders.voice.Voice."""
        state.text += "".join(map(chr, tokens))
        while (cut := state.text.find(" ", 1)) > 0:
            word, state.text = state.text[:cut], state.text[cut:]
            yield self._say(word, state.hz)

    def finish(self, state: _ToneState) -> Iterator[Speech]:
        """See decoders.voice.Voice."""
        if state.text:
            yield self._say(state.text, state.hz)

    def _say(self, word: str, hz: float) -> Speech:
        count = round(self.word_s * AGENT_RATE_HZ)
        tone = 0.2 * np.sin(2 * np.pi * hz * np.arange(count) / AGENT_RATE_HZ)
        return Speech(tone.astype(np.float32), (SpokenWord(word, count),))


def spoken(duration_s: float, level_db: float = -20.0, seed: int = 0) -> Samples:
    """A speech-like sound of a given length for scripted users: noise with a syllable rhythm, [n] user samples."""
    count = user_samples(duration_s)
    rhythm = 0.6 + 0.4 * np.sin(2 * np.pi * 4.0 * np.arange(count) / USER_RATE_HZ)
    noise = np.random.default_rng(seed).standard_normal(count)
    return (noise * rhythm * 10 ** (level_db / 20)).astype(np.float32)
