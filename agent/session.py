"""A conversation: four tasks' worth of work around one sample clock.

`hear` takes a frame, cleans it of echo, asks voice activity and the predictor, and lets the turn-taking core decide; then it hands one
frame of the agent's voice to the transport. Deciding is a plain call inside `hear`: a tick costs microseconds, and a task of its own
would act one frame late. `listen` (agent.listener) keeps the transcript up to date, and a response (agent.response) thinks and speaks in
tasks of its own. What an application may ask of a running conversation is in agent.steering.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import numpy as np

from agent.feed import Feed, Subscription
from agent.history import History
from agent.listener import Listener
from agent.parts import Parts
from agent.reply import Ledger, Reply
from agent.response import Made, Manner, Responder, ResponseConfig
from agent.steering import Steering
from agent.tick import TickSound
from agent.transport import Transport
from agent.turn_detection import TurnDetectionConfig
from agent.user_turn import UserTurn
from agent.worker import ModelWorker
from duplex import turn_signals as turn
from duplex.audio import AGENT_FRAME, AGENT_RATE_HZ, TICK_FRAMES, USER_FRAME, USER_RATE_HZ, Frame, seconds, user_samples
from duplex.echo import EchoControl
from duplex.events import (
    AgentTranscript,
    Backchannel,
    Event,
    FloorChanged,
    FunctionCalled,
    Levels,
    ResponseEnded,
    ResponseStarted,
    SpeculationDiscarded,
    UserStarted,
    UserStopped,
)
from duplex.levels import level_db
from duplex.playout import Playout, PlayoutConfig
from duplex.turns import TurnConfig, TurnTaking
from duplex.vad import VoiceActivity, VoiceActivityConfig, VoiceStart, VoiceStop
from encoders.ears import Transcript

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How a conversation is run; each part's own numbers live with the part."""

    interim_s: float = 0.6
    """How often the transcript is renewed while the user speaks."""
    overlap_interim_s: float = 0.24
    """How often, while the user speaks over the agent."""
    preroll_s: float = 0.3
    """Sound before the detected onset that belongs to the turn."""
    turns: TurnConfig = field(default_factory=TurnConfig)
    """The turn-taking core's thresholds."""
    activity: VoiceActivityConfig = field(default_factory=VoiceActivityConfig)
    """Voice activity's hysteresis."""
    playout: PlayoutConfig = field(default_factory=PlayoutConfig)
    """How the agent's voice yields."""
    response: ResponseConfig = field(default_factory=ResponseConfig)
    """How the agent answers."""


