"""A client's items: it adds texts, sounds and results of functions to the dialogue, looks them up, cuts and deletes them.

`Conversation` (apps.realtime_conversation) is made of this and of everything that is no item. What cannot be done raises ProtocolError.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.realtime_audio import SoundIn
from apps.realtime_items import Item, message, new_id
from apps.realtime_settings import ProtocolError, Settings, text_of
from duplex.audio import Samples

if TYPE_CHECKING:
    import asyncio

    from agent.session import Session
    from apps.realtime_outbox import Outbox
    from apps.realtime_scribe import Scribe

MOST_MS = 1e9


class ItemEvents:
    """The items of a `Conversation`, which owns everything that is named here."""

    outbox: Outbox
    over: asyncio.Event
    _session: Session | None
    _scribe: Scribe
    _settings: Settings

    @property
    def _live(self) -> Session:
        if self._session is None or self.over.is_set():
            raise ProtocolError("session_over", "The session is over.")
        return self._session

    def _create_item(self, event: Mapping[str, Any]) -> None:
        told = event.get("item")
        if not isinstance(told, Mapping):
            raise ProtocolError("invalid_type", "item must be an object.", "item")
        item_id = told.get("id") or new_id("item")
        if not isinstance(item_id, str) or len(item_id) > 64 or self._scribe.items.get(item_id) is not None:
            raise ProtocolError("invalid_value", "item.id is a new name of at most 64 characters.", "item.id")
        kind = told.get("type")
        if kind == "function_call_output":
            call_id = told.get("call_id")
            if not isinstance(call_id, str) or not self._live.history.has(("call", call_id)):
                raise ProtocolError("invalid_value", "item.call_id names no function call that is remembered.", "item.call_id")
            output = text_of(told.get("output"), "item.output")
            self._live.add("result", output, ("item", item_id))
            body = {
                "id": item_id,
                "object": "realtime.item",
                "type": kind,
                "status": "completed",
                "call_id": call_id,
                "output": output,
            }
            self._scribe.added(Item(item_id, body, ("item", item_id)))
        elif kind == "message":
            self._create_message(item_id, told)
        else:
            raise ProtocolError("unsupported_value", "item.type is message or function_call_output.", "item.type")

    def _create_message(self, item_id: str, told: Mapping[str, Any]) -> None:
        role, content = told.get("role"), told.get("content")
        if role not in ("user", "assistant", "system"):
            raise ProtocolError("invalid_value", "item.role is user, assistant or system.", "item.role")
        if not isinstance(content, list) or not 1 <= len(content) <= 16 or not all(isinstance(part, Mapping) for part in content):
            raise ProtocolError("invalid_value", "item.content is a list of 1 to 16 parts.", "item.content")
        key = ("item", item_id)
        if role == "user" and [part.get("type") for part in content] == ["input_audio"]:
            samples = decode(SoundIn(self._settings.input_format), content[0])
            item = Item(item_id, message(item_id, role, [{"type": "input_audio", "transcript": None}]), key)

            def heard(text: str) -> None:
                item.body = message(item_id, role, [{"type": "input_audio", "transcript": text}])
                self._scribe.transcribed(item_id, text)

            self._live.add_sound(np.ascontiguousarray(samples), key, heard)
            self._scribe.added(item)
            return
        kinds = {"user": ("input_text",), "system": ("input_text",), "assistant": ("output_text", "text", "output_audio")}[role]
        if any(part.get("type") not in kinds for part in content):
            raise ProtocolError("invalid_value", f"The parts of such a message are {' or '.join(kinds)}.", "item.content")
        texts = [
            text_of(part.get("transcript" if part["type"] == "output_audio" else "text"), f"item.content[{index}]")
            for index, part in enumerate(content)
        ]
        self._live.add(role, text_of(" ".join(texts), "item.content"), key)
        self._scribe.added(Item(item_id, message(item_id, role, [dict(part) for part in content]), key))

    def _item(self, event: Mapping[str, Any]) -> Item:
        item_id = event.get("item_id")
        item = self._scribe.items.get(item_id) if isinstance(item_id, str) else None
        if item is None:
            raise ProtocolError("item_not_found", "There is no item of this id.", "item_id")
        return item

    def _retrieve_item(self, event: Mapping[str, Any]) -> None:
        self.outbox.put({"type": "conversation.item.retrieved", "item": self._item(event).body})

    def _delete_item(self, event: Mapping[str, Any]) -> None:
        item = self._item(event)
        self._live.history.rewrite(item.key, "")
        self._scribe.items.remove(item.id)
        self.outbox.put({"type": "conversation.item.deleted", "item_id": item.id})

    def _truncate_item(self, event: Mapping[str, Any]) -> None:
        item, end_ms = self._item(event), _number(event, "audio_end_ms")
        if item.epoch is None or item.body["type"] != "message":
            raise ProtocolError("invalid_value", "Only what the agent said can be truncated.", "item_id")
        if self._live.responding == item.epoch:
            self._scribe.cancelled()
        heard = self._live.truncate(item.epoch, end_ms / 1000)
        if heard is None:
            raise ProtocolError("item_not_found", "This item is too old to be truncated.", "item_id")
        for part in item.body["content"]:
            part["text" if "text" in part else "transcript"] = heard
        told = {"item_id": item.id, "content_index": 0, "audio_end_ms": event["audio_end_ms"]}
        self.outbox.put({"type": "conversation.item.truncated", **told, "transcript": heard})

    def _played(self, event: Mapping[str, Any]) -> None:
        item, played_ms = self._item(event), _number(event, "played_ms")
        if item.epoch is not None:
            self._live.played(item.epoch, played_ms / 1000)


def decode(sound: SoundIn, event: Mapping[str, Any]) -> Samples:
    """The sound in an event's `audio`. Raises ProtocolError."""
    value = event.get("audio")
    if not isinstance(value, str):
        raise ProtocolError("invalid_type", "audio must be base64 text.", "audio")
    try:
        return sound.decode(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ProtocolError("invalid_audio", f"audio is no sound in {sound.kind}: {error}", "audio") from error


def _number(event: Mapping[str, Any], key: str) -> float:
    value = event.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_MS:  # NaN is not in between
        raise ProtocolError("invalid_value", f"{key} is a number of milliseconds, 0 or more.", key)
    return float(value)
