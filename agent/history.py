"""The dialogue so far, as it was heard: what the user said, and what of the agent's replies left the loudspeaker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from agent.chat_template import Message

MOST_MESSAGES = 100
"""Older messages are forgotten; a context holds fewer than these."""


@dataclass(slots=True)
class History:
    """The newest turns in order; the two sides alternate, because a side that speaks twice in a row is joined."""

    messages: list[Message] = field(default_factory=list)

    def add(self, role: Literal["user", "assistant"], text: str) -> None:
        """Append words; nothing for empty text, and joined to the last message when it is of the same side."""
        text = " ".join(text.split())
        if not text:
            return
        if self.messages and self.messages[-1].role == role:
            text = f"{self.messages.pop().text} {text}"
        self.messages.append(Message(role, text))
        if len(self.messages) > MOST_MESSAGES:
            del self.messages[:2]

    def with_user(self, text: str) -> list[Message]:
        """The messages as they would be if the user had also said `text`; the history itself stays as it is."""
        trial = History(list(self.messages))
        trial.add("user", text)
        return trial.messages
