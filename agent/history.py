"""The dialogue so far, as it was heard: what the user said, what of the agent's replies left the loudspeaker, functions and their results.

Entries can be found again by a key, so that what turned out not to have been heard can be taken back. `messages` is what the LLM reads:
the sides alternate there, because a side that speaks twice in a row is joined. A call and its result take the form that Qwen was trained
on: the call is the agent's, the result comes from the user's side.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Literal

from agent.chat_template import Message
from encoders.ears import HeardVectors

MOST_MESSAGES = 100
"""Older entries are forgotten; a context holds fewer than these."""
FORGOTTEN_AT_ONCE = 32
"""So many go together, because each time the LLM has to read everything that is left anew."""

Kind = Literal["user", "assistant", "system", "call", "result"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was said or done."""

    kind: Kind
    text: str
    key: Hashable = None

    def message(self) -> Message:
        """As the LLM reads it."""
        match self.kind:
            case "call":
                return Message("assistant", f"<tool_call>\n{self.text}\n</tool_call>")
            case "result":
                return Message("user", f"<tool_response>\n{self.text}\n</tool_response>")
            case "user" | "assistant" | "system":
                return Message(self.kind, self.text)


@dataclass(slots=True)
class History:
    """The newest entries in order."""

    entries: list[Entry] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """The dialogue for the LLM."""
        joined: list[Message] = []
        before: Kind | None = None
        for entry in self.entries:
            message = entry.message()
            if joined and joined[-1].role == message.role != "system":
                gap = " " if entry.kind == before else "\n"
                message = Message(message.role, f"{joined.pop().text}{gap}{message.text}")
            joined.append(message)
            before = entry.kind if entry.kind in ("user", "assistant") else None
        return joined

    def add(self, kind: Kind, text: str, key: Hashable = None) -> None:
        """Append; nothing for empty text. `key` is unique where it is not None."""
        text = text.strip() if kind in ("call", "result") else " ".join(text.split())
        if not text:
            return
        self.entries.append(Entry(kind, text, key))
        if len(self.entries) > MOST_MESSAGES:
            del self.entries[:FORGOTTEN_AT_ONCE]
            while self.entries and self.entries[0].kind not in ("user", "system"):
                del self.entries[0]

    def has(self, key: Hashable) -> bool:
        """An entry of this key is (still) there."""
        return any(entry.key == key for entry in self.entries)

    def rewrite(self, key: Hashable, text: str) -> None:
        """Replace the words of an entry; no words take it out. Nothing when there is none."""
        text = " ".join(text.split())
        self.entries = [e if e.key != key else Entry(e.kind, text, key) for e in self.entries if e.key != key or text]

    def with_user(self, text: str, speech: HeardVectors | None = None) -> list[Message]:
        """The messages as they would be if the user had also said `text`; the history itself stays as it is.

        speech: the same words as vectors, which the LLM then reads in their place.
        """
        trial = History(list(self.entries))
        trial.add("user", text)
        messages = trial.messages
        if speech is not None and messages and messages[-1].text.endswith("".join(speech.pieces).strip()):
            messages[-1] = replace(messages[-1], speech=speech)
        return messages
