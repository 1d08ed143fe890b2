"""The settings of a Realtime session: what `session.update` may say, checked, and what they mean to our conversation.

A wrong value changes nothing and is answered by an `error` that names its place. What we know of and cannot do is taken and does nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agent.response import Manner
from agent.tool_calls import Tool
from agent.turn_detection import TurnDetectionConfig
from apps.realtime_audio import RATE_HZ, Format

MOST_CHARACTERS = 20_000
"""The longest text that a client may send in one piece: instructions, a text item, the result of a function."""
MOST_TOOLS = 64
OWN_VOICE = "default"
"""The name of the profile's own voice."""
PATIENCE = {"low": (1.6, 8.0), "medium": (1.0, 4.0), "auto": (1.0, 4.0), "high": (0.7, 2.0)}
"""Eagerness -> how far silences are stretched, and the longest silence in seconds."""


class ProtocolError(Exception):
    """An `error` event; the connection stays open."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


@dataclass(frozen=True, slots=True)
class Settings:
    """One session's settings."""

    instructions: str
    voice: str
    voices: tuple[str, ...]
    """The names that `voice` may have; the first is the profile's own."""
    spoken: bool = True
    most_tokens: int | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    input_format: Format = "audio/pcm"
    output_format: Format = "audio/pcm"
    detection: TurnDetectionConfig = field(default_factory=TurnDetectionConfig)
    turn_detection: Mapping[str, Any] | None = None
    """As the client sees it."""
    idle_s: float | None = None
    levels: bool = False

    def updated(self, patch: Any) -> Settings:
        """With the parts that a client's `session` object gives. Raises ProtocolError."""
        session = _object(patch, "session")
        if session.get("type", "realtime") != "realtime":
            raise ProtocolError("invalid_value", "session.type must be 'realtime'.", "session.type")
        new = self._with_words(session, "session")
        if "audio" in session:
            audio = _object(session["audio"], "session.audio")
            if audio.get("input") is not None:
                new = new._with_input(_object(audio["input"], "session.audio.input"))
            if audio.get("output") is not None:
                new = new._with_output(audio["output"], "session.audio.output")
        if session.get("duologue") is not None:
            levels = _object(session["duologue"], "session.duologue").get("levels", new.levels)
            if not isinstance(levels, bool):
                raise ProtocolError("invalid_type", "levels must be true or false.", "session.duologue.levels")
            new = replace(new, levels=levels)
        return new

    def for_response(self, patch: Any) -> Settings:
        """With what one `response.create` overrides. Raises ProtocolError."""
        response = _object(patch, "response")
        for key, none in (("conversation", "auto"), ("input", None)):
            if response.get(key, none) not in (none, None):
                raise ProtocolError("unsupported_value", f"response.{key} is not supported.", f"response.{key}")
        new = self._with_words(response, "response")
        audio = response.get("audio")
        output = None if audio is None else _object(audio, "response.audio").get("output")
        return new if output is None else new._with_output(output, "response.audio.output")

    def manner(self, longest: int, speaker: Any) -> Manner:
        """How our conversation responds. longest: what the profile allows, in tokens. speaker: whom `voice` names."""
        tools = self.tools if self.tool_choice != "none" else ()
        most = longest if self.most_tokens is None else min(self.most_tokens, longest)
        return Manner(self.instructions, self.spoken, most, tools, speaker)

    def as_dict(self) -> dict[str, Any]:
        """The part of the `session` object that tells the settings."""
        return {
            "type": "realtime",
            "object": "realtime.session",
            "instructions": self.instructions,
            "output_modalities": ["audio" if self.spoken else "text"],
            "max_output_tokens": "inf" if self.most_tokens is None else self.most_tokens,
            "tools": [
                {"type": "function", "name": t.name, "description": t.description, "parameters": t.parameters} for t in self.tools
            ],
            "tool_choice": self.tool_choice,
            "audio": {
                "input": {
                    "format": _format_dict(self.input_format),
                    "transcription": {"model": "local"},
                    "noise_reduction": None,
                    "turn_detection": None if self.turn_detection is None else dict(self.turn_detection),
                },
                "output": {"format": _format_dict(self.output_format), "voice": self.voice, "speed": 1.0},
            },
        }

    def _with_words(self, given: Mapping[str, Any], where: str) -> Settings:
        new = self
        if given.get("instructions") is not None:
            new = replace(new, instructions=text_of(given["instructions"], f"{where}.instructions"))
        if given.get("output_modalities") is not None:
            if given["output_modalities"] not in (["audio"], ["text"]):
                raise ProtocolError(
                    "invalid_value", 'output_modalities must be ["audio"] or ["text"].', f"{where}.output_modalities"
                )
            new = replace(new, spoken=given["output_modalities"] == ["audio"])
        if given.get("max_output_tokens") is not None:
            most = given["max_output_tokens"]
            if most != "inf" and (not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= 4096):
                raise ProtocolError("invalid_value", "max_output_tokens is 1 to 4096, or 'inf'.", f"{where}.max_output_tokens")
            new = replace(new, most_tokens=None if most == "inf" else most)
        if given.get("tools") is not None:
            new = replace(new, tools=_tools(given["tools"], f"{where}.tools"))
        if given.get("tool_choice") is not None:
            if given["tool_choice"] not in ("auto", "none"):
                raise ProtocolError(
                    "unsupported_value", "tool_choice may be 'auto' or 'none': calls cannot be forced.", f"{where}.tool_choice"
                )
            new = replace(new, tool_choice=given["tool_choice"])
        return new

    def _with_input(self, given: Mapping[str, Any]) -> Settings:
        new = self
        if given.get("format") is not None:
            new = replace(new, input_format=_format(given["format"], "session.audio.input.format"))
        if "turn_detection" in given:
            new = new._with_detection(given["turn_detection"])
        return new

    def _with_output(self, value: Any, where: str) -> Settings:
        given, new = _object(value, where), self
        if given.get("format") is not None:
            new = replace(new, output_format=_format(given["format"], f"{where}.format"))
        if given.get("voice") is not None:
            voice = given["voice"]
            if isinstance(voice, Mapping):
                voice = voice.get("id")
            if not isinstance(voice, str):
                raise ProtocolError("invalid_type", "voice is a name.", f"{where}.voice")
            new = replace(new, voice=voice if voice in self.voices else self.voices[0])
        return new

    def _with_detection(self, given: Any) -> Settings:
        where = "session.audio.input.turn_detection"
        if given is None:
            return replace(self, detection=TurnDetectionConfig("manual"), turn_detection=None, idle_s=None)
        told = _object(given, where)
        kind = told.get("type", "server_vad")
        respond = _flag(told, "create_response", where)
        interrupt = _flag(told, "interrupt_response", where)
        shown: dict[str, Any] = {"type": kind, "create_response": respond, "interrupt_response": interrupt}
        if kind == "semantic_vad":
            eagerness = told.get("eagerness") or "auto"
            if not isinstance(eagerness, str) or eagerness not in PATIENCE:
                raise ProtocolError("invalid_value", f"eagerness is one of {', '.join(PATIENCE)}.", f"{where}.eagerness")
            patience, most_s = PATIENCE[eagerness]
            detection = TurnDetectionConfig(patience=patience, most_s=most_s, respond=respond, interrupt=interrupt)
            return replace(self, detection=detection, turn_detection={**shown, "eagerness": eagerness}, idle_s=None)
        if kind != "server_vad":
            raise ProtocolError("invalid_value", "turn_detection.type is server_vad or semantic_vad.", f"{where}.type")
        threshold = _number(told, "threshold", 0.5, 0.0, 1.0, where)
        padding_ms = _number(told, "prefix_padding_ms", 300, 0, 5000, where)
        silence_ms = _number(told, "silence_duration_ms", 500, 50, 30_000, where)
        idle = told.get("idle_timeout_ms")
        idle_ms = None if idle is None else _number(told, "idle_timeout_ms", 0, 1000, 600_000, where)
        detection = TurnDetectionConfig(
            "silence",
            silence_s=silence_ms / 1000,
            respond=respond,
            interrupt=interrupt,
            onset_threshold=min(max(threshold, 0.05), 0.95),
            preroll_s=padding_ms / 1000,
        )
        shown |= {
            "threshold": threshold,
            "prefix_padding_ms": padding_ms,
            "silence_duration_ms": silence_ms,
            "idle_timeout_ms": idle_ms,
        }
        return replace(self, detection=detection, turn_detection=shown, idle_s=None if idle_ms is None else idle_ms / 1000)


