"""Functions that the LLM may call: how it is told of them, and how a call is read out of what it writes.

The words are those of Qwen2.5's chat template. A call is one JSON object with `name` and `arguments` between `<tool_call>` and
`</tool_call>`, in a fenced block, or with nothing spoken before it (nobody says a brace); one that is not well-formed, or names a function
that was not offered, is no call.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MARKS = {OPEN: CLOSE, "```json": "```"}
"""What begins a call -> what ends it; the second form is what Qwen's small models for code write instead."""
MOST_CALL_CHARACTERS = 8_000
"""A longer call is given up."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One function."""

    name: str
    description: str
    parameters: Any
    """A JSON schema."""


@dataclass(frozen=True, slots=True)
class Call:
    """The LLM wants a function called."""

    name: str
    arguments: str
    """A JSON object."""
    call_id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:20]}")

    def written(self) -> str:
        """As the LLM wrote it."""
        return json.dumps({"name": self.name, "arguments": json.loads(self.arguments)}, ensure_ascii=False)


def with_tools(system: str, tools: Sequence[Tool]) -> str:
    """The system prompt that offers `tools`."""
    if not tools:
        return system
    rows = "\n".join(
        json.dumps(
            {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}},
            ensure_ascii=False,
        )
        for t in tools
    )
    return (
        f"{system}\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{rows}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        f"{OPEN}{CLOSE} XML tags:\n"
        f'{OPEN}\n{{"name": <function-name>, "arguments": <args-json-object>}}\n{CLOSE}'
    )


def read_call(text: str, names: Iterable[str]) -> Call | None:
    """The call in the text between the marks; None when it is not well-formed or of no function in `names`."""
    try:
        found = json.loads(text)
        name, arguments = found["name"], found.get("arguments", {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if name not in set(names) or not isinstance(arguments, dict):
        return None
    return Call(name, json.dumps(arguments, ensure_ascii=False))


class CallFinder:
    """Divides what the LLM writes, token by token, into what is to be spoken and calls."""

    def __init__(self, names: Iterable[str]) -> None:
        self.calls: list[Call] = []
        self.malformed = 0
        """Calls that were none."""
        self.complete = False
        """Nothing worth having can follow: a reply that was one bare object is over with it, or would repeat it without end."""
        self._names = set(names)
        self._inside: str | None = None
        self._end: str | None = CLOSE
        self._silent = True  # nothing was spoken so far
        self._held: list[tuple[str, Any]] = []

    @property
    def inside(self) -> bool:
        """A call has begun and not ended."""
        return self._inside is not None

    def push(self, text: str, token: Any) -> list[Any]:
        """Take a token and its text; returns the tokens that are certainly to be spoken, in order."""
        if self._inside is not None:
            self._inside += text
            self._close()
            return []
        self._held.append((text, token))
        held = "".join(t for t, _ in self._held)
        for mark, end in MARKS.items():
            if mark in held:
                start = held.index(mark)
                spoken = self._let_go(start)  # a token that holds more than the mark goes with the mark
                self._begin(held[start + len(mark) :], end)
                return spoken
        if self._silent and held.lstrip().startswith("{"):
            self._begin(held, None)
            return []
        return self._let_go(len(held) - max(_begun(held, mark) for mark in MARKS))

    def finish(self) -> list[Any]:
        """The text has ended: what is still to be spoken. A call without its end mark counts if it is whole."""
        if self._inside is not None:
            self._take(self._inside)
            self._inside = None
        return self._let_go(None)

    def _begin(self, text: str, end: str | None) -> None:
        self._inside, self._end, self._held = text, end, []
        self._close()

    def _let_go(self, characters: int | None) -> list[Any]:
        """Held tokens that lie wholly within the first `characters`; None for all."""
        spoken, at = [], 0
        while self._held and (characters is None or at + len(self._held[0][0]) <= characters):
            piece, token = self._held.pop(0)
            at += len(piece)
            spoken.append(token)
            self._silent = self._silent and not piece.strip()
        return spoken

    def _close(self) -> None:
        assert self._inside is not None
        if self._end is None:
            if (length := _object_length(self._inside)) is not None:
                self._take(self._inside[:length])
                self._inside, self.complete = None, True
        elif self._end in self._inside:
            body, _, _ = self._inside.partition(self._end)
            self._take(body)
            self._inside = None  # what follows on the same token is white space
        if self._inside is not None and len(self._inside) > MOST_CALL_CHARACTERS + len(CLOSE):
            self._inside = "x" * MOST_CALL_CHARACTERS + self._inside[-len(CLOSE) :]  # no call any more; its end is still looked for

    def _take(self, body: str) -> None:
        call = read_call(body, self._names)
        if call is None:
            self.malformed += 1
        else:
            self.calls.append(call)


def _begun(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


def _object_length(text: str) -> int | None:
    """Where the JSON value that `text` begins with ends; None while it goes on."""
    if not text.rstrip().endswith("}"):
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(text, len(text) - len(text.lstrip()))
    except (ValueError, RecursionError):
        return None
    return int(end)
