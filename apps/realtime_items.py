"""The items of a Realtime conversation, as the client sees them, and where their words are in the dialogue's history."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

MOST_ITEMS = 256
"""Older items are forgotten."""


def new_id(kind: str) -> str:
    """Such as item_3f2a…"""
    return f"{kind}_{uuid.uuid4().hex[:20]}"


@dataclass(slots=True)
class Item:
    """One item."""

    id: str
    body: dict[str, Any]
    """As it is sent."""
    key: Hashable
    """Of the entry in the history."""
    epoch: int | None = None
    """Of the response that it belongs to."""


class Items:
    """The newest items, in order."""

    def __init__(self) -> None:
        self._items: OrderedDict[str, Item] = OrderedDict()
        self.last: str | None = None
        """Id of the newest."""

    def add(self, item: Item) -> dict[str, Any]:
        """Append; returns the fields of its `added` event."""
        before, self.last = self.last, item.id
        self._items[item.id] = item
        if len(self._items) > MOST_ITEMS:
            self._items.popitem(last=False)
        return {"previous_item_id": before, "item": dict(item.body)}

    def get(self, item_id: str) -> Item | None:
        """An item that is remembered."""
        return self._items.get(item_id)

    def remove(self, item_id: str) -> None:
        """Forget an item."""
        self._items.pop(item_id, None)
        if self.last == item_id:
            self.last = next(reversed(self._items), None)


def message(item_id: str, role: str, content: list[dict[str, Any]], status: str = "completed") -> dict[str, Any]:
    """The body of a message."""
    return {"id": item_id, "object": "realtime.item", "type": "message", "status": status, "role": role, "content": content}


def function_call(item_id: str, call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """The body of a function call."""
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "function_call",
        "status": "completed",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }
