"""Conversations that have just heard their users out, on the way to first sound: job by job, or taking steps together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from agent.build import session_config
from agent.chat import Chat
from agent.chat_template import Message
from agent.parts import Parts
from agent.profiles import Profile
from apps.bench_clips import clips
from duplex.audio import AGENT_RATE_HZ, USER_RATE_HZ
from duplex.errors import ConfigError

T = TypeVar("T")
READ_BEFORE_S = 0.6
"""What the user said in the last so many seconds is what the LLM has not read when they stop (`session.interim_s`)."""
SOUND_S = 2.0
"""Seconds of sound after which a turn is done."""


@dataclass
class Stages:
    """How long each kind of job took, in seconds."""

    took: dict[str, list[float]] = field(default_factory=dict)

    def timed(self, stage: str | Callable[[Any], str], job: Callable[[], T]) -> T:
        """Run a job, wait for the device, and note the time under a name, which the result may decide."""
        began = time.perf_counter()
        result = job()
        settle()
        name = stage if isinstance(stage, str) else stage(result)
        self.took.setdefault(name, []).append(time.perf_counter() - began)
        return result


def settle() -> None:
    """Wait for a GPU to have done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Turn:
    """One conversation that has just heard its user out."""

    def __init__(self, profile: Profile, parts: Parts, stages: Stages) -> None:
        if not isinstance(parts.thinker, Chat):
            raise ConfigError("duologue bench path measures a language model; this profile has none.")
        self.parts, self.stages, self.config = parts, stages, session_config(profile).response
        self.thinker: Chat = parts.thinker
        clip = clips("questions")[0]
        ear = parts.ears.open()
        parts.ears.feed(ear, clip.samples())
        self.window = parts.ears.window(ear)
        self.context = self.thinker.open()
        words = clip.text.split()
        read = round(len(words) * (1 - READ_BEFORE_S * USER_RATE_HZ / len(clip.samples())))
        self.heard = clip.text
        before = self.thinker.render(
            self.config.system_prompt, [Message("user", " ".join(words[:read]))], open_assistant=False, open_last=True
        )
        self.thinker.thinker.sync(self.context, before)
        self.sampler, self.state = self.thinker.sampler(0), parts.voice.open(0)
        self.tokens: list[int] = []
        self.states: list[Any] = []
        """What the LLM wrote and the voice has not been given."""
        self.seconds = 0.0
        """Sound made so far."""
        self.first_s = 0.0
        """When the first of it was there, on the clock of the caller."""

    def listen(self) -> Iterator[None]:
        """From the end of speech to a context that is ready to answer, one job per `next`."""
        self.stages.timed("transcribe", lambda: self.parts.ears.transcribe(self.window))
        yield
        keys = self.thinker.render(self.config.system_prompt, [Message("user", self.heard)], open_assistant=True)
        steps = self.thinker.sync_steps(self.context, keys)
        while self.stages.timed("prefill", lambda: next(steps, None)) is not None:
            yield

    @property
    def full(self) -> bool:
        """Whether the voice can be given a group."""
        return len(self.tokens) >= self.config.group_tokens

    @property
    def ended(self) -> bool:
        """Whether there is enough sound, or no room for more."""
        return self.seconds >= SOUND_S or self.thinker.thinker.room(self.context) < 2 * self.config.group_tokens

    def wrote(self, token: int, hidden: Any) -> None:
        """Keep a token for the voice; an end is passed over, since random weights end anywhere and what is measured is the work."""
        if token not in self.thinker.eos_ids:
            self.tokens.append(token)
            self.states.append(hidden)

    def group(self) -> tuple[list[int], Any]:
        """The tokens and states that the voice gets next."""
        given = self.tokens, np.stack(self.states)
        self.tokens, self.states = [], []
        return given

    def jobs(self) -> Iterator[None]:
        """One job per `next`, as a model worker runs them, until there is enough sound."""
        yield from self.listen()
        while not self.ended:
            while not self.full:
                step = self.stages.timed("LLM token", lambda: self.thinker.step(self.context, self.sampler))
                self.wrote(step.token, step.hidden)
                yield
            chunks = self.parts.voice.push(self.state, *self.group())
            while (chunk := self.stages.timed(_kind, lambda c=chunks: next(c, None))) is not None:  # type: ignore[misc]
                self.seconds += len(chunk.samples) / AGENT_RATE_HZ
                yield


def _kind(chunk: Any) -> str:
    if chunk is None:
        return "looking for more to do"
    return "vocoder, or a VITS chunk" if len(chunk.samples) else "codes or flow"


def in_turns(turns: list[Turn]) -> float:
    """Let all turns take jobs in rotation until each has its sound: the seconds it took; each turn knows when its first was there."""
    running = {index: turn.jobs() for index, turn in enumerate(turns)}
    began = time.perf_counter()
    while running:
        for index, jobs in list(running.items()):
            turn = turns[index]
            alive = next(jobs, "ended") != "ended"
            if turn.seconds and not turn.first_s:
                turn.first_s = time.perf_counter() - began
            if not alive:
                del running[index]
    return time.perf_counter() - began


def together(turns: list[Turn]) -> float:
    """As `in_turns`, but what can share a forward pass does: LLM tokens, voice-LM steps and flow chunks of all turns."""
    stages, thinker, voice = turns[0].stages, turns[0].thinker.thinker, turns[0].parts.voice
    began = time.perf_counter()
    for turn in turns:
        for _ in turn.listen():
            pass
    while running := [turn for turn in turns if not turn.ended]:
        while waiting := [turn for turn in running if not turn.full]:
            contexts, samplers = [turn.context for turn in waiting], [turn.sampler for turn in waiting]
            steps = stages.timed("LLM token for all", lambda c=contexts, s=samplers: thinker.step_together(c, s))  # type: ignore[misc]
            for turn, step in zip(waiting, steps, strict=True):
                turn.wrote(step.token, step.hidden)
        tokens, hidden = zip(*(turn.group() for turn in running), strict=True)
        chunks = voice.push_together([turn.state for turn in running], tokens, hidden)  # type: ignore[attr-defined]
        while (made := stages.timed(_joint_kind, lambda c=chunks: next(c, None))) is not None:  # type: ignore[misc]
            for index, speech in made:
                turn = running[index]
                turn.seconds += len(speech.samples) / AGENT_RATE_HZ
                if turn.seconds and not turn.first_s:
                    turn.first_s = time.perf_counter() - began
    return time.perf_counter() - began


def _joint_kind(made: Any) -> str:
    if made is None:
        return "looking for more to do"
    return "vocoder, of one" if made else "codes or flow for all"
