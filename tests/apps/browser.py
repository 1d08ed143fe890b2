"""Chromium for the tests of the web page: a recording as its microphone, nothing but this machine reachable, its complaints kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile

from duplex.audio import Samples

MIC_RATE_HZ = 48000


def chromium_path() -> str:
    """Chromium's executable; skips with the reason where there is none, fails in CI."""
    pytest.importorskip("gradio", reason="needs the extra web: pip install 'duologue[web]'")
    found = (
        os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    )
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        found = None
    if found:
        return found
    reason = "needs Chromium (apt install chromium) and playwright (pip install 'duologue[dev]')"
    if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Seen:
    """What a page did besides what it shows."""

    foreign: list[str] = field(default_factory=list)
    """Addresses outside this machine that it asked for; all were refused."""
    errors: list[str] = field(default_factory=list)
    """Uncaught exceptions and console errors."""


@contextmanager
def browser_page(
    microphone: Path | None,
    *,
    allow_microphone: bool = True,
    arguments: tuple[str, ...] = (),
    sound_env: dict[str, str] | None = None,
    **context: Any,
) -> Iterator[tuple[Any, Seen]]:
    """A page of a fresh browser (playwright's Page) and what it does. `microphone`: a WAV that starts when the page opens the device.
    `sound_env`: the surroundings in which Chromium finds a sound card; without it, what it plays is heard nowhere. `context`: playwright's.
    """
    from playwright.sync_api import sync_playwright

    switches = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", *arguments]
    if allow_microphone:
        switches.append("--use-fake-ui-for-media-stream")
    if microphone is not None:
        switches += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}%noloop"]
    seen = Seen()

    def decide(route: Any) -> None:
        host = urlsplit(route.request.url).hostname
        if host in ("127.0.0.1", "localhost", None):
            route.continue_()
        else:
            seen.foreign.append(route.request.url)
            route.abort()

    executable = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=switches,
            env=sound_env,
            ignore_default_args=["--mute-audio"] if sound_env is not None else [],
        )
        try:
            page = browser.new_context(**context).new_page()
            page.route("**/*", decide)
            page.on("pageerror", lambda error: seen.errors.append(str(error)))
            page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
            page.set_default_timeout(30000)
            yield page, seen
        finally:
            browser.close()


def write_microphone(path: Path, sound: Samples, rate_hz: int, *, lead_s: float = 1.0, tail_s: float = 120.0) -> Path:
    """[n] samples at 16, 24 or 48 kHz as the fake microphone's file, with silence before and after."""
    import soxr

    audio = soxr.resample(sound, rate_hz, MIC_RATE_HZ) if rate_hz != MIC_RATE_HZ else sound
    silence = [np.zeros(round(seconds * MIC_RATE_HZ), np.float32) for seconds in (lead_s, tail_s)]
    soundfile.write(path, np.concatenate([silence[0], audio, silence[1]]), MIC_RATE_HZ, subtype="PCM_16")
    return path


def downloaded_recording(page: Any, path: Path) -> tuple[Samples, Samples, int]:
    """(user [n], agent [n], rate) of the recording that the page offers."""
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the recording").click()
    download.value.save_as(path)
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    assert audio.shape[1] == 2
    return audio[:, 0].copy(), audio[:, 1].copy(), int(rate)
