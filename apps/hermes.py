"""The Hermes protocol as plain values: topics and JSON in, messages out. No broker, no clock.

`parse` never raises anything but `HermesError`, which says what was wrong, to whom to tell it (the topic of `hermes/error/...`) and for
which site. Keys are camelCase on the wire; a missing siteId is "default", unknown keys are let pass, as all Hermes services do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

Component = Literal["asr", "tts", "dialogueManager", "hotword"]
"""The part of `hermes/error/<component>`."""
Ending = Literal["nominal", "abortedByUser", "intentNotRecognized", "timeout", "error"]
"""Why a session ended, as `sessionEnded` says it."""

DEFAULT_SITE = "default"
MOST_JSON_BYTES = 64 << 10
MOST_NAME = 128
MOST_TEXT = 4000
"""Longest text to be spoken, in characters: some five minutes."""


class HermesError(ValueError):
    """A message that cannot be followed."""

    def __init__(self, component: Component, text: str, site: str = DEFAULT_SITE, session: str | None = None) -> None:
        super().__init__(text)
        self.component, self.site, self.session = component, site, session


# -- what comes in -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AudioFrame:
    """A piece of a satellite's microphone; `wav` is not looked at yet."""

    site: str
    wav: bytes


@dataclass(frozen=True, slots=True)
class Played:
    """A satellite has played the sound (or stream) of that id to its end."""

    site: str
    id: str


@dataclass(frozen=True, slots=True)
class StartSession:
    """Somebody wants a conversation (action) or something said (notification) at a site."""

    site: str
    text: str = ""
    notification: bool = False
    queue: bool = True
    """May wait until the site is free."""
    custom: str | None = None
    lang: str | None = None
    wakeword: str | None = None
    """The wake word that asked for it."""
    announced: bool = True
    """False for `hermes/tts/say` at an idle site: nobody is told of a session, `sayFinished` follows instead."""
    say_id: str | None = None
    """What `sayFinished` then carries."""


@dataclass(frozen=True, slots=True)
class ContinueSession:
    """Say `text` in a running session and listen on."""

    session: str
    text: str
    custom: str | None = None


@dataclass(frozen=True, slots=True)
class EndSession:
    """Say `text`, if any, and end a session."""

    session: str
    text: str
    custom: str | None = None


@dataclass(frozen=True, slots=True)
class Say:
    """Speak a text at a site."""

    site: str
    text: str
    id: str | None
    session: str | None
    lang: str | None = None


@dataclass(frozen=True, slots=True)
class ListenToggle:
    """Open or close the ears of a site."""

    site: str
    on: bool


Incoming = AudioFrame | Played | StartSession | ContinueSession | EndSession | Say | ListenToggle


def parse(topic: str, payload: bytes) -> Incoming | None:
    """A message as a value; None for a topic that is not ours. Raises HermesError."""
    match topic.split("/"):
        case ["hermes", "audioServer", site, "audioFrame"] | ["hermes", "audioServer", site, _, "audioSessionFrame"]:
            return AudioFrame(_name("asr", site), payload)
        case ["hermes", "audioServer", site, "playFinished" | "streamFinished"]:
            said = _read("tts", payload)
            return Played(_name("tts", site), said.text("id"))
        case ["hermes", "hotword", wakeword, "detected"]:
            said = _read("hotword", payload)
            lang, custom = said.optional("lang"), said.optional("customData")
            return StartSession(said.site, queue=False, wakeword=_name("hotword", wakeword), lang=lang, custom=custom)
        case ["hermes", "dialogueManager", "startSession"]:
            return _start(_read("dialogueManager", payload))
        case ["hermes", "dialogueManager", "continueSession"]:
            said = _read("dialogueManager", payload)
            return ContinueSession(said.named("sessionId"), said.text("text"), said.optional("customData"))
        case ["hermes", "dialogueManager", "endSession"]:
            said = _read("dialogueManager", payload)
            return EndSession(said.named("sessionId"), said.text("text"), said.optional("customData"))
        case ["hermes", "tts", "say"]:
            said = _read("tts", payload)
            if not (text := said.text("text")):
                raise HermesError("tts", "say needs a text", said.site)
            return Say(said.site, text, said.optional("id"), said.optional("sessionId"), said.optional("lang"))
        case ["hermes", "asr", "toggleOn" | "toggleOff" as which]:
            return ListenToggle(_read("asr", payload).site, which == "toggleOn")
    return None


def is_name(name: Any) -> bool:
    """Whether something can stand in a topic as a site."""
    return isinstance(name, str) and 0 < len(name) <= MOST_NAME and name.isprintable() and not set(name) & set("/+#")


def _start(said: _Fields) -> StartSession:
    raw = said.values.get("init")
    init = _Fields(said.component, raw if isinstance(raw, dict) else {}, said.site)
    kind = init.values.get("type", "action")
    custom, lang, text = said.optional("customData"), said.optional("lang"), init.text("text")
    if kind == "notification":
        if not text:
            raise HermesError("dialogueManager", "a notification needs init.text", said.site)
        return StartSession(said.site, text, True, True, custom, lang)
    if kind != "action":
        raise HermesError("dialogueManager", f"init.type must be action or notification, not {kind!r:.40}", said.site)
    return StartSession(said.site, text, False, init.values.get("canBeEnqueued") is not False, custom, lang)


@dataclass(frozen=True, slots=True)
class _Fields:
    """The keys of a JSON object, asked for by type."""

    component: Component
    values: dict[str, Any]
    site: str = DEFAULT_SITE

    def text(self, key: str) -> str:
        """A text without outer blanks; "" when there is none."""
        value = self.values.get(key)
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > MOST_TEXT:
            raise HermesError(self.component, f"{key} must be a text of at most {MOST_TEXT} characters", self.site)
        if any(0xD800 <= ord(c) <= 0xDFFF for c in value):
            raise HermesError(self.component, f"{key} is not valid Unicode (a lone surrogate)", self.site)
        return value.strip()

    def optional(self, key: str) -> str | None:
        """A text as it is, None when there is none."""
        self.text(key)
        value: str | None = self.values.get(key)
        return value

    def named(self, key: str) -> str:
        """A text that must be there."""
        if not (value := self.text(key)):
            raise HermesError(self.component, f"{key} is missing", self.site)
        return value


def _read(component: Component, payload: bytes) -> _Fields:
    if len(payload) > MOST_JSON_BYTES:
        raise HermesError(component, f"the message has {len(payload)} bytes; {MOST_JSON_BYTES} are allowed")
    try:
        values = json.loads(payload or b"{}")
    except (ValueError, RecursionError) as error:
        raise HermesError(component, f"the message is not JSON ({str(error)[:80]})") from None
    if not isinstance(values, dict):
        raise HermesError(component, "the message must be a JSON object")
    site = values.get("siteId")
    return _Fields(component, values, _name(component, DEFAULT_SITE if site is None else site))


def _name(component: Component, name: Any) -> str:
    """A site or wake word that can stand in a topic."""
    if not is_name(name):
        raise HermesError(component, f"{name!r:.60} is no name: it must be 1 to {MOST_NAME} printable characters without / + #")
    return str(name)


# -- what goes out -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to the broker."""

    topic: str
    payload: bytes
    keep: bool = True
    """Kept while the broker is away, and sent with acknowledgement (QoS 1); False for sound and fleeting events."""
    retain: bool = False


def session_queued(session: str, start: StartSession) -> Outgoing:
    """The session waits until its site is free."""
    return _json("hermes/dialogueManager/sessionQueued", sessionId=session, siteId=start.site, customData=start.custom)


def session_started(session: str, start: StartSession) -> Outgoing:
    """The conversation begins."""
    return _json(
        "hermes/dialogueManager/sessionStarted", sessionId=session, siteId=start.site, customData=start.custom, lang=start.lang
    )


