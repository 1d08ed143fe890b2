"""One conversation at one site: a session between two Hermes messages, sessionStarted and sessionEnded.

Why it ends: endSession or an announcement that was spoken (nominal), a goodbye or a long silence after something was said (nominal), a
user who never spoke or a satellite that stopped sending (timeout), a new wake word or the end of the program (abortedByUser), a
failure (error). Whatever way, the site is left as it was found: hotword on, ears off, state idle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from agent.announcer import Announcer
from agent.feed import Subscription
from agent.session import Session
from agent.transport import Transport
from apps import hermes
from apps.hermes import Ending, Outgoing, StartSession
from apps.hermes_audio import read_wav, write_wav
from apps.mqtt_playback import Piece, PlaybackConfig
from apps.mqtt_transport import SatelliteTransport
from duplex.audio import Samples, seconds
from duplex.errors import ConfigError
from duplex.events import (
    AgentTranscript,
    Backchannel,
    Event,
    FloorChanged,
    Levels,
    ResponseEnded,
    ResponseStarted,
    UserStarted,
    UserTranscript,
    as_dict,
)

log = logging.getLogger("duologue.mqtt")

OpenSession = Callable[[Transport], AbstractAsyncContextManager[Session]]
"""A place for a session over a transport, as `agent.host.Host.session` gives it: the session in it is entered here."""
Send = Callable[[Outgoing], None]

STATES = {
    "quiet": "listening",
    "user": "hearing",
    "pause": "thinking",
    "agent": "speaking",
    "ducked": "speaking",
    "held": "hearing",
}
"""Floor -> the word in `duologue/<site>/state`."""


@dataclass(frozen=True)
class ConversationConfig:
    """When a conversation is over, and how its satellite plays."""

    quiet_s: float = 20.0
    """Nobody has spoken for so long: the conversation ends."""
    starved_s: float = 10.0
    """The satellite has sent nothing for so long: the conversation ends."""
    longest_s: float = 900.0
    """No conversation lasts longer."""
    farewells: tuple[str, ...] = ("goodbye", "good bye", "bye", "bye bye", "stop listening", "that's all")
    """A turn of the user's that is just one of these ends the conversation, after the agent's answer."""
    half_duplex: bool = False
    """Whether the microphone counts as closed while the agent speaks: for satellites that do not cancel its echo."""
    levels: bool = False
    """Whether the event topic carries levels too, twelve a second."""
    playback: PlaybackConfig = field(default_factory=PlaybackConfig)
    """How the voice is handed over."""

    def __post_init__(self) -> None:
        if not (self.quiet_s > 0 and self.starved_s > 0 and self.longest_s > 0):
            raise ConfigError("--quiet, --starved and --longest are seconds above 0.")


class Conversation:
    """Lives from `run` being called to its return. Everything else may be called at any moment in between, and does not wait."""

    def __init__(self, id: str, start: StartSession, open_session: OpenSession, send: Send, config: ConversationConfig) -> None:
        self.id, self.start, self.custom = id, start, start.custom
        self._send, self._config = send, config
        loop = asyncio.get_running_loop()
        talks = not start.notification
        self.transport = SatelliteTransport(self._play, config.playback, listen=talks, half_duplex=config.half_duplex and talks)
        self._place = open_session(self.transport)
        self._session: Session
        self._announcer: Announcer
        self._over: asyncio.Future[Ending] = loop.create_future()
        self._spoken: set[asyncio.Task[None]] = set()
        self._turns = 0
        self._began = self._active = loop.time()  # when something last happened
        self._floor = "quiet"
        self._turn_at: int | None = None  # where the user's open turn began
        self._leaving = False  # the user has said goodbye
        self._heard: list[tuple[int, str]] = []  # how much sound the satellite's side had when which words had been said
        self._cut: dict[int, str] = {}  # epoch of an interrupted response -> its words that were handed over
        self._bad_frames = 0
        self.error: str | None = None
        """What went wrong, for sessionEnded."""

    # -- from the dialogue --------------------------------------------------------------------------------------------------------

    def hear(self, wav: bytes) -> None:
        """A message of the satellite's microphone. Raises HermesError when it is no sound."""
        if not self.start.notification:
            try:
                self.transport.feed(*read_wav(wav))
            except ValueError as error:
                self._bad_frames += 1
                if self._bad_frames in (1, 50, 500):  # a satellite that sends rubbish sends it 60 times a second
                    raise hermes.HermesError("asr", f"audioFrame: {error}", self.start.site, self.id) from None

    def played(self, id: str) -> None:
        """The satellite reports a sound as played; those of others are none of ours."""
        prefix, _, numbers = id.partition(":")
        parts = numbers.split(".")
        if prefix == self.id and all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts) and len(parts) <= 2:
            self.transport.played(int(parts[0]), int(parts[1]) if len(parts) == 2 else None)

    def say(
        self, text: str, *, instead: bool = True, then_end: bool = False, say_id: str | None = None, report: bool = False
    ) -> None:
        """Speak `text`; `instead` of what the agent is saying. Afterwards end nominally, or report sayFinished.

        Raises HermesError when too much waits to be said already.
        """
        try:
            spoken = self._announcer.say(text)
        except ValueError as error:
            raise hermes.HermesError("tts", str(error), self.start.site, self.id) from None
        if instead and not self._announcer.speaking and self._session.turns.floor in ("agent", "ducked", "held"):
            self._session.cancel_response()
        task = asyncio.create_task(self._after(spoken, then_end, report, say_id), name="mqtt-after-saying")
        self._spoken.add(task)
        task.add_done_callback(self._spoken.discard)

    def end(self, ending: Ending, error: str | None = None) -> None:
        """Over, unless it already is."""
        if not self._over.done():
            self.error = error
            self._over.set_result(ending)

    # -- life ---------------------------------------------------------------------------------------------------------------------

    async def run(self) -> Ending:
        """The conversation from its start to its end. Cancelling ends it as abortedByUser would; the caller tells.

        Raises what keeps the session from being opened.
        """
        async with self._place as self._session:
            self._announcer = Announcer(self._session)
            self._session.observe(self._follow)
            return await self._converse(self._session.events())

    async def _converse(self, events: Subscription) -> Ending:
        tasks: set[asyncio.Task[None]] = set()
        try:
            if self.start.text:
                only = self.start.notification
                report = not self.start.announced
                self.say(self.start.text, instead=False, then_end=only, report=report, say_id=self.start.say_id)
            async with self._session:
                self._began = self._active = asyncio.get_running_loop().time()
                hearing = asyncio.create_task(self._session.wait(), name="mqtt-wait")
                tasks = {hearing, asyncio.create_task(self._pump(events)), asyncio.create_task(self._watch())}
                ends: set[asyncio.Future[Any]] = {self._over, *tasks}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()
                self.end("timeout")  # the transport ended by itself
            return self._over.result()
        except Exception as error:
            log.exception("the conversation %s failed", self.id)
            self.error = f"The conversation failed: {error}"
            return "error"
        finally:
            self.transport.end()
            self._announcer.close()
            waiting = [*tasks, *self._spoken]
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _pump(self, events: Subscription) -> None:
        async for event in events:
            self._announcer.take(event)
            self._tell(event)

    async def _watch(self) -> None:
        """Ends what goes on for too long, or has nobody left."""
        loop, config = asyncio.get_running_loop(), self._config
        while True:
            await asyncio.sleep(0.1)
            now = loop.time()
            if self._floor != "quiet" or self._announcer.busy or self.transport.busy():
                self._active = now
            if self.transport.starved_s() > config.starved_s:
                self.end("timeout", f"The satellite has sent no sound for {config.starved_s:g} s.")
            elif now - self._began > config.longest_s:
                self.end("timeout", f"A conversation lasts {config.longest_s:g} s at most.")
            elif now - self._active > config.quiet_s:
                self.end("nominal" if self._turns else "timeout")
            elif self._leaving and self._active < now:
                self.end("nominal")

    async def _after(self, spoken: asyncio.Future[ResponseEnded], then_end: bool, report: bool, say_id: str | None) -> None:
        """When the satellite has played `spoken` as well. sayFinished comes even when the conversation ends first: it is waited for."""
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait({spoken})
            deadline = loop.time() + 5.0
            while self.transport.busy() and loop.time() < deadline:  # noqa: ASYNC110  (time passes, nobody wakes us)
                await asyncio.sleep(0.02)
        finally:
            if report:
                self._send(hermes.say_finished(self.start.site, say_id, self.id if self.start.announced else None))
        if then_end:
            self.end("nominal")

    # -- to the broker ------------------------------------------------------------------------------------------------------------

    def _play(self, piece: Piece, samples: Samples) -> None:
        wav, site = write_wav(samples, self._config.playback.rate_hz), self.start.site
        if self._config.playback.streaming:
            self._send(hermes.play_stream(site, f"{self.id}:{piece.passage}", piece.index, piece.last, wav))
        else:
            self._send(hermes.play(site, f"{self.id}:{piece.passage}.{piece.index}", wav))

    def _tell(self, event: Event) -> None:
        """An event to those who follow the conversation."""
        site = self.start.site
        match event:
            case FloorChanged():
                self._floor = event.floor
                if event.floor == "quiet":
                    self._turn_at = None
                self._send(hermes.state(site, STATES[event.floor]))
            case UserStarted() if self._turn_at is None:
                self._turn_at = event.at
            case Backchannel():
                self._turn_at = None
            case UserTranscript(at, text, True):
                lasted = seconds(at - self._turn_at) if self._turn_at is not None else 0.0
                self._send(hermes.text_captured(self.id, site, text, max(lasted, 0.0), self.start.wakeword, self.start.lang))
                self._turns, self._turn_at = self._turns + 1, None
                self._leaving = text.lower().strip(" .,!?") in self._config.farewells
            case ResponseEnded():
                event = replace(event, heard=self._cut.pop(event.epoch, event.heard))
        if self.start.announced and (self._config.levels or not isinstance(event, Levels)):
            fleeting = isinstance(event, Levels | AgentTranscript | ResponseStarted) or (
                isinstance(event, UserTranscript) and not event.final
            )
            self._send(hermes.event(site, self.id, as_dict(event), keep=not fleeting))

    def _follow(self, event: Event) -> None:
        """At once, between two frames: what was interrupted goes no further, and its words that nobody will hear are forgotten."""
        self.transport.steer(event)
        match event:
            case ResponseStarted():
                self._heard = []
            case AgentTranscript():
                self._heard.append((self.transport.playback.taken, event.heard))
            case ResponseEnded(reason="interrupted" | "cancelled") if self.transport.unheard:
                until = self.transport.playback.taken - self.transport.unheard
                heard = next((text for taken, text in reversed(self._heard) if taken <= until), "")
                if len(heard) < len(event.heard):
                    self._cut[event.epoch] = heard
                    self._session.history.rewrite(("agent", event.epoch), heard)
