"""A conversation: four tasks' worth of work around one sample clock.

`hear` takes a frame, cleans it of echo, asks voice activity and the predictor, and lets the turn-taking core decide; then it hands one
frame of the agent's voice to the transport. Deciding is a plain call inside `hear`: a tick costs microseconds, and a task of its own
would act one frame late. `listen` (agent.listener) keeps the transcript up to date, and a response (agent.response) thinks and speaks in
tasks of its own. What becomes of a response is in agent.answering; what an application may ask of a running conversation, in
agent.steering.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np

from agent.answering import Answering
from agent.backchannels import BackchannelConfig, Backchannels
from agent.feed import Feed, Subscription
from agent.history import History
from agent.listener import Listener
from agent.parts import Parts
from agent.reply import Ledger, Reply
from agent.response import Made, Manner, Responder, ResponseConfig
from agent.tick import TickSound
from agent.transport import Transport
from agent.turn_detection import TurnDetectionConfig
from agent.worker import ModelWorker
from duplex import turn_signals as turn
from duplex.audio import TICK_FRAMES, USER_FRAME, Frame
from duplex.echo import EchoControl
from duplex.events import (
    Backchannel,
    Event,
    FloorChanged,
    Levels,
    SpeculationDiscarded,
    UserStarted,
    UserStopped,
)
from duplex.levels import level_db
from duplex.playout import Playout, PlayoutConfig
from duplex.turns import TurnConfig, TurnTaking
from duplex.vad import VoiceActivity, VoiceActivityConfig, VoiceChange, VoiceFade, VoiceStart


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How a conversation is run; each part's own numbers live with the part."""

    interim_s: float | None = None
    """How often the transcript is renewed while the user speaks; None as suits the ears."""
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
    backchannels: BackchannelConfig = field(default_factory=BackchannelConfig)
    """What the agent says while the user pauses, where `turns.backchannels` is on."""


class Session(Answering):
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
        self.playout = Playout(self.config.playout, parts.pace)
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
        self._backchannels = Backchannels(self.config.backchannels)

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

    async def __aenter__(self) -> Self:
        try:
            await self._responder.warm_up(self._manner)
        except BaseException:  # nobody shall wait for the events of a conversation that never began
            await self.__aexit__(None, None, None)
            raise
        self._hearing = asyncio.create_task(self._hear(), name="hear")
        self._start(self._listener.run(), "listen")
        if self.config.turns.backchannels:
            self._start(self._make_backchannels(), "backchannels")
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
            self._note_playing(0.0 if self.playout.murmuring else float(np.abs(out).max()))
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
                interim_s = self.config.interim_s
                self._listener.want(self._parts.ears.interim_s if interim_s is None else interim_s)

    def _voice_changed(self, change: VoiceChange) -> None:
        current, manual = self._listener.turn, self._detection.kind == "manual"
        if isinstance(change, VoiceFade):
            if current is not None and self.turns.floor == "user":
                self._listener.want()  # so that the words are known when the voice turns out to have stopped
        elif isinstance(change, VoiceStart):
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
            case turn.GiveBackchannel():
                self._give_backchannel()
            case turn.NoteBackchannel():
                self._emit(Backchannel(self._now, self._listener.turn.text if self._listener.turn else ""))
                self._listener.turn = None
            case turn.DropTurn():
                self._listener.turn = None

    # -- parts --------------------------------------------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        self._feed.put(event)

    def _start(self, coroutine: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