def session_ended(session: str, site: str, custom: str | None, ending: Ending, error: str | None = None) -> Outgoing:
    """The conversation is over, and why."""
    termination = {"reason": ending} | ({"error": error} if error else {})
    return _json("hermes/dialogueManager/sessionEnded", termination=termination, sessionId=session, siteId=site, customData=custom)


def text_captured(
    session: str, site: str, text: str, seconds: float, wakeword: str | None = None, lang: str | None = None
) -> Outgoing:
    """The user has finished a turn; the ears give no likelihood, so it is 1."""
    return _json(
        "hermes/asr/textCaptured",
        text=text,
        likelihood=1.0,
        seconds=round(seconds, 3),
        siteId=site,
        sessionId=session,
        wakewordId=wakeword,
        asrTokens=None,
        lang=lang,
    )


def listening(session: str, site: str, on: bool) -> Outgoing:
    """Tells satellites that keep their microphone to themselves when to send it here."""
    if on:
        return _json("hermes/asr/startListening", siteId=site, sessionId=session, stopOnSilence=False, sendAudioCaptured=False)
    return _json("hermes/asr/stopListening", siteId=site, sessionId=session)


def hotword(site: str, on: bool) -> Outgoing:
    """Wake-word services rest while a conversation runs."""
    return _json(f"hermes/hotword/toggle{'On' if on else 'Off'}", siteId=site, reason="dialogueSession")


def say_finished(site: str, id: str | None, session: str | None) -> Outgoing:
    """What `hermes/tts/say` asked for has been said."""
    return _json("hermes/tts/sayFinished", siteId=site, id=id, sessionId=session)


def error(component: Component, text: str, site: str, session: str | None = None, context: str | None = None) -> Outgoing:
    """Something that was asked for cannot be done."""
    return _json(f"hermes/error/{component}", error=text, siteId=site, sessionId=session, context=context)


def play(site: str, id: str, wav: bytes) -> Outgoing:
    """A sound to play, answered by playFinished."""
    return Outgoing(f"hermes/audioServer/{site}/playBytes/{id}", wav, keep=False)


def play_stream(site: str, id: str, index: int, last: bool, wav: bytes) -> Outgoing:
    """A piece of a sound to play, the last one answered by streamFinished."""
    return Outgoing(f"hermes/audioServer/{site}/playBytesStreaming/{id}/{index}/{int(last)}", wav, keep=False)


def status(online: bool) -> Outgoing:
    """Our own: whether the agent is there; also its last will."""
    return Outgoing("duologue/status", b"online" if online else b"offline", retain=True)


def state(site: str, name: str) -> Outgoing:
    """Our own: what happens at a site, in one word."""
    return Outgoing(f"duologue/{site}/state", name.encode(), retain=True)


def event(site: str, session: str, values: dict[str, Any], keep: bool) -> Outgoing:
    """Our own: one event of the conversation, as the events file has it."""
    body = json.dumps({**values, "siteId": site, "sessionId": session}, ensure_ascii=False)
    return Outgoing(f"duologue/{site}/event", body.encode(), keep=keep)


def topics(sites: tuple[str, ...]) -> list[str]:
    """What to subscribe to, for these sites or, when there are none, for all."""
    audio = [
        f"hermes/audioServer/{site}/{what}"
        for site in sites or ("+",)
        for what in ("audioFrame", "+/audioSessionFrame", "playFinished", "streamFinished")
    ]
    asked = [f"hermes/dialogueManager/{what}Session" for what in ("start", "continue", "end")]
    return [*audio, *asked, "hermes/hotword/+/detected", "hermes/tts/say", "hermes/asr/toggleOn", "hermes/asr/toggleOff"]


def _json(topic: str, **values: Any) -> Outgoing:
    return Outgoing(topic, json.dumps(values, ensure_ascii=False).encode())
