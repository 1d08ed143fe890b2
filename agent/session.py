"""A conversation: four tasks' worth of work around one sample clock.

`hear` takes a frame, cleans it of echo, asks voice activity and the predictor, and lets the turn-taking core decide; then it hands one
frame of the agent's voice to the transport. Deciding is a plain call inside `hear`: a tick costs microseconds, and a task of its own
would act one frame late. `listen` keeps the transcript up to date, and a response thinks and speaks in tasks of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from agent.feed import Feed, Subscription
from agent.history import History
from agent.parts import Parts
from agent.response import Responder, ResponseConfig
from agent.speech_labels import labelled
from agent.transport import Transport
from agent.worker import ModelWorker, Priority
from duplex import turn_signals as turn
from duplex.audio import AGENT_RATE_HZ, TICK_FRAMES, USER_FRAME, USER_RATE_HZ, Frame, seconds, user_samples
from duplex.echo import EchoControl
from duplex.events import (
    AgentTranscript,
    Backchannel,
    Event,
    FloorChanged,
    Levels,
    ResponseEnded,
    ResponseStarted,
    SpeculationDiscarded,
    SpeechLabelled,
    Trouble,
    UserStarted,
    UserStopped,
    UserTranscript,
)
from duplex.hum import hum_likeness
from duplex.levels import level_db
from duplex.playout import Playout, PlayoutConfig
from duplex.predictor import TickInput
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


@dataclass(slots=True, eq=False)
class _UserTurn:
    """What is known of the user's current turn, or of a sound over the agent's voice."""

    onset: int
    last_voiced: int
    transcript: Transcript | None = None
    ends: float | None = None
    """How likely the sentence ends with the newest transcript, by the thinker."""
    labels: SpeechLabelled | None = None
    hum: float = 1.0
    updated: asyncio.Event = field(default_factory=asyncio.Event)

    def fresh(self) -> bool:
        return self.transcript is not None and self.transcript.end >= self.last_voiced

    @property
    def text(self) -> str:
        return self.transcript.text if self.transcript else ""


@dataclass(slots=True, eq=False)
class _Reply:
    """The response in the making."""

    epoch: int
    task: asyncio.Task[None]
    turn: _UserTurn | None
    user_text: str | None = None
    started: bool = False
    texts: tuple[str, str] = ("", "")


class Session:
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
        self._parts, self._transport, self._worker, self.echo = parts, transport, worker, echo
        self._feed = Feed()
        self._responder = Responder(parts, worker, self.playout, self.config.response)
        self._ear = parts.ears.open()
        self._vad = parts.vad.open()
        self._activity = VoiceActivity(self.config.activity)
        self._predictor = parts.predictor.open()
        self._now = 0
        self._voiced = False
        self._turn: _UserTurn | None = None
        self._spoken_for: _UserTurn | None = None  # the turn that the playing response answers
        self._reply: _Reply | None = None
        self.line: str | None = None  # what the next response says in place of the thinker's words; see agent.announcer
        self._silent_at = 0
        self._recent = np.zeros(USER_RATE_HZ // 10, np.float32)  # 100 ms, for the hum measure
        self._listen = asyncio.Event()
        self._listened_at = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._hearing: asyncio.Task[None] | None = None
        self._underruns = 0

    # -- life ---------------------------------------------------------------------------------------------------------------------

    def events(self) -> Subscription:
        """All events from now on."""
        return self._feed.subscribe()

    @property
    def now(self) -> int:
        """The sample clock: user samples received so far."""
        return self._now

    @property
    def finished(self) -> bool:
        """The transport has no more input, or broke."""
        return self._hearing is not None and self._hearing.done()

    async def __aenter__(self) -> Self:
        await self._responder.warm_up()
        self._hearing = asyncio.create_task(self._hear(), name="hear")
        self._start(self._keep_listening(), "listen")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        tasks = [*self._tasks, *([self._hearing] if self._hearing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._close_reply("cancelled")
        self._feed.close()
        await self._transport.close()

    async def wait(self) -> None:
        """Until the transport has no more input. Raises what broke the conversation (DeviceError). Cancelling only stops waiting."""
        assert self._hearing is not None, "enter the session first"
        await asyncio.shield(self._hearing)

    def cancel_response(self) -> None:
        """Make the agent stop now; history keeps what was heard."""
        self._receive(turn.CancelAsked(self._now))

    def ask(self, text: str) -> None:
        """A typed message from the user: answered as though it had been said."""
        self.history.add("user", text)
        self._receive(turn.ResponseAsked(self._now))

    def change_voice(self, speaker: Any) -> None:
        """The agent's voice from the next response on: a speaker in the form that the voice decoder makes, None for its own.

        Raises ValueError when this profile's voice cannot be that speaker.
        """
        self._parts.voice.open(0, speaker)
        self._responder.speaker = speaker

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
        self._recent[:-USER_FRAME] = self._recent[USER_FRAME:]
        self._recent[-USER_FRAME:] = near
        self._parts.ears.feed(self._ear, near)
        for end, probability in self._parts.vad.feed(self._vad, near):
            for change in self._activity.update(end, probability, level_db(near)):
                self._voice_changed(change)
        if self._voiced and self._turn is not None:
            self._turn.last_voiced = self._activity.last_voiced
        self._wake_listener()

    def _voice_changed(self, change: VoiceStart | VoiceStop) -> None:
        if isinstance(change, VoiceStart):
            self._voiced = True
            self._emit(UserStarted(change.at))
            trusted = self.echo.trusted if self.echo is not None else True
            self._receive(turn.VoiceBegan(change.at, trusted))
        else:
            self._voiced = False
            if self._turn is not None:
                self._turn.last_voiced = change.at
            self._emit(UserStopped(change.at))
            self._receive(turn.VoiceEnded(change.at))

    def _tick(self, user_db: float, agent_db: float) -> None:
        current = self._turn
        overlap = self.turns.floor in ("ducked", "held")
        if current is not None:
            if overlap and self._now - self._activity.last_voiced < 2 * USER_FRAME:
                current.hum = min(current.hum, hum_likeness(self._recent))
            known = TickInput(
                at=self._now,
                voiced=self._voiced,
                voiced_s=seconds(max(current.last_voiced - current.onset, 0)),
                silence_s=0.0 if self._voiced else seconds(self._now - current.last_voiced),
                agent_speaking=overlap,
                transcript=current.text,
                transcript_fresh=current.fresh(),
                hum=current.hum if overlap else 0.0,
                sentence_ends=current.ends,
            )
            self._receive(turn.Ticked(self._now, self._parts.predictor.tick(self._predictor, known)))
        self._note_heard()
        self._emit(Levels(self._now, user_db, agent_db, self.echo.erle_db if self.echo is not None else None))

    def _note_playing(self, peak: float) -> None:
        """After each pulled frame: has the response become audible, has it run out, did it stall?"""
        reply = self._reply
        if reply is None:
            return
        if not reply.started and peak > 1e-3:
            reply.started = True
            self._begin_speaking(reply)
        if self.playout.underruns > self._underruns:
            self._underruns = self.playout.underruns
            if self._underruns in (1, 50, 500):
                self._emit(Trouble(self._now, "The agent's voice ran dry for a moment: this machine is too slow for the profile."))
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
        if self.turns.floor != floor:
            self._emit(FloorChanged(self._now, self.turns.floor))

    # -- actions ------------------------------------------------------------------------------------------------------------------

    def _do(self, action: turn.Action, signal: turn.Signal) -> None:
        match action:
            case turn.BeginTurn(at):
                self._turn = _UserTurn(at, at)
                self._parts.ears.begin_turn(self._ear, max(at - user_samples(self.config.preroll_s), 0))
                self._listened_at = self._now
            case turn.Transcribe():
                self._listen.set()
            case turn.Prepare(epoch):
                self.playout.begin(epoch)
                task = self._start(self._respond(epoch, self._turn, self.line), f"respond-{epoch}")
                self.line = None
                self._reply = _Reply(epoch, task, self._turn)
            case turn.Release(epoch):
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
                self._emit(Backchannel(self._now, self._turn.text if self._turn else ""))
                self._turn = None
            case turn.DropTurn():
                self._turn = None

    def _begin_speaking(self, reply: _Reply) -> None:
        latency: float | None = None
        if reply.turn is not None:
            latency = seconds(self._now - USER_FRAME + self._committed() - reply.turn.last_voiced)
            text = reply.user_text or reply.turn.text
            self.history.add("user", text)
            self._emit(UserTranscript(reply.turn.last_voiced, text, True))
            if self._turn is reply.turn:
                self._turn = None
        self._receive(turn.ResponseAudible(self._now, reply.epoch))
        self._emit(ResponseStarted(self._now - USER_FRAME + self._committed(), reply.epoch, latency))

    def _finish_reply(self, reply: _Reply) -> None:
        reason: Literal["completed", "failed"] = "completed" if reply.started else "failed"
        heard, text = self.playout.texts(reply.epoch)
        if not reply.started and reply.turn is not None:  # the words stay, though nothing could be said to them
            self.history.add("user", reply.user_text or reply.turn.text)
            if self._turn is reply.turn:
                self._turn = None
        self.history.add("assistant", heard)
        self.playout.drop(reply.epoch)
        self._reply = None
        self._emit(ResponseEnded(self._now + self._committed(), reply.epoch, reason, heard, text))
        self._receive(turn.ResponseDrained(self._now, reply.epoch))

    def _stop_reply(self, *, asked: bool) -> None:
        reply = self._reply
        if reply is None:
            return
        heard, text = self.playout.texts(reply.epoch)
        self.playout.stop()
        self._cancel_reply()
        self._reply = None
        self.history.add("assistant", heard)
        silent_at = self._silent_at or self._silence_after_this_frame()
        self._silent_at = 0
        latency = None if asked else seconds(silent_at - self.turns.overlap_at)
        self._emit(ResponseEnded(silent_at, reply.epoch, "cancelled" if asked else "interrupted", heard, text, latency))

    def _close_reply(self, reason: Literal["cancelled"]) -> None:
        """The conversation ends while a response is under way."""
        if (reply := self._reply) is not None and reply.started:
            heard, text = self.playout.texts(reply.epoch)
            self.history.add("assistant", heard)
            self._emit(ResponseEnded(self._now, reply.epoch, reason, heard, text))
        self._reply = None

    def _cancel_reply(self) -> None:
        if self._reply is not None and self._reply.task is not asyncio.current_task():
            self._reply.task.cancel()

    def _silence_after_this_frame(self) -> int:
        fade = user_samples(self.config.playout.fade_ms / 1000)
        return self._now + fade + self._committed()

    def _committed(self) -> int:
        return self._transport.committed() * USER_RATE_HZ // AGENT_RATE_HZ

    # -- think and speak ----------------------------------------------------------------------------------------------------------

    async def _respond(self, epoch: int, user_turn: _UserTurn | None, line: str | None = None) -> None:
        try:
            messages = self.history.messages
            if user_turn is not None:
                text = await self._words(user_turn)
                if not text:
                    self._receive(turn.NothingSaid(self._now))
                    return
                if self._reply is not None and self._reply.epoch == epoch:
                    self._reply.user_text = text
                messages = self.history.with_user(text)
            await (self._responder.respond(epoch, messages) if line is None else self._responder.say(epoch, line))
        except* Exception as errors:  # a response that fails must not end the conversation
            log.warning("response %d failed", epoch, exc_info=errors)
            self._emit(Trouble(self._now, f"A response failed: {errors.exceptions[0]}"))
            self.playout.finish(epoch)

    async def _words(self, user_turn: _UserTurn) -> str:
        while not user_turn.fresh():
            user_turn.updated.clear()
            self._listen.set()
            await user_turn.updated.wait()
        return user_turn.text

    # -- listen -------------------------------------------------------------------------------------------------------------------

    def _wake_listener(self) -> None:
        floor = self.turns.floor
        if self._voiced and self._turn is not None and floor in ("user", "ducked", "held"):
            every = self.config.interim_s if floor == "user" else self.config.overlap_interim_s
            if self._now - self._listened_at >= user_samples(every):
                self._listen.set()

    async def _keep_listening(self) -> None:
        ears = self._parts.ears
        while True:
            await self._listen.wait()
            self._listen.clear()
            user_turn = self._turn
            if user_turn is None:
                continue
            self._listened_at = self._now
            window = ears.window(self._ear)
            try:
                transcript = await self._worker.run(Priority.LISTEN, "listen", ears.transcribe, window)
            except Exception as error:  # a failed transcript must not end the conversation
                log.exception("listening failed")
                self._emit(Trouble(self._now, f"Listening failed: {error}"))
                transcript = Transcript("", self._now)
            if self._turn is not user_turn:
                user_turn.updated.set()
                continue
            ears.settle(self._ear, window, transcript)
            changed = transcript.text != user_turn.text
            user_turn.transcript = transcript
            if (labels := labelled(transcript, user_turn.labels)) is not None:
                user_turn.labels = labels
                self._emit(labels)
            if changed:
                user_turn.ends = None
                self._emit(UserTranscript(transcript.end, transcript.text, False))
            if transcript.text and user_turn.ends is None and self.turns.floor in ("user", "pause"):
                self._start(self._read(user_turn, transcript), "read")  # before a waiting response goes on: it is short
            user_turn.updated.set()

    async def _read(self, user_turn: _UserTurn, transcript: Transcript) -> None:
        ends = await self._responder.read(self.history.with_user(transcript.text))
        if user_turn.transcript is not None and user_turn.transcript.text == transcript.text:
            user_turn.ends = ends

    # -- parts --------------------------------------------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        self._feed.put(event)

    def _start(self, coroutine: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
