"""One Realtime conversation: a client's events put to our session. It outlives a connection and knows nothing of sockets.

Every event of the client is checked and either done or answered by an `error`; nothing that a client sends can break the conversation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from agent.host import Host, HostFull, Loaded
from agent.response import Manner
from agent.session import Session
from apps.realtime_audio import SoundIn
from apps.realtime_item_events import ItemEvents, decode
from apps.realtime_items import new_id
from apps.realtime_models import check_model
from apps.realtime_outbox import Outbox
from apps.realtime_scribe import Scribe
from apps.realtime_settings import DEFAULT_DETECTION, OWN_VOICE, ProtocolError, Settings
from apps.realtime_transport import MOST_WAITING_S, SocketTransport
from duplex.audio import Samples, seconds
from duplex.events import AgentBackchannel, Event, Levels, ResponseEnded

log = logging.getLogger(__name__)

RESUME_S = 30.0
"""So long a conversation outlives a lost connection."""


class Conversation(ItemEvents):
    """A session in a host's place. `run` holds the place until `end`; the rest is called from the event loop."""

    def __init__(
        self, host: Host, longest_s: float, loaded: Loaded | None = None, on_event: Callable[[Event], None] | None = None
    ) -> None:
        """longest_s: after so long it ends. loaded: one of the host's; None takes its default. on_event: told every event."""
        self.id = new_id("sess")
        self.token = secrets.token_urlsafe(24)
        self.outbox = Outbox()
        self.over = asyncio.Event()
        self.ready = asyncio.Event()
        self.timed_out = self.failed = False
        self._host, self._longest_s, self._on_event = host, longest_s, on_event
        self._loaded = loaded or host.default
        self._voices: dict[str, Any] = {OWN_VOICE: None, **self._loaded.voices}
        self._ends_at = time.monotonic() + longest_s
        self._transport = SocketTransport(self._deliver)
        self._session: Session | None = None
        self._scribe = Scribe(self.outbox, self._playing)
        self._settings = Settings("", next(iter(self._voices)), tuple(self._voices), turn_detection=DEFAULT_DETECTION)
        self._sound_in = SoundIn("audio/pcm")
        self._quiet_since: int | None = None
        self._handlers: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.delete": self._delete_item,
            "conversation.item.truncate": self._truncate_item,
            "response.create": self._respond,
            "response.cancel": self._cancel,
            "duologue.playback.ack": self._played,
        }

    # -- life ---------------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The whole conversation. Raises HostFull at once when there is no place. Cancelling ends it."""
        try:
            async with self._host.session(self._transport, loaded=self._loaded) as session:
                self._session = session
                self._settings = Settings(
                    session.manner.system_prompt, self._settings.voice, self._settings.voices, turn_detection=DEFAULT_DETECTION
                )
                self._transport.audible = lambda: session.sending is not None
                session.observe(self._take)
                async with session:
                    self.ready.set()
                    waiting = asyncio.create_task(session.wait(), name="wait")
                    over = asyncio.create_task(self.over.wait(), name="over")
                    try:
                        left_s = max(self._ends_at - time.monotonic(), 0)
                        done, _ = await asyncio.wait({waiting, over}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                        self.timed_out = not done
                    finally:
                        for task in (waiting, over):
                            task.cancel()
                        await asyncio.gather(waiting, over, return_exceptions=True)
        except HostFull:
            raise
        except Exception:
            self.failed = True
            raise
        finally:
            self._transport.hang_up()
            self.over.set()

    def end(self) -> None:
        """The client is gone for good."""
        self.over.set()

    def detach(self) -> None:
        """The connection is lost: be silent until someone comes back."""
        self.outbox.go_away()
        self._scribe.lost()
        if self._session is not None:
            self._session.cancel_response()

    def attach(self, *, again: bool) -> None:
        """A connection begins; `again` after a lost one. The token is a new one each time."""
        self.token = secrets.token_urlsafe(24)
        first: list[dict[str, Any]] = [{"type": "session.created", "session": self.describe()}]
        if again:
            first.append({"type": "duologue.resumed", "missed": len(self.outbox), "lost": self.outbox.dropped})
        self.outbox.come_back(first)

    @property
    def speaking(self) -> bool:
        """A response is being given."""
        return self._session is not None and self._session.responding is not None

    def describe(self) -> dict[str, Any]:
        """The `session` object."""
        return {
            "id": self.id,
            "model": self._loaded.profile.name,
            "expires_at": round(time.time() + self._ends_at - time.monotonic()),
            **self._settings.as_dict(),
            "duologue": {
                "protocol": 1,
                "profile": self._loaded.profile.name,
                "profiles": list(self._host.loaded),
                "voices": list(self._voices),
                "levels": self._settings.levels,
                "resume_token": self.token,
                "resume_s": RESUME_S,
                "expires_in_s": round(self._ends_at - time.monotonic()),
            },
        }

    def fail(self, error: ProtocolError, event_id: Any = None) -> None:
        """Tell the client."""
        kind = "server_error" if error.code == "server_error" else "invalid_request_error"
        told = {"type": kind, "code": error.code, "message": error.message, "param": error.param}
        self.outbox.put({"type": "error", "error": {**told, "event_id": event_id if isinstance(event_id, str) else None}})

    # -- our session's side -------------------------------------------------------------------------------------------------------

    def _deliver(self, frame: Samples) -> None:
        self._scribe.sound(frame)

    def _playing(self) -> int | None:
        return self._session.sending if self._session is not None else None

    def _take(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
        self._scribe.take(event)
        if isinstance(event, AgentBackchannel) and self._session is not None:
            self._scribe.murmured(event, self._session.playout.murmur_left)
        elif isinstance(event, ResponseEnded):
            self._quiet_since = event.at
        elif isinstance(event, Levels) and self._session is not None:
            self._look_for_idleness(event.at, self._session)

    def _look_for_idleness(self, at: int, session: Session) -> None:
        if session.turns.floor != "quiet":
            self._quiet_since = self._quiet_since and max(self._quiet_since, at)
        elif self._settings.idle_s and self._quiet_since is not None and seconds(at - self._quiet_since) >= self._settings.idle_s:
            since, self._quiet_since = self._quiet_since, None
            times = {"audio_start_ms": round(1000 * seconds(since)), "audio_end_ms": round(1000 * seconds(at))}
            self.outbox.put({"type": "input_audio_buffer.timeout_triggered", "item_id": new_id("item"), **times})
            if (epoch := session.respond()) is not None:
                self._scribe.asked(epoch, self._settings.spoken, self._settings.output_format)

    # -- the client's side --------------------------------------------------------------------------------------------------------

    def receive(self, text: str) -> str | None:
        """One message of the client. Never raises; returns the code of the error that it was answered by, if it was."""
        event_id: Any = None
        try:
            try:
                event = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ProtocolError("invalid_json", f"The message is no JSON: {str(error)[:200]}.") from error
            if not isinstance(event, dict):
                raise ProtocolError("invalid_event", "An event is a JSON object with a type.")
            event_id = event.get("event_id")
            handler = self._handlers.get(event["type"]) if isinstance(event.get("type"), str) else None
            if handler is None:
                raise ProtocolError("unknown_event", f"There is no event of type {str(event.get('type'))[:80]!r}.", "type")
            handler(event)
        except ProtocolError as error:
            self.fail(error, event_id)
            return error.code
        except Exception:
            log.exception("a client's event could not be handled")
            self.fail(ProtocolError("server_error", "The server could not handle this event; the conversation goes on."), event_id)
            return "server_error"
        return None

    def _update(self, event: Mapping[str, Any]) -> None:
        check_model(self._host, self._loaded, event.get("session"))
        new, session = self._settings.updated(event.get("session")), self._live
        self._check(session, new)
        if new.detection != self._settings.detection:
            session.detection = new.detection
        if new.input_format != self._settings.input_format:
            self._sound_in = SoundIn(new.input_format)
        self._settings = new
        session.manner = self._manner(session, new)
        self._scribe.levels, self._scribe.spoken, self._scribe.audio_format = new.levels, new.spoken, new.output_format
        self.outbox.put({"type": "session.updated", "session": self.describe()})

    def _manner(self, session: Session, settings: Settings) -> Manner:
        return settings.manner(session.config.response.most_tokens, self._voices[settings.voice])

    def _check(self, session: Session, settings: Settings) -> None:
        try:
            session.check_manner(self._manner(session, settings))
        except ValueError as error:
            raise ProtocolError(
                "context_full", f"The instructions and tools are too long: {error}.", "session.instructions"
            ) from error

    def _append(self, event: Mapping[str, Any]) -> None:
        if not self._transport.push(decode(self._sound_in, event)):
            raise ProtocolError(
                "input_audio_buffer_full", f"More than {MOST_WAITING_S:.0f} s of sound wait; send in real time.", "audio"
            )

    def _commit(self, event: Mapping[str, Any]) -> None:
        def commit() -> None:
            if not self._live.commit():
                code = "input_audio_buffer_commit_empty"
                self.fail(ProtocolError(code, "There is no sound to commit."), event.get("event_id"))

        self._order(commit)

    def _clear(self, event: Mapping[str, Any]) -> None:
        def clear() -> None:
            self._live.clear()
            self.outbox.put({"type": "input_audio_buffer.cleared"})

        self._order(clear)

    def _order(self, call: Callable[[], None]) -> None:
        if not self._transport.order(call):
            raise ProtocolError("too_many_events", "Too many events wait for their sound.")

    def _respond(self, event: Mapping[str, Any]) -> None:
        session, asked = self._live, event.get("response")
        if self._scribe.responding is not None or session.responding is not None:
            raise ProtocolError("conversation_already_has_active_response", "A response is being given; cancel it first.")
        settings = self._settings if asked is None else self._settings.for_response(asked)
        manner = self._manner(session, settings)
        if asked is not None:
            self._check(session, settings)
        metadata = asked.get("metadata") if isinstance(asked, Mapping) else None

        def respond() -> None:
            epoch = session.respond(None if asked is None else manner)
            if epoch is None:
                code = "conversation_already_has_active_response"
                self.fail(ProtocolError(code, "The floor is not free: the user or the agent is speaking."), event.get("event_id"))
            else:
                self._scribe.asked(epoch, settings.spoken, settings.output_format, metadata)

        self._order(respond)

    def _cancel(self, event: Mapping[str, Any]) -> None:
        wanted, present = event.get("response_id"), self._scribe.responding
        if present is None or (wanted is not None and wanted != present):
            raise ProtocolError("response_cancel_not_active", "There is no such response to cancel.", "response_id")
        self._scribe.cancelled()
        self._live.cancel_response()
