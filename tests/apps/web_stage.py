"""What the tests of the page share: the page on a scripted server, tones, and how much of a sound is a tone."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gradio", reason="needs the extra web: pip install 'duologue[web]'")

from fastapi import FastAPI

from apps.web_blocks import PageConfig, ProfileChoice, mount_page
from duplex.audio import Samples
from tests.apps.scripted_realtime import ScriptedRealtime, free_port, running

PAGE = PageConfig({"edge": ProfileChoice(("joe", "amy"), "You are kind.")})
EXCHANGE: tuple[dict[str, Any], ...] = (
    {"type": "input_audio_buffer.speech_started", "item_id": "u1", "audio_start_ms": 200},
    {"type": "duologue.floor", "floor": "user", "at_ms": 200},
)


@contextmanager
def page_served(page: PageConfig = PAGE) -> Iterator[tuple[ScriptedRealtime, str]]:
    """The page on a scripted server, and its address."""
    app, scripted = FastAPI(), ScriptedRealtime()
    scripted.install(app)
    with running(mount_page(app, page), free_port()) as url:
        yield scripted, url


def tone(hz: float, duration_s: float, rate_hz: int = 24000) -> Samples:
    samples: Samples = (0.3 * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate_hz)) / rate_hz)).astype(np.float32)
    return samples


def strength(sound: Samples, hz: float, rate_hz: int = 24000) -> float:
    """Share of the sound's energy within 20 Hz of a frequency."""
    spectrum = np.abs(np.fft.rfft(sound)) ** 2
    near = np.abs(np.fft.rfftfreq(len(sound), 1 / rate_hz) - hz) < 20
    return float(spectrum[near].sum() / max(spectrum.sum(), 1e-12))


def pcm16(sound: Samples) -> str:
    return base64.b64encode((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()).decode()


def talk(page: Any, url: str, scripted: ScriptedRealtime | None = None) -> None:
    page.goto(url)
    page.get_by_role("button", name="Talk").click()
    if scripted is not None:
        scripted.wait_for(lambda: len(scripted.of("input_audio_buffer.append")) > 10)