class Session(Steering):
    """One conversation; an async context manager.

    `events()` before entering gets every event. `wait()` returns when the transport's input ends. Leaving the context cancels all
    tasks and closes the transport; it may be left at any moment.
    """

    def __init__(
        self,
        parts: Parts,
        transport: Transport,
        worker: ModelWorker,
        config: SessionConfig | None = None,
        echo: EchoControl | None = None,
    ) -> None:
        self.config = config or SessionConfig()
        self.history = History()
        self.turns = TurnTaking(self.config.turns)
        self.playout = Playout(self.config.playout)
        self._manner = Manner(self.config.response.system_prompt, most_tokens=self.config.response.most_tokens)
        self.line: str | None = None  # what the next response says in place of the thinker's words; see agent.announcer
        self._parts, self._transport, self.echo = parts, transport, echo
        self._feed = Feed()
        self._responder = Responder(parts, worker, self.playout, self.config.response)
        self._listener = Listener(parts.ears, worker, self._emit, self._read, self._start)
        self._vad = parts.vad.open()
        self._activity = VoiceActivity(self.config.activity)
        self._predictor = parts.predictor.open()
        self._detection = TurnDetectionConfig()
        self._once: Manner | None = None  # how the response that is being asked for shall be
        self._commits: set[asyncio.Task[None]] = set()
        self._now = 0
        self._voiced = False
        self._sound = TickSound()
        self._reply: Reply | None = None
        self._ledger = Ledger()
        self._audible: int | None = None  # the newest response that was audible
        self._silent_at = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._hearing: asyncio.Task[None] | None = None
        self._underruns = 0

    # -- life ---------------------------------------------------------------------------------------------------------------------

    def events(self) -> Subscription:
        """All events from now on."""
        return self._feed.subscribe()

    def observe(self, observer: Callable[[Event], None]) -> None:
        """Call `observer` with every event from now on, at once and in order with the frames that the transport is given."""
        self._feed.observe(observer)

    @property
    def now(self) -> int:
        """The sample clock: user samples received so far."""
        return self._now

    @property
    def finished(self) -> bool:
        """The transport has no more input, or broke."""
        return self._hearing is not None and self._hearing.done()

    @property
    def sending(self) -> int | None:
        """For a transport, in `send`: the epoch of the audible response that this frame belongs to; None when it is mere silence."""
        return self._audible if self.playout.playing is not None and self.playout.playing == self._audible else None

    async def __aenter__(self) -> Self:
        try:
            await self._responder.warm_up(self._manner)
        except BaseException:  # nobody shall wait for the events of a conversation that never began
            await self.__aexit__(None, None, None)
            raise
        self._hearing = asyncio.create_task(self._hear(), name="hear")
        self._start(self._listener.run(), "listen")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        tasks = [*self._tasks, *([self._hearing] if self._hearing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._close_reply()
        self._feed.close()
        await self._transport.close()

    async def wait(self) -> None:
        """Until the transport has no more input. Raises what broke the conversation (DeviceError). Cancelling only stops waiting."""
        assert self._hearing is not None, "enter the session first"
        await asyncio.shield(self._hearing)

    # -- hear and decide ----------------------------------------------------------------------------------------------------------

    async def _hear(self) -> None:
        frames = 0
        while (frame := await self._transport.receive()) is not None:
            self._take(frame)
            frames += 1
            out = self.playout.pull()
            self._note_playing(float(np.abs(out).max()))
            if frames % TICK_FRAMES == 0:
                self._tick(level_db(frame.near), level_db(out))
            await self._transport.send(out)
        self._note_playing(0.0)

    def _take(self, frame: Frame) -> None:
        near = frame.near
        if self.echo is not None and frame.far is not None:
            near = self.echo.process(near, frame.far, user_speaking=self._voiced)
        self._now = frame.start + USER_FRAME
        self._sound.take(near)
        self._listener.feed(near, self._now)
        for end, probability in self._parts.vad.feed(self._vad, near):
            self._sound.voice(probability)
            for change in self._activity.update(end, probability, level_db(near)):
                self._voice_changed(change)
        if self._voiced and self._listener.turn is not None:
            self._listener.turn.last_voiced = self._activity.last_voiced
            if self.turns.floor in ("ducked", "held"):
                self._listener.want(self.config.overlap_interim_s)
            elif self.turns.floor == "user" or self._detection.kind == "manual":
                self._listener.want(self.config.interim_s)

    def _voice_changed(self, change: VoiceStart | VoiceStop) -> None:
        current, manual = self._listener.turn, self._detection.kind == "manual"
        if isinstance(change, VoiceStart):
            self._voiced = True
            self._emit(UserStarted(change.at))
            if not manual:
                trusted = self.echo.trusted if self.echo is not None else True
                self._receive(turn.VoiceBegan(change.at, trusted))
        else:
            self._voiced = False
            if current is not None:
                current.last_voiced = change.at
            self._emit(UserStopped(change.at))
            if not manual:
                self._receive(turn.VoiceEnded(change.at))

    def _tick(self, user_db: float, agent_db: float) -> None:
        current = self._listener.turn
        overlap = self.turns.floor in ("ducked", "held")
        at = self._voiced, self._activity.last_voiced, self._now
        speaking = self._reply is not None and self._reply.started
        self._parts.predictor.hear(self._predictor, self._sound.heard(current, *at, agent_speaking=speaking))
        if current is not None:
            known = self._sound.known(current, *at, overlap=overlap)
            decision = self._detection.decide(self._parts.predictor, self._predictor, known)
            if self._detection.respond or overlap:
                self._receive(turn.Ticked(self._now, decision))
            elif self.turns.floor == "pause" and decision.respond >= self.config.turns.release_p:
                self._keep_turn()
        self._note_heard()
        self._emit(Levels(self._now, user_db, agent_db, self.echo.erle_db if self.echo is not None else None))

    def _note_playing(self, peak: float) -> None:
        """After each pulled frame: has the response become audible, has it run out, did it stall?"""
        reply = self._reply
        if reply is None:
            return
        readable = reply.released and not reply.manner.spoken and self.playout.texts(reply.epoch)[1] != ""
        if not reply.started and (peak > 1e-3 or readable):
            reply.started = True
            self._begin_speaking(reply)
        if reply.started and self.playout.playing == reply.epoch:
            reply.marks.sent += AGENT_FRAME
            if (words := self.playout.words_heard(reply.epoch)) != reply.marks.words:
                reply.marks.note(self.playout.texts(reply.epoch)[0], words)
        if self.playout.underruns > self._underruns:
            self._underruns = self.playout.underruns
            if self._underruns in (1, 50, 500):
                self._trouble("The agent's voice ran dry for a moment: this machine is too slow for the profile.", "too_slow")
        if self.playout.drained() == reply.epoch:
            self._finish_reply(reply)

    def _note_heard(self) -> None:
        if (reply := self._reply) is not None and reply.started:
            texts = self.playout.texts(reply.epoch)
            if texts != reply.texts:
                reply.texts = texts
                self._emit(AgentTranscript(self._now, reply.epoch, *texts))

    def _receive(self, signal: turn.Signal) -> None:
        floor = self.turns.floor
        for action in self.turns.receive(signal):
            self._do(action, signal)
        self._listener.preread = self.turns.floor in ("user", "pause")
        if self.turns.floor != floor:
            self._emit(FloorChanged(self._now, self.turns.floor))

    # -- actions ------------------------------------------------------------------------------------------------------------------

    def _do(self, action: turn.Action, signal: turn.Signal) -> None:
        match action:
            case turn.BeginTurn(at):
                preroll_s = self._detection.preroll_s
                self._listener.begin(at, self.config.preroll_s if preroll_s is None else preroll_s)
            case turn.Transcribe():
                self._listener.want()
            case turn.Prepare(epoch):
                self.playout.begin(epoch)
                manner, user_turn = self._once or self._manner, self._listener.turn
                if self._detection.kind == "manual":
                    user_turn = None  # what is being said now belongs to the next turn
                made = Made()
                task = self._start(self._respond(epoch, user_turn, manner, self.line, made), f"respond-{epoch}")
                self.line = None
                self._reply = Reply(epoch, task, user_turn, manner, made=made)
            case turn.Release(epoch):
                if self._reply is not None:
                    self._reply.released = True
                self.playout.release(epoch)
            case turn.Discard(epoch):
                self.playout.drop(epoch)
                self._cancel_reply()
                self._reply = None
                self._emit(SpeculationDiscarded(self._now, epoch))
            case turn.Duck():
                self.playout.duck()
            case turn.Hold():
                self.playout.hold()
                self._silent_at = self._silence_after_this_frame()
            case turn.Resume():
                self.playout.resume()
                self._silent_at = 0
            case turn.Stop():
                self._stop_reply(asked=isinstance(signal, turn.CancelAsked))
            case turn.NoteBackchannel():
                self._emit(Backchannel(self._now, self._listener.turn.text if self._listener.turn else ""))
                self._listener.turn = None
            case turn.DropTurn():
                self._listener.turn = None

    def _begin_speaking(self, reply: Reply) -> None:
        latency: float | None = None
        if reply.turn is not None:
            latency = seconds(self._now - USER_FRAME + self._committed() - reply.turn.last_voiced)
            self._take_words(reply)
        self._audible = reply.epoch
        self._receive(turn.ResponseAudible(self._now, reply.epoch))
        self._emit(ResponseStarted(self._now - USER_FRAME + self._committed(), reply.epoch, latency))

    def _take_words(self, reply: Reply) -> None:
        """The turn that the reply answers is over: its words go into the history."""
        assert reply.turn is not None
        self.remember(reply.turn, reply.user_text or reply.turn.text)
        if self._listener.turn is reply.turn:
            self._listener.turn = None

    def _finish_reply(self, reply: Reply) -> None:
        done = reply.started or bool(reply.made.calls)
        heard, text = self.playout.texts(reply.epoch)
        if not reply.started and reply.turn is not None:  # the words stay, though nothing was said to them
            self._take_words(reply)
        self.history.add("assistant", heard, ("agent", reply.epoch))
        for call in reply.made.calls:
            self.history.add("call", call.written(), ("call", call.call_id))
            self._emit(FunctionCalled(self._now, reply.epoch, call.call_id, call.name, call.arguments))
        self.playout.drop(reply.epoch)
        self._reply = None
        self._end(reply, "completed" if done else "failed", self._now + self._committed(), heard, text)
        self._receive(turn.ResponseDrained(self._now, reply.epoch))
        self._start(self._read_ahead(), "read-ahead")

    def _stop_reply(self, *, asked: bool) -> None:
        reply = self._reply
        if reply is None:
            return
        heard, text = self.playout.texts(reply.epoch)
        heard = reply.heard(heard, self._now, AGENT_RATE_HZ / USER_RATE_HZ)
        self.playout.stop()
        self._cancel_reply()
        self._reply = None
        self.history.add("assistant", heard, ("agent", reply.epoch))
        silent_at = self._silent_at or self._silence_after_this_frame()
        self._silent_at = 0
        latency = None if asked else seconds(silent_at - self.turns.overlap_at)
        self._end(reply, "cancelled" if asked else "interrupted", silent_at, heard, text, latency)

    def _close_reply(self) -> None:
        """The conversation ends while a response is under way."""
        if (reply := self._reply) is not None and reply.started:
            heard, text = self.playout.texts(reply.epoch)
            self.history.add("assistant", heard, ("agent", reply.epoch))
            self._end(reply, "cancelled", self._now, heard, text)
        self._reply = None

    def _end(
        self,
        reply: Reply,
        reason: Literal["completed", "interrupted", "cancelled", "failed"],
        at: int,
        heard: str,
        text: str,
        stop_latency_s: float | None = None,
    ) -> None:
        self._ledger.keep(reply.epoch, reply.marks)
        self._emit(ResponseEnded(at, reply.epoch, reason, heard, text, stop_latency_s, reply.made.cut_short))

    def _cancel_reply(self) -> None:
        if self._reply is not None and self._reply.task is not asyncio.current_task():
            self._reply.task.cancel()

    def _silence_after_this_frame(self) -> int:
        fade = user_samples(self.config.playout.fade_ms / 1000)
        return self._now + fade + self._committed()

    def _committed(self) -> int:
        return self._transport.committed() * USER_RATE_HZ // AGENT_RATE_HZ

    # -- think and speak ----------------------------------------------------------------------------------------------------------

    async def _respond(self, epoch: int, user_turn: UserTurn | None, manner: Manner, line: str | None, made: Made) -> None:
        try:
            if self._commits:
                await asyncio.wait(self._commits)  # what was committed is part of what is answered
            messages = self.history.messages
            if user_turn is not None:
                text = await self._listener.words(user_turn)
                if not text:
                    self._receive(turn.NothingSaid(self._now))
                    return
                if self._reply is not None and self._reply.epoch == epoch:
                    self._reply.user_text = text
                heard = user_turn.transcript
                messages = self.history.with_user(text, heard.speech if heard else None)
            if line is not None:
                await self._responder.say(epoch, line, manner)
                return
            await self._responder.respond(epoch, messages, manner, made)
            if made.malformed_calls:
                self._trouble("The language model wrote a function call that is not well-formed; it was dropped.", "malformed_call")
        except* Exception as errors:  # a response that fails must not end the conversation
            log.warning("response %d failed", epoch, exc_info=errors)
            self._trouble(f"A response failed: {errors.exceptions[0]}", "response_failed")
            self.playout.finish(epoch)

    async def _read(self, heard: Transcript) -> float | None:
        return await self._responder.read(self.history.with_user(heard.text, heard.speech), self._manner)

    async def _read_ahead(self) -> None:
        """Between turns: what was heard, and now and then, when old turns were forgotten, everything that is left."""
        await self._read(
            Transcript(".", self._now)
        )  # of the next turn nothing is known but that it is the user's: a stop alone is not read

    # -- parts --------------------------------------------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        self._feed.put(event)

    def _start(self, coroutine: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
