"""One response, from the user's words to sound in the playout buffer, or to text alone.

Thinking and speaking overlap: the LLM decodes in one lane while the voice turns the tokens it already has into sound in another. Both
are short jobs, so listening can go in between; cancelling the coroutine at any await leaves the thinker's context usable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.chat_template import Message
from agent.parts import Parts, Step
from agent.text_only import TextOnly
from agent.tool_calls import Call, CallFinder, Tool, with_tools
from agent.worker import ModelWorker, Priority
from decoders.voice import Speech, Voice
from duplex.audio import Samples
from duplex.errors import ConfigError
from duplex.playout import Playout
from duplex.predictor import Ending


@dataclass(frozen=True, slots=True)
class ResponseConfig:
    """How the agent answers."""

    system_prompt: str = "You are a friendly voice assistant. Answer in one or two short spoken sentences."
    """What the LLM is told to be."""
    group_tokens: int = 5
    """LLM tokens that go to the voice together (MinMo: five per fifteen codes); 1 for a voice that reads text."""
    enough_tokens: int = 60
    """After so many LLM tokens a reply ends with the sentence it is in; 60 are some 20 s of speech."""
    most_tokens: int = 160
    """The longest reply, in LLM tokens."""
    ahead_s: float = 20.0
    """Speech that may wait in the playout buffer before the voice pauses."""
    seed: int = 0
    """Sampling and voice seed; the number of messages so far is added, so what is said does not depend on discarded attempts."""

    def __post_init__(self) -> None:
        if self.group_tokens < 1 or self.most_tokens < 1:
            raise ConfigError("response: group_tokens and most_tokens must be at least 1.")


@dataclass(frozen=True, slots=True)
class Manner:
    """How responses are given from now on; the application may change it at any time, or for one response."""

    system_prompt: str
    spoken: bool = True
    """False: as text, without a voice."""
    most_tokens: int = 160
    """The longest reply, in LLM tokens."""
    tools: tuple[Tool, ...] = ()
    """Functions that the LLM may call."""
    speaker: Any = field(default=None, compare=False)
    """Whose voice, in the form that the voice decoder makes; None for its own."""

    def same(self, other: Manner) -> bool:
        """Whether both give the same response. Speakers are the same only if they are one object."""
        return self == other and self.speaker is other.speaker

    @property
    def prompt(self) -> str:
        """What the LLM is told before the dialogue."""
        return with_tools(self.system_prompt, self.tools)


@dataclass(slots=True)
class Made:
    """What a response came to besides its words."""

    calls: list[Call] = field(default_factory=list)
    malformed_calls: int = 0
    cut_short: bool = False
    """The reply reached its longest length."""


Group = tuple[list[int], Any]


class Responder:
    """Makes responses for one conversation; owns the thinker's context."""

    def __init__(self, parts: Parts, worker: ModelWorker, playout: Playout, config: ResponseConfig) -> None:
        self._parts = parts
        self._worker = worker
        self._playout = playout
        self._config = config
        self._context = parts.thinker.open()
        self._using = asyncio.Lock()  # one reader or writer of the context at a time
        self._decoding = False

    async def read(self, messages: list[Message], manner: Manner) -> Ending | None:
        """Let the thinker read the dialogue while the user is still speaking, so that a response need not.

        messages: end with the user's words so far. Returns how likely their sentence ends here; None when the thinker is busy with a
        response or cannot tell.
        """
        if self._decoding:
            return None
        thinker = self._parts.thinker
        open_end = [*messages[:-1], messages[-1].open_ended()]
        keys = thinker.render(manner.prompt, open_end, open_assistant=False, open_last=True)
        async with self._using:
            await self._steps(Priority.SPECULATE, thinker.sync_steps(self._context, keys))
            return await self._worker.run(Priority.THINK, "think", thinker.turn_end, self._context)

    async def warm_up(self, manner: Manner) -> None:
        """Read the system prompt, so the first turn need not."""
        await self.read([Message("user", "Hello")], manner)

    async def respond(self, epoch: int, messages: list[Message], manner: Manner, made: Made) -> None:
        """Think and speak until the reply ends or the playout no longer wants it. Cancelling drops what is not yet in playout.

        made: is filled in before the playout is told that the reply is whole.
        """
        groups: asyncio.Queue[Group | None] = asyncio.Queue(maxsize=64)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._think(messages, manner, made, groups))
            group.create_task(self._speak(epoch, len(messages), manner, groups))

    async def say(self, epoch: int, text: str, manner: Manner) -> None:
        """Speak `text` as it stands, without thinking, in the manner's voice. Cancelling drops what is not yet in playout."""
        voice, tokens = self._parts.voice, self._parts.thinker.encode(text)
        state = voice.open(self._config.seed, manner.speaker)
        size = self._config.group_tokens
        for start in range(0, len(tokens), size):
            await self._play(epoch, voice.push(state, tokens[start : start + size]))
        await self._play(epoch, voice.finish(state))
        self._playout.finish(epoch)

    async def sound(self, text: str, manner: Manner) -> Samples:
        """[n] `text` in the manner's voice, for playing later."""
        voice = self._parts.voice
        state = voice.open(self._config.seed, manner.speaker)
        chunks: list[Samples] = [np.zeros(0, np.float32)]
        for made in (voice.push(state, self._parts.thinker.encode(text)), voice.finish(state)):
            while (chunk := await self._worker.run(Priority.SPEAK, "speak", next, made, None)) is not None:
                chunks.append(chunk.samples)
        return np.concatenate(chunks)

    async def _think(self, messages: list[Message], manner: Manner, made: Made, groups: asyncio.Queue[Group | None]) -> None:
        async with self._using:
            self._decoding = True
            try:
                await self._decode(messages, manner, made, groups)
            finally:
                self._decoding = False
        await groups.put(None)

    async def _decode(self, messages: list[Message], manner: Manner, made: Made, groups: asyncio.Queue[Group | None]) -> None:
        thinker, config = self._parts.thinker, self._config
        keys = thinker.render(manner.prompt, messages, open_assistant=True)
        await self._steps(Priority.THINK, thinker.sync_steps(self._context, keys))
        seed = config.seed + len(messages)
        sampler = thinker.sampler(seed, calls=True) if manner.tools else thinker.sampler(seed)
        finder = CallFinder(tool.name for tool in manner.tools) if manner.tools else None
        waiting: list[Step] = []
        made.cut_short = True
        for count in range(1, manner.most_tokens + 1):
            step = await self._worker.run(Priority.THINK, "think", thinker.step, self._context, sampler)
            if step.token in thinker.eos_ids:
                made.cut_short = False
                break
            text = thinker.decode([step.token])
            waiting += [step] if finder is None else finder.push(text, step)
            while len(waiting) >= config.group_tokens:
                await groups.put(_group(waiting[: config.group_tokens]))
                del waiting[: config.group_tokens]
            whole = count >= config.enough_tokens and text.rstrip().endswith((".", "!", "?")) and not (finder and finder.inside)
            if whole or (finder is not None and finder.complete):
                made.cut_short = False
                break
        if finder is not None:
            waiting += finder.finish()
            made.calls, made.malformed_calls = finder.calls, finder.malformed
        if waiting:
            await groups.put(_group(waiting))

    async def _speak(self, epoch: int, number: int, manner: Manner, groups: asyncio.Queue[Group | None]) -> None:
        voice: Voice = self._parts.voice if manner.spoken else TextOnly(self._parts.thinker.decode)
        state = voice.open(self._config.seed + number, manner.speaker if manner.spoken else None)
        while (item := await groups.get()) is not None:
            tokens, hidden = item
            await self._play(epoch, voice.push(state, tokens, hidden))
        await self._play(epoch, voice.finish(state))
        self._playout.finish(epoch)

    async def _play(self, epoch: int, chunks: Iterator[Speech]) -> None:
        while (chunk := await self._worker.run(Priority.SPEAK, "speak", next, chunks, None)) is not None:
            if not self._playout.put(epoch, chunk.samples, [(w.text, w.end) for w in chunk.words]):
                return
            while self._playout.buffered() > self._config.ahead_s * self._parts.voice_rate_hz:  # noqa: ASYNC110  (playout wakes nobody)
                await asyncio.sleep(0.1)

    async def _steps(self, priority: Priority, steps: Iterator[Any]) -> None:
        done = object()
        while await self._worker.run(priority, "think", next, steps, done) is not done:
            pass


def _group(steps: list[Step]) -> Group:
    return [step.token for step in steps], np.stack([step.hidden for step in steps])
