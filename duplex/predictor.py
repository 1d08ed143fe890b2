"""The duplex predictor: asked on every tick (80 ms) whether to respond, to yield, or to talk on.

`DuplexPredictor` is what the session asks. `RulePredictor` reads silence, duration and the words themselves; the trained one
(duplex.predictor_trained) hears both sides too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from duplex.english import is_backchannel, opens_interruption, seems_complete, words_of
from duplex.errors import ConfigError
from duplex.predictor_features import Heard


@dataclass(frozen=True, slots=True)
class Ending:
    """How likely the user's sentence ends after the words so far, in [0, 1], by the LLM that has read them."""

    p: float
    """By whoever was chosen to tell it."""
    learnt: bool = False
    """By a head that was taught together with those on the recogniser's states: what they tell may be added."""

    def heard(self, over: float | None) -> float:
        """The same, with what the sound tells: log odds, or None."""
        if over is None or not self.learnt:
            return self.p
        p = min(max(self.p, 1e-6), 1 - 1e-6)
        return 1 / (1 + math.exp(-math.log(p / (1 - p)) - over))


@dataclass(frozen=True, slots=True)
class TickInput:
    """What is known at one tick."""

    at: int
    """User-sample index of the tick."""
    voiced: bool
    """The user's voice is on."""
    voiced_s: float
    """Seconds from the onset of the user's latest turn, or of the sound over the agent's voice, to its last voiced sample."""
    silence_s: float
    """Seconds since the last voiced sample; 0 while voiced."""
    agent_speaking: bool
    """A response is being played."""
    transcript: str
    """The newest words of the user's turn."""
    transcript_fresh: bool
    """The transcript covers the audio up to the last voiced sample."""
    hum: float = 0.0
    """How far the user's sound is a closed-mouth hum, in [0, 1]."""
    sentence_ends: float | None = None
    """How likely the user's sentence ends after these words, by the LLM, in [0, 1]; None when not known."""
    listening: float | None = None
    """How likely the sound asks for nothing, by the ears: it shows that they listen, or was not meant; None when not known."""


@dataclass(frozen=True, slots=True)
class TickDecision:
    """Probabilities in [0, 1]; the turn-taking core holds them against its thresholds."""

    respond: float = 0.0
    """The user's turn is over and the agent should speak."""
    yield_: float = 0.0
    """The user is taking the floor from the speaking agent."""
    backchannel: float = 0.0
    """What the user uttered over the agent was a backchannel or noise: talk on."""
    goes_on: float = 0.0
    """The user fell silent in the middle of what they want to say."""


class DuplexPredictor(Protocol):
    """Decides on every tick; `open` gives the state that the caller owns."""

    def open(self) -> Any:
        """A fresh state for one conversation."""
        ...

    def hear(self, state: Any, heard: Heard) -> None:
        """Take the newest tick of both sides; called on every tick, whoever speaks, before `tick`."""
        ...

    def tick(self, state: Any, known: TickInput) -> TickDecision:
        """One decision; with `hear` at most 2 ms."""
        ...


@dataclass(frozen=True, slots=True)
class RuleConfig:
    """How long to wait, and what counts as taking the floor."""

    speculate_s: float = 0.16
    """Silence after which a turn end is likely enough to prepare a response."""
    complete_s: float = 0.40
    """Silence that ends a turn whose words make a whole question."""
    statement_s: float = 0.70
    """Silence that ends a turn whose words make another whole sentence, which more often goes on."""
    incomplete_s: float = 1.50
    """Silence that ends a turn whose words plainly go on."""
    unknown_s: float = 1.00
    """Silence that ends a turn while its transcript is not there yet."""
    unread_s: float = 0.0
    """Least silence that ends a turn whose words are there but which the LLM has not read yet; 0 where none reads them."""
    hanging_p: float = 0.02
    """P(sentence ends here), by the LLM, up to which a turn counts as going on."""
    whole_p: float = 0.25
    """P(sentence ends here) from which it counts as a whole sentence; in between, the silence is in between."""
    question_gain: float = 3.0
    """Factor on that probability when the recogniser itself heard a question."""
    takeover_s: float = 0.60
    """Speech over the agent's voice that takes the floor, whatever the words."""
    stop_word_s: float = 0.25
    """Speech over the agent's voice that takes the floor when it holds a word such as "stop" or "wait"."""
    hum_limit: float = 0.5
    """A sound hummed at least so much is a backchannel while it lasts less than `hum_s`."""
    hum_s: float = 1.2
    """A hum longer than this is treated like speech."""
    nothing_p: float = 0.85
    """P(a sound asks for nothing), by the ears, from which it takes no floor, however long it lasts: other people's talk, and echo."""
    listening_p: float = 0.40
    """That probability from which a sound of up to `listening_words` asks for nothing."""
    listening_words: int = 3
    """At most so many words may be misheard ones of a listener."""
    listening_s: float = 0.90
    """And they last less than this."""
    plainly_p: float = 0.10
    """That probability up to which words over the agent's voice are plainly not a listener's, and take the floor after `plainly_s`."""
    plainly_s: float = 0.40
    """See plainly_p; where the ears cannot tell, `takeover_s` holds."""
    short_s: float = 0.45
    """A sound shorter than this takes the floor only with such a word: recognisers hear words in any grunt."""
    settle_s: float = 0.12
    """Silence after which a sound over the agent's voice is judged by its words."""

    def __post_init__(self) -> None:
        if not 0 <= self.plainly_p <= self.listening_p <= self.nothing_p or not 0 < self.plainly_s <= self.takeover_s:
            raise ConfigError("predictor: keep 0 <= plainly_p <= listening_p <= nothing_p, and 0 < plainly_s <= takeover_s.")
        if not 0 < self.hanging_p < self.whole_p <= 1:
            raise ConfigError("predictor: hanging_p must be positive and below whole_p, which is at most 1.")
        if not 0 < self.speculate_s <= self.complete_s <= self.statement_s <= self.incomplete_s:
            raise ConfigError(
                "predictor: speculate_s, complete_s, statement_s and incomplete_s must be positive and rise in this order."
            )


