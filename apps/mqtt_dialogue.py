"""The dialogue manager: which message is meant for which site, who talks now and who waits.

Each site has one task that takes one request after another. A request that cannot begin at once waits, when it may, in a short queue
(sessionQueued); a wake word goes first and ends what is going on at its site. At most `sessions` conversations run at the same time.
Whatever a message does wrong is logged and answered on `hermes/error/...`; it never reaches another site.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from apps import hermes
from apps.hermes import (
    AudioFrame,
    ContinueSession,
    Ending,
    EndSession,
    HermesError,
    ListenToggle,
    Outgoing,
    Played,
    Say,
    StartSession,
)
from apps.mqtt_conversation import Conversation, ConversationConfig, OpenSession

log = logging.getLogger("duologue.mqtt")

MOST_WAITING = 8
"""Requests that may wait at one site."""
MOST_COMPLAINTS = 20
"""Mistakes that are told at once; then one every 3 s, so that whoever sends nothing but rubbish drowns nobody."""
MOST_SITES = 64
"""Sites that are remembered; with `--site-id` it is only those."""


@dataclass(slots=True, eq=False)
class _Site:
    """A place with a microphone and a loudspeaker."""

    name: str
    waiting: deque[tuple[str, StartSession]]
    wanted: asyncio.Event
    now: Conversation | None = None
    session: str | None = None
    """Of the request that is being served; None when the site is idle."""
    task: asyncio.Task[None] | None = None
    deaf: bool = False


class Dialogue:
    """All sites. An async context manager: leaving it ends every conversation and tells so."""

    def __init__(
        self,
        open_session: OpenSession,
        send: Callable[[Outgoing], None],
        config: ConversationConfig | None = None,
        sites: tuple[str, ...] = (),
        sessions: int = 4,
    ) -> None:
        """sites: the only ones to serve; none means all that speak up. sessions: conversations at the same time."""
        self.config = config or ConversationConfig()
        self._open_session, self._send, self._only = open_session, send, sites
        self._sites: dict[str, _Site] = {}
        self._slots = asyncio.Semaphore(sessions)
        self._connected = False
        self._closing = False
        self._patience, self._mistaken_at = float(MOST_COMPLAINTS), 0.0
        self.mistakes = 0
        """Messages that could not be followed so far."""

    async def __aenter__(self) -> Dialogue:
        for name in self._only:
            self._site(name)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every conversation and tell so; no other begins. May be called twice."""
        self._closing = True
        tasks = [site.task for site in self._sites.values() if site.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def talking(self) -> int:
        """Conversations that are going on."""
        return sum(site.now is not None for site in self._sites.values())

    # -- from the broker ----------------------------------------------------------------------------------------------------------

    def changed(self, connected: bool) -> None:
        """The broker came or went. A broker that was restarted may have forgotten what was retained."""
        self._connected = connected
        for site in self._sites.values():
            if site.now is not None:
                site.now.transport.freeze(not connected)
            elif connected:
                self._send(hermes.state(site.name, "idle"))
                self._send(hermes.hotword(site.name, True))  # whoever died in a conversation has left it off

    def take(self, topic: str, payload: bytes) -> None:
        """A message. Never raises and never waits."""
        try:
            self._follow(hermes.parse(topic, payload))
        except HermesError as error:
            self._mistake(error, topic)
        except Exception as error:  # a fault of ours in following one message shall not end all conversations
            log.exception("a message on %r could not be followed", topic[:200])
            self._mistake(HermesError("dialogueManager", f"an unexpected fault: {type(error).__name__}"), topic)

    def _mistake(self, error: HermesError, topic: str) -> None:
        self.mistakes += 1
        now = asyncio.get_running_loop().time()
        self._patience = min(self._patience + (now - self._mistaken_at) / 3.0, float(MOST_COMPLAINTS))
        self._mistaken_at = now
        if self._patience >= 1.0:
            self._patience -= 1.0
            log.warning("A message on %r was not followed: %s.", topic[:200], error)
            self._send(hermes.error(error.component, str(error), error.site, error.session, topic[:200]))

    def _follow(self, message: hermes.Incoming | None) -> None:
        match message:
            case AudioFrame(site, wav):
                if (known := self._sites.get(site)) is not None and known.now is not None:
                    known.now.hear(wav)
            case Played(site, id):
                if (known := self._sites.get(site)) is not None and known.now is not None:
                    known.now.played(id)
            case StartSession():
                self._start(message)
            case ContinueSession(session, text, custom):
                if (talk := self._talk(session)) is not None:
                    talk.custom = custom if custom is not None else talk.custom
                    if text:
                        talk.say(text)
            case EndSession(session, text, custom):
                self._end(session, text, custom)
            case Say():
                self._say(message)
            case ListenToggle(site, on):
                if self._serves(site):
                    known = self._site(site)
                    known.deaf = not on
                    if known.now is not None:
                        known.now.transport.deafen(known.deaf)

    # -- requests -----------------------------------------------------------------------------------------------------------------

    def _start(self, start: StartSession) -> None:
        if not self._serves(start.site):
            return
        site = self._site(start.site)
        id = secrets.token_hex(8)
        if start.wakeword is not None:
            if site.now is not None:
                site.now.end("abortedByUser")
            elif self._slots.locked() or site.session is not None:
                raise HermesError("dialogueManager", "all conversations that this machine can hold are taken", start.site)
            site.waiting.appendleft((id, start))
            while len(site.waiting) > MOST_WAITING:
                self._forget(site, *site.waiting.pop())
        else:
            free = site.session is None and not site.waiting and not self._slots.locked()
            if not free and not start.queue:
                raise HermesError("dialogueManager", "the site is busy, and the session may not be enqueued", start.site)
            if len(site.waiting) >= MOST_WAITING:
                raise HermesError("dialogueManager", f"{MOST_WAITING} requests wait at this site already", start.site)
            site.waiting.append((id, start))
            if not free and start.announced:
                self._send(hermes.session_queued(id, start))
        site.wanted.set()

    def _end(self, session: str, text: str, custom: str | None) -> None:
        for site in self._sites.values():
            for waiting in site.waiting:
                if waiting[0] == session:
                    site.waiting.remove(waiting)
                    self._send(hermes.session_ended(session, site.name, waiting[1].custom, "nominal"))
                    return
        if (talk := self._talk(session)) is not None:
            talk.custom = custom if custom is not None else talk.custom
            if text:
                talk.say(text, then_end=True)
            else:
                talk.end("nominal")

    def _say(self, say: Say) -> None:
        if not self._serves(say.site):
            return
        talk = self._site(say.site).now
        if talk is not None and not talk.start.notification:
            talk.say(say.text, report=True, say_id=say.id)
        else:
            self._start(StartSession(say.site, say.text, True, lang=say.lang, announced=False, say_id=say.id))

    def _talk(self, session: str) -> Conversation | None:
        for site in self._sites.values():
            if site.session == session and site.now is not None:
                return site.now
        if self._only:  # perhaps that of another dialogue manager, for other sites
            return None
        raise HermesError("dialogueManager", "there is no session of that id", session=session[:64])

    def _serves(self, name: str) -> bool:
        return not self._closing and (not self._only or name in self._only)

    def _site(self, name: str) -> _Site:
        if name not in self._sites:
            if len(self._sites) >= MOST_SITES and not self._only:
                self._make_room()
            site = self._sites[name] = _Site(name, deque(), asyncio.Event())
            site.task = asyncio.create_task(self._serve(site), name=f"mqtt-site-{name}")
        return self._sites[name]

    def _make_room(self) -> None:
        for site in self._sites.values():
            if site.session is None and not site.waiting and site.task is not None:
                site.task.cancel()
                del self._sites[site.name]
                return
        raise HermesError("dialogueManager", f"{MOST_SITES} sites are busy, no other can be served")

    # -- a site's task ------------------------------------------------------------------------------------------------------------

    async def _serve(self, site: _Site) -> None:
        """One request after another, for ever. Cancelling ends the running conversation and tells so."""
        self._send(hermes.state(site.name, "idle"))
        try:
            while True:
                while not site.waiting:
                    site.wanted.clear()
                    await site.wanted.wait()
                async with self._slots:
                    if site.waiting:  # it may have been taken back meanwhile
                        await self._hold(site, *site.waiting.popleft())
        finally:
            for id, start in site.waiting:
                self._forget(site, id, start)

    async def _hold(self, site: _Site, id: str, start: StartSession) -> None:
        ending: Ending = "abortedByUser"
        talk: Conversation | None = None
        site.session = id
        if start.announced:
            self._send(hermes.session_started(id, start))
        if not start.notification:
            self._send(hermes.hotword(site.name, False))
            self._send(hermes.listening(id, site.name, True))
        try:
            talk = Conversation(id, start, self._open_session, self._send, self.config)
            talk.transport.freeze(not self._connected)
            talk.transport.deafen(site.deaf)
            site.now = talk
            ending = await talk.run()
        except Exception as error:  # a session that cannot be opened
            log.exception("the conversation %s could not begin", id)
            ending = "error"
            self._send(hermes.error("dialogueManager", f"The conversation could not begin: {error}", site.name, id))
        finally:
            site.now = site.session = None
            if not start.notification:
                self._send(hermes.listening(id, site.name, False))
                self._send(hermes.hotword(site.name, True))
            if start.announced:
                custom, problem = (talk.custom, talk.error) if talk is not None else (start.custom, None)
                if ending == "error" and problem:
                    self._send(hermes.error("dialogueManager", problem, site.name, id))
                self._send(hermes.session_ended(id, site.name, custom, ending, problem))
            self._send(hermes.state(site.name, "idle"))

    def _forget(self, site: _Site, id: str, start: StartSession) -> None:
        if start.announced:
            self._send(hermes.session_ended(id, site.name, start.custom, "abortedByUser"))
