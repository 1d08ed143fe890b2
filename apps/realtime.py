"""The WebSocket side of the Realtime protocol: who may connect, one reader and one writer per connection, and conversations that wait for
their client to come back.

A connection that ends by a close of the client ends its conversation; one that is lost leaves it for RESUME_S, to be taken up again with
the token of its last `session.created`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from agent.host import Host, HostFull
from apps.realtime_conversation import RESUME_S, Conversation
from apps.realtime_models import choose_model
from apps.realtime_settings import ProtocolError
from duplex.errors import ConfigError
from duplex.events import Event

log = logging.getLogger(__name__)

KEY_PROTOCOL = "openai-insecure-api-key."
CLOSED_BY_CLIENT = (1000, 1001, 1005)
"""Codes with which a client says that it is done; anything else is a lost connection."""


@dataclass(frozen=True)
class AccessConfig:
    """Who may connect, and how much."""

    host: str = "127.0.0.1"
    """The address that is bound."""
    api_key: str | None = None
    """Required of everyone; a must for any address but this machine's own."""
    origins: tuple[str, ...] = ()
    """Origins of web pages that may connect besides the server's own; "*" lets all in."""
    longest_session_s: float = 3600.0
    """A conversation ends after so long."""
    most_message_bytes: int = 1_048_576
    """The longest message that a client may send; 1 MiB is 16 s of PCM."""
    resume_s: float = RESUME_S
    """So long a conversation outlives a lost connection."""

    def __post_init__(self) -> None:
        if self.api_key == "":
            raise ConfigError("The API key is empty; give one with --api-key or DUOLOGUE_API_KEY.")
        if not is_local(self.host) and self.api_key is None:
            raise ConfigError(
                f"{self.host} can be reached from other machines, so a key is needed: give one with --api-key, or in DUOLOGUE_API_KEY."
            )
        if self.longest_session_s <= 0 or self.most_message_bytes < 1024:
            raise ConfigError("--max-session-s must be positive, and --max-message-bytes at least 1024.")


def is_local(host: str) -> bool:
    """Whether an address, or a Host header's name, is this machine itself."""
    name = host.strip("[]").lower()
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost" or name.endswith(".localhost")


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # such as half an IPv6 address
        return SplitResult("", "", "", "", "")


@dataclass(eq=False)
class _Kept:
    conversation: Conversation
    running: asyncio.Task[None]
    connection: asyncio.Task[None] | None = None
    """The task that serves the present connection."""
    timer: asyncio.TimerHandle | None = None


