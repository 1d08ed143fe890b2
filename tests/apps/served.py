"""A Realtime server in a thread, for tests: uvicorn and the real server around doubles that hear what a tone means."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.doubles import LevelVad, ScriptedThinker, ToneVoice
from agent.host import Host, Loaded
from agent.parts import Parts
from agent.profiles import load_profile
from apps.realtime import AccessConfig, Door
from apps.serve_app import build_app
from apps.serve_thread import Running, running
from duplex.audio import USER_RATE_HZ, Samples
from duplex.predictor import RulePredictor
from encoders.ears import Transcript


@dataclass
class _Heard:
    start: int = 0
    end: int = 0
    sound: Samples = field(default_factory=lambda: np.zeros(0, np.float32))


class ToneEars:
    """Hears a phrase in a tone of its pitch (Hz); several one after another in one turn are several phrases."""

    def __init__(self, phrases: Mapping[int, str]) -> None:
        self.phrases = phrases

    @property
    def interim_s(self) -> float:
        return 0.6

    def open(self) -> _Heard:
        return _Heard()

    def feed(self, state: _Heard, samples: Samples) -> None:
        state.sound = np.concatenate([state.sound, samples])[-30 * USER_RATE_HZ :]
        state.end += len(samples)

    def begin_turn(self, state: _Heard, start: int) -> None:
        state.start = start

    def window(self, state: _Heard) -> tuple[Samples, int]:
        count = min(state.end - state.start, len(state.sound))
        return state.sound[len(state.sound) - count :].copy(), state.end

    def transcribe(self, window: tuple[Samples, int]) -> Transcript:
        sound, end = window
        found: list[str] = []
        for at in range(0, len(sound) - 1599, 1600):
            piece = sound[at : at + 1600]
            if float(np.abs(piece).mean()) > 0.02:
                pitch = float(np.abs(np.fft.rfft(piece)).argmax()) * 10
                text = next((t for hz, t in self.phrases.items() if abs(hz - pitch) < 40), None)
                if text is not None and found[-1:] != [text]:
                    found.append(text)
        return Transcript(" ".join(found), end)

    def settle(self, state: _Heard, window: Any, transcript: Transcript) -> None:
        pass


def tone(hz: int, lasts_s: float = 1.0, rate_hz: int = 24_000) -> bytes:
    """PCM16 of a phrase."""
    at = np.arange(round(lasts_s * rate_hz)) / rate_hz
    return (0.3 * 32767 * np.sin(2 * np.pi * hz * at)).astype("<i2").tobytes()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def doubles(phrases: Mapping[int, str], replies: Sequence[str], word_s: float = 0.25) -> Parts:
    return Parts(ToneEars(phrases), LevelVad(), ScriptedThinker(replies), ToneVoice(word_s), RulePredictor())


@dataclass
class Served:
    """A running server."""

    host: Host
    door: Door
    running: Running

    @property
    def port(self) -> int:
        return self.running.port

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return self.running.address


@contextmanager
def served(
    parts: Parts,
    max_sessions: int = 4,
    access: AccessConfig | None = None,
    profile: str = "tiny",
    voices: Mapping[str, Any] | None = None,
    others: Sequence[Loaded] = (),
    overrides: Sequence[str] = ("session.response.group_tokens=1",),
) -> Iterator[Served]:
    """A server on a free port, ended after the block. voices: those of the first profile; others: profiles beside it."""
    access = access or AccessConfig()
    host = Host(load_profile(profile, list(overrides)), parts, max_sessions=max_sessions, voices=voices, others=others)
    app = build_app(host, access)
    with running(app, access) as server:
        yield Served(host, app.state.door, server)