DEFAULT_DETECTION = {"type": "semantic_vad", "create_response": True, "interrupt_response": True, "eagerness": "auto"}


def text_of(value: Any, where: str) -> str:
    """A client's text, without halves of characters. Raises ProtocolError."""
    if not isinstance(value, str):
        raise ProtocolError("invalid_type", f"{where} must be a string.", where)
    if len(value) > MOST_CHARACTERS:
        raise ProtocolError("string_above_max_length", f"{where} may have {MOST_CHARACTERS} characters.", where)
    return value.encode("utf-8", "replace").decode("utf-8")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ProtocolError("invalid_type", f"{where} must be an object.", where)
    return value


def _flag(told: Mapping[str, Any], key: str, where: str) -> bool:
    value = told.get(key)
    if value is not None and not isinstance(value, bool):
        raise ProtocolError("invalid_type", f"{key} must be true or false.", f"{where}.{key}")
    return value is not False


def _number(told: Mapping[str, Any], key: str, default: float, least: float, most: float, where: str) -> float:
    value = told.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ProtocolError("invalid_value", f"{key} is a number from {least:g} to {most:g}.", f"{where}.{key}")
    return value


def _format(value: Any, where: str) -> Format:
    told = _object(value, where)
    for kind in RATE_HZ:
        if told.get("type") == kind:
            if kind == "audio/pcm" and told.get("rate", 24_000) != 24_000:
                raise ProtocolError("invalid_value", "audio/pcm has a rate of 24000.", f"{where}.rate")
            return kind
    raise ProtocolError("invalid_value", f"The format is one of {', '.join(RATE_HZ)}.", f"{where}.type")


def _format_dict(kind: Format) -> dict[str, Any]:
    return {"type": kind, "rate": 24_000} if kind == "audio/pcm" else {"type": kind}


def _tools(value: Any, where: str) -> tuple[Tool, ...]:
    if not isinstance(value, list) or len(value) > MOST_TOOLS:
        raise ProtocolError("invalid_type", f"tools is a list of at most {MOST_TOOLS} functions.", where)
    tools = []
    for index, entry in enumerate(value):
        told = _object(entry, f"{where}[{index}]")
        if told.get("type", "function") != "function":
            raise ProtocolError("unsupported_value", "Only tools of type function are supported.", f"{where}[{index}].type")
        name = told.get("name")
        if not isinstance(name, str) or not 1 <= len(name) <= 64 or not name.replace("_", "").replace("-", "").isalnum():
            raise ProtocolError(
                "invalid_value", "A function's name has 1 to 64 letters, digits, _ and -.", f"{where}[{index}].name"
            )
        description = text_of(told.get("description") or "", f"{where}[{index}].description")
        parameters = told.get("parameters") or {"type": "object", "properties": {}}
        text_of(json.dumps(_object(parameters, f"{where}[{index}].parameters")), f"{where}[{index}].parameters")
        tools.append(Tool(name, description, parameters))
    return tuple(tools)