class RulePredictor:
    """Silence, duration and words; no weights."""

    def __init__(self, config: RuleConfig | None = None) -> None:
        self.config = config or RuleConfig()

    def open(self) -> None:
        """Rules need no memory."""
        return None

    def hear(self, state: None, heard: Heard) -> None:
        """Rules do not listen themselves."""

    def tick(self, state: None, known: TickInput) -> TickDecision:
        """Respond rises piecewise with silence: 0.5 at `speculate_s`, 0.8 at the silence that ends this kind of turn."""
        return self._over_agent(known) if known.agent_speaking else self._after_user(known)

    def _after_user(self, known: TickInput) -> TickDecision:
        c = self.config
        if known.voiced:
            return TickDecision()
        needed = self.needed_silence_s(None, known)
        goes_on = going_on(known, needed, c.complete_s, c.incomplete_s)
        silence = known.silence_s
        if silence < c.speculate_s:
            return TickDecision(respond=0.5 * silence / c.speculate_s * 0.99, goes_on=goes_on)
        rise = (silence - c.speculate_s) / max(needed - c.speculate_s, 1e-6)
        return TickDecision(respond=min(1.0, 0.5 + 0.3 * rise), goes_on=goes_on)

    def needed_silence_s(self, state: None, known: TickInput) -> float:
        """Silence that ends a turn with these words: short for a whole sentence, long for one that plainly goes on."""
        c = self.config
        if not known.transcript_fresh:
            return c.unknown_s
        complete_s = c.complete_s if known.transcript.rstrip().endswith("?") else c.statement_s
        whole = self.wholeness(known)
        if whole is None:
            return max(complete_s, c.unread_s) if seems_complete(known.transcript) else c.incomplete_s
        return in_between(whole, complete_s, c.incomplete_s)

    def wholeness(self, known: TickInput) -> float | None:
        """How far the words make a whole sentence, in [0, 1]; None while the LLM has not read all of them."""
        c = self.config
        if not known.transcript_fresh or known.sentence_ends is None:
            return None
        ends = known.sentence_ends * (c.question_gain if known.transcript.rstrip().endswith("?") else 1.0)
        whole = math.log(max(ends, 1e-9) / c.hanging_p) / math.log(c.whole_p / c.hanging_p)
        return min(max(whole, 0.0), 1.0)

    def _over_agent(self, known: TickInput) -> TickDecision:
        c = self.config
        hummed = known.hum >= c.hum_limit and known.voiced_s < c.hum_s
        listening = self._listening(known)
        if known.voiced:
            if known.voiced_s >= c.stop_word_s and opens_interruption(known.transcript):
                return TickDecision(yield_=0.95)
            needed = 2 * c.takeover_s if listening else c.plainly_s if self._plainly_speaking(known) else c.takeover_s
            if known.voiced_s >= needed and not hummed and not self._asks_nothing(known):
                return TickDecision(yield_=0.9)
            return TickDecision(yield_=0.2, backchannel=0.5 if hummed else 0.2)
        if known.silence_s < c.settle_s:
            return TickDecision(yield_=0.2)
        if hummed or known.voiced_s < 0.1:
            return TickDecision(backchannel=0.9)
        if not known.transcript_fresh and known.silence_s < 0.8:
            return TickDecision(yield_=0.3)
        grunt = known.voiced_s < c.short_s and not opens_interruption(known.transcript)
        if not known.transcript or listening or grunt:
            return TickDecision(backchannel=0.9)
        return TickDecision(yield_=0.9)

    def _listening(self, known: TickInput) -> bool:
        """Whether a sound over the agent's voice is one by which listeners show that they listen, by its words or what they may be."""
        c, text = self.config, known.transcript
        if (text and is_backchannel(text)) or self._asks_nothing(known):
            return True
        may_be = known.listening is not None and known.listening >= c.listening_p and known.voiced_s < c.listening_s
        return may_be and len(words_of(text)) <= c.listening_words and not opens_interruption(text)

    def _asks_nothing(self, known: TickInput) -> bool:
        """Whether the ears are sure that a sound was not meant to take the floor, and its words do not say so."""
        sure = known.listening is not None and known.listening >= self.config.nothing_p
        return sure and not opens_interruption(known.transcript)

    def _plainly_speaking(self, known: TickInput) -> bool:
        """Whether there are words that can hardly be a listener's."""
        return bool(known.transcript) and known.listening is not None and known.listening <= self.config.plainly_p


def in_between(whole: float, complete_s: float, incomplete_s: float) -> float:
    """The silence that ends a turn which is so far whole, in [0, 1]: each step in the odds is the same factor on it.

    Of pauses a second and two seconds long there are about as many as of half a second and one, and then nothing else costs less waiting.
    """
    return float(incomplete_s * (complete_s / incomplete_s) ** whole)


def going_on(known: TickInput, needed_s: float, complete_s: float, incomplete_s: float) -> float:
    """P(the user goes on), in [0, 1]: where the silence that these words need lies between the shortest and the longest."""
    if not known.transcript_fresh or incomplete_s <= complete_s:
        return 0.0
    return min(max((needed_s - complete_s) / (incomplete_s - complete_s), 0.0), 1.0)