@dataclass
class Door:
    """All Realtime connections of a server."""

    host: Host
    access: AccessConfig = field(default_factory=AccessConfig)
    on_event: Callable[[Event], None] | None = None
    """Told every event of every conversation."""
    on_error: Callable[[str], None] | None = None
    """Told the code of every `error`."""
    on_refused: Callable[[str], None] | None = None
    """Told why a connection was refused."""
    on_end: Callable[[str], None] | None = None
    """Told how a conversation ended."""
    _kept: set[_Kept] = field(default_factory=set)

    # -- who may come in ----------------------------------------------------------------------------------------------------------

    def allows(self, headers: Mapping[str, str], protocols: list[str]) -> tuple[int, str] | None:
        """None for a welcome client, else the HTTP status and why."""
        key = self.access.api_key
        named = _split(f"//{headers.get('host', '')}").hostname or ""
        if key is None and not is_local(named):  # a web page that points a name of its own at this machine
            return 403, "This server answers to names of this machine only."
        origin = headers.get("origin")
        known = origin is None or bool({"*", origin} & set(self.access.origins))
        if origin is not None and not known and _split(origin).netloc != headers.get("host"):
            return 403, f"Pages of {origin[:100]} may not connect; start the server with --origin {origin[:100]} to allow it."
        if key is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            offered = [p.removeprefix(KEY_PROTOCOL) for p in protocols if p.startswith(KEY_PROTOCOL)]
            offered += [given] if scheme.lower() == "bearer" else []
            if not any(hmac.compare_digest(one.encode("utf-8", "replace"), key.encode()) for one in offered):
                return 401, "The API key is missing or wrong."
        return None

    # -- one connection -----------------------------------------------------------------------------------------------------------

    async def serve(self, socket: WebSocket) -> None:
        """One connection, from its handshake to its end. Cancelling leaves its conversation as if the connection were lost."""
        protocols = [name.strip() for name in socket.headers.get("sec-websocket-protocol", "").split(",")]
        refused = self.allows(socket.headers, protocols)
        if refused is not None:
            status, why = refused
            self._tell(self.on_refused, "key" if status == 401 else "origin")
            await socket.send_denial_response(PlainTextResponse(why, status))
            return
        await socket.accept("realtime" if "realtime" in protocols else None)
        try:
            kept, failure = await self._conversation(socket.query_params.get("resume"), socket.query_params.get("model"))
        except HostFull as full:
            self._tell(self.on_refused, "draining" if self.host.draining else "full")
            await _refuse(socket, ProtocolError("server_full", str(full)), 1013)
            return
        except ProtocolError as error:
            self._tell(self.on_refused, "model")
            await _refuse(socket, error, 1008)
            return
        kept.connection = asyncio.current_task()
        try:
            await self._converse(socket, kept, failure)
        finally:
            if kept.connection is asyncio.current_task():
                kept.connection = None

    async def _conversation(self, token: str | None, model: str | None) -> tuple[_Kept, ProtocolError | None]:
        """The conversation that waits for this token, or a new one and why it is not the old one.

        Raises HostFull, and ProtocolError for a model that is not there.
        """
        failure = None
        if token is not None:
            for kept in self._kept:
                same = hmac.compare_digest(kept.conversation.token.encode(), token.encode("utf-8", "replace"))
                if same and not kept.conversation.over.is_set():
                    await self._take_over(kept)
                    kept.conversation.attach(again=True)
                    return kept, None
            failure = ProtocolError(
                "resume_failed", "There is no conversation to resume by this token; this is a new one.", "resume"
            )
        conversation = Conversation(self.host, self.access.longest_session_s, choose_model(self.host, model), self.on_event)
        running = asyncio.create_task(conversation.run(), name="conversation")
        kept = _Kept(conversation, running)
        ready = asyncio.create_task(conversation.ready.wait())
        try:
            await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            conversation.end()
            raise
        finally:
            ready.cancel()
        if running.done():
            running.result()  # HostFull, or what broke it
        self._kept.add(kept)
        running.add_done_callback(lambda task: self._gone(kept, task))
        conversation.attach(again=False)
        return kept, failure

    async def _take_over(self, kept: _Kept) -> None:
        """The client comes back: its old connection, which may not know yet that it is dead, ends."""
        if kept.timer is not None:
            kept.timer.cancel()
            kept.timer = None
        old = kept.connection
        if old is not None:
            kept.connection = None
            old.cancel()
            await asyncio.wait({old})
            kept.conversation.detach()

    async def _converse(self, socket: WebSocket, kept: _Kept, failure: ProtocolError | None) -> None:
        conversation = kept.conversation
        if failure is not None:
            conversation.fail(failure)
        reading = asyncio.create_task(self._read(socket, conversation), name="read")
        writing = asyncio.create_task(_write(socket, conversation), name="write")
        over = asyncio.create_task(conversation.over.wait(), name="over")
        overfull = asyncio.create_task(conversation.outbox.overfull.wait(), name="overfull")
        tasks = (reading, writing, over, overfull)
        code: int | None = 1006
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and not reading.cancelled() and reading.exception() is None:
                code = reading.result()
            elif over.done():
                code = None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if code in CLOSED_BY_CLIENT or conversation.outbox.overfull.is_set():
                conversation.end()
            elif code is not None and kept.connection is asyncio.current_task():
                conversation.detach()
                kept.timer = asyncio.get_running_loop().call_later(self.access.resume_s, conversation.end)
        if code is None:
            await self._close(socket, conversation)
        elif conversation.outbox.overfull.is_set():
            await _quietly(socket.close(1008, "too slow a reader"))

    async def _read(self, socket: WebSocket, conversation: Conversation) -> int:
        """Until the client closes, or is lost; the code."""
        while True:
            try:
                message = await socket.receive()
            except (WebSocketDisconnect, RuntimeError):
                return 1006
            if message["type"] == "websocket.disconnect":
                return int(message.get("code") or 1005) if "reason" in message else 1006  # without one, no close was received
            text = message.get("text")
            if text is None:
                conversation.fail(ProtocolError("invalid_event", "Events are JSON in text messages, not in binary ones."))
                self._tell(self.on_error, "invalid_event")
            elif (code := conversation.receive(text)) is not None:
                self._tell(self.on_error, code)
            await asyncio.sleep(0)  # a client that floods must not starve the others

    async def _close(self, socket: WebSocket, conversation: Conversation) -> None:
        """The conversation is over, and the client is still there."""
        closing = self.host.draining
        if conversation.timed_out:
            minutes = self.access.longest_session_s / 60
            conversation.fail(ProtocolError("session_expired", f"The session has reached its {minutes:g} minutes."))
        with contextlib.suppress(Exception):
            while len(conversation.outbox):
                await socket.send_text(conversation.outbox.take())
        code = 1011 if conversation.failed else 1001 if closing and not conversation.timed_out else 1000
        await _quietly(socket.close(code))

    # -- the end ------------------------------------------------------------------------------------------------------------------

    async def drain(self, timeout_s: float) -> None:
        """Tell every client, let the present responses end, and close; at most `timeout_s`."""
        self.host.draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        for kept in self._kept:
            kept.conversation.outbox.put({"type": "duologue.draining", "seconds": timeout_s})
        while any(kept.conversation.speaking for kept in self._kept) and loop.time() < deadline:  # noqa: ASYNC110  (playout wakes nobody)
            await asyncio.sleep(0.05)
        for kept in list(self._kept):
            kept.conversation.end()
        await self.host.drain(max(deadline - loop.time(), 2.0))

    def _gone(self, kept: _Kept, task: asyncio.Task[None]) -> None:
        self._kept.discard(kept)
        if kept.timer is not None:
            kept.timer.cancel()
        failed = None if task.cancelled() else task.exception()
        if failed is not None:
            log.error("a conversation broke", exc_info=failed)
        how = "failed" if failed is not None else "expired" if kept.conversation.timed_out else "closed"
        self._tell(self.on_end, how)

    @staticmethod
    def _tell(listener: Callable[[str], None] | None, what: str) -> None:
        if listener is not None:
            listener(what)


async def _write(socket: WebSocket, conversation: Conversation) -> None:
    """Send what waits, until the client is lost or cut off."""
    while True:
        await conversation.outbox.wait()
        while len(conversation.outbox):
            await socket.send_text(conversation.outbox.take())


async def _refuse(socket: WebSocket, error: ProtocolError, code: int) -> None:
    with contextlib.suppress(Exception):
        kind = "server_error" if code == 1013 else "invalid_request_error"
        told = {"type": kind, "code": error.code, "message": error.message, "param": error.param, "event_id": None}
        await socket.send_json({"type": "error", "event_id": "event_refused", "error": told})
    await _quietly(socket.close(code, error.code))


async def _quietly(closing: Any) -> None:
    with contextlib.suppress(Exception):
        await asyncio.wait_for(closing, 5)
