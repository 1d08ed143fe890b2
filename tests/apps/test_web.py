"""The web door as its user meets it: the command, and Chromium in a conversation with the real weights, heard back from its recording."""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gradio", reason="needs the extra web: pip install 'duologue[web]'")

from agent.build import build_parts
from agent.host import Host
from agent.parts import Parts
from agent.profiles import Profile, load_profile
from apps.bench_clips import clips
from apps.realtime import AccessConfig
from apps.serve import check_certificate
from apps.web import add_arguments, web_app
from duplex.audio import Samples
from duplex.errors import ConfigError
from duplex.levels import level_db
from duplex.resample import resample
from tests.apps.browser import browser_page, downloaded_recording, write_microphone
from tests.apps.scripted_realtime import free_port, running

ROOT = Path(__file__).parents[2]


@contextmanager
def web(profile: Profile, parts: Parts, **options: Any) -> Iterator[tuple[Host, str]]:
    """The door in a thread of this process, on loaded parts."""
    host = Host(profile, parts, max_sessions=1)
    with running(web_app(host, AccessConfig(**options)), free_port()) as url:
        yield host, url


# -- the command --------------------------------------------------------------------------------------------------------------------


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_arguments_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    assert arguments().port == 7860 and arguments().host == "127.0.0.1"
    check_certificate(arguments())
    with pytest.raises(ConfigError, match="both"):
        check_certificate(arguments("--ssl-certfile", "cert.pem"))
    with pytest.raises(ConfigError, match="no file"):
        check_certificate(arguments("--ssl-certfile", str(tmp_path / "cert.pem"), "--ssl-keyfile", str(tmp_path / "key.pem")))


def test_the_command_prints_its_address_and_ends_on_sigterm() -> None:
    command = [sys.executable, "-m", "apps", "web", "--profile", "tiny", "--port", "0", "--api-key", "a b"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if "Listening" in line)
            found = re.search(r"http://127\.0\.0\.1:\d+/#key=a%20b$", line.strip())
            assert found, line
            with urllib.request.urlopen(found[0].partition("#")[0]) as answer:
                assert "Duologue" in answer.read().decode()
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


# -- with a server of real sessions -------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_keys_and_places(tmp_path: Path) -> None:
    """The real server behind the page: a key in the address lets in, none is explained, and the second of one place is told so."""
    profile = load_profile("tiny")
    microphone = write_microphone(tmp_path / "mic.wav", np.zeros(1600, np.float32), 16000)
    with web(profile, build_parts(profile), api_key="secret") as (host, url):
        with browser_page(microphone) as (page, seen), browser_contexts(page) as other:
            page.goto(f"{url}/")
            page.get_by_role("button", name="Talk").click()
            _wait_for_problem(page, "asks for an access key")
            page.get_by_role("button", name="Settings").click()
            _enter_key(page, "wrong")
            page.get_by_role("button", name="Talk").click()
            _wait_for_problem(page, "the access key is wrong")
            _enter_key(page, "secret")
            page.get_by_role("button", name="Talk").click()
            page.wait_for_function("document.querySelector('.status').textContent === 'Listening.'")
            assert host.places_taken == 1
            other.goto(f"{url}/#key=secret")
            other.get_by_role("button", name="Talk").click()
            _wait_for_problem(other, "All places")
            page.get_by_role("button", name="Stop", exact=True).click()
            _wait_for_places(page, host)
            other.get_by_role("button", name="Talk").click()
            other.wait_for_function("document.querySelector('.status').textContent === 'Listening.'")
            other.close()
            _wait_for_places(page, host)
            assert seen.foreign == []


def _wait_for_problem(page: Any, text: str) -> None:
    """The page explains what went wrong."""
    deadline = time.monotonic() + 30
    while text not in (shown := page.locator(".problem").text_content()):
        assert time.monotonic() < deadline, f"the page says {shown!r}, and {page.locator('.status').text_content()!r}"
        page.wait_for_timeout(50)


def _wait_for_places(page: Any, host: Host) -> None:
    """A page that is stopped or closed leaves by itself, long before a lost connection would be given up."""
    deadline = time.monotonic() + 20
    while host.places_taken:
        assert time.monotonic() < deadline, "the conversation goes on without its page"
        page.wait_for_timeout(50)


def _enter_key(page: Any, key: str) -> None:
    """As a person does, who takes longer to the Talk button than Gradio to take note of the key."""
    field = page.get_by_label("Access key")
    field.clear()
    field.press_sequentially(key)  # key by key: of a field that has just appeared Gradio may miss a first event
    field.press("Tab")
    page.wait_for_function("key => window.duologueSettings.key === key", arg=key)


@contextmanager
def browser_contexts(page: Any) -> Iterator[Any]:
    """A second, independent page of the same browser."""
    other = page.context.browser.new_context().new_page()
    yield other
    other.context.close()


# -- a conversation -----------------------------------------------------------------------------------------------------------------


def utterances(sound: Samples, rate_hz: int, gap_s: float = 0.6) -> list[Samples]:
    """[n] -> the stretches at 16 kHz that lie between silences of at least gap_s."""
    audio = resample(sound, rate_hz, 16000)
    frames = [level_db(audio[at : at + 320]) > -45 for at in range(0, len(audio) - 320, 320)]
    loud = np.flatnonzero(frames)
    found, start = [], int(loud[0])
    for this, following in zip(loud, [*loud[1:], 10**9], strict=True):
        if following - this > gap_s * 50:
            found.append(audio[max(start - 10, 0) * 320 : (int(this) + 10) * 320])
            start = int(following)
    return [part for part in found if len(part) > 0.4 * 16000]


def heard(parts: Parts, sound: Samples, rate_hz: int) -> str:
    """What our ears hear in a recording."""
    words = []
    for part in utterances(sound, rate_hz):
        for at in range(0, len(part), 20 * 16000):
            state = parts.ears.open()
            parts.ears.feed(state, part[at : at + 20 * 16000])
            parts.ears.begin_turn(state, 0)
            words.append(parts.ears.transcribe(parts.ears.window(state)).text)
    return " ".join(words)


def likeness(a: str, b: str, unit: str = "[a-z0-9']+") -> float:
    """Share of words (or of letters: a voice's few words, of which the recogniser mishears some) in common, in order."""
    left, right = (re.findall(unit, text.lower()) for text in (a, b))
    return SequenceMatcher(None, left, right, autojunk=False).ratio()


TURNS = (clips("long_questions")[0], clips("interruptions")[0], clips("questions")[6])


def three_turns(path: Path) -> Path:
    """A request, an interruption five and a half seconds after it, when even a slow machine has said some words, and a last question."""
    silence = lambda seconds: np.zeros(round(seconds * 16000), np.float32)  # noqa: E731
    request, interruption, question = (clip.samples() for clip in TURNS)
    sound = np.concatenate([silence(1.0), request, silence(5.5), interruption, silence(8.0), question])
    return write_microphone(path, sound, 16000)


@dataclass
class Talked:
    """What was seen of a conversation, and heard in its recording."""

    late: int
    latencies: list[dict[str, Any]]
    speech: dict[str, list[Any]]
    said: list[str]
    heard: list[str]
    unheard: list[str]
    user: Samples
    agent: Samples
    rate_hz: int
    complaints: list[str]


def talk_in_the_browser(profile: Profile, parts: Parts, folder: Path) -> Talked | int:
    """The conversation, or, if it did not come to its end in time, how often the machine was late."""
    from playwright.sync_api import TimeoutError as NotInTime

    with web(profile, parts) as (host, url), browser_page(three_turns(folder / "mic.wav")) as (page, seen):
        page.goto(url)
        page.get_by_role("checkbox", name="Record both sides").check()
        page.get_by_role("button", name="Talk").click()
        page.set_default_timeout(90000)
        try:
            page.wait_for_function("document.querySelector('.transcript').textContent.match(/bees/i)")
            page.wait_for_function("duologue.conversation.current === null && duologue.conversation.latencies.length >= 3")
        except NotInTime:
            print(page.locator(".transcript").inner_text())
            return host.deadline_misses
        page.wait_for_timeout(500)
        page.screenshot(path=folder / "conversation.png", full_page=True)
        latencies = page.evaluate("duologue.conversation.latencies")
        speech = page.evaluate("({...duologue.conversation.speech})")
        said = page.locator(".turn.user > span").all_inner_texts()
        heard_of_agent = page.locator(".turn.agent > span > span").all_inner_texts()
        unheard = page.locator(".turn.agent s").all_inner_texts()
        page.get_by_role("button", name="Stop", exact=True).click()
        sound = downloaded_recording(page, folder / "conversation.wav")
        complaints = seen.foreign + seen.errors
        return Talked(host.deadline_misses, latencies, speech, said, heard_of_agent, unheard, *sound, complaints)


@pytest.mark.browser
@pytest.mark.weights
def test_three_turns_with_an_interruption(edge_weights: dict[str, Path], tmp_path: Path) -> None:
    profile = load_profile("edge")
    parts = build_parts(profile)
    talked = talk_in_the_browser(profile, parts, tmp_path)
    if isinstance(talked, int) and talked:  # the microphone does not wait for a machine that is busy with something else
        talked = talk_in_the_browser(profile, parts, tmp_path)
    assert isinstance(talked, Talked), f"the conversation did not come to its end; the machine was late {talked} times"

    assert talked.complaints == []
    expected = " ".join(clip.text for clip in TURNS)
    assert likeness(" ".join(talked.said), expected) > 0.75, talked.said
    assert talked.unheard or talked.late, (
        "words that the interruption cut off are struck out, if the machine was quick enough to write them"
    )
    assert sum(turn["stopS"] is not None for turn in talked.latencies) == 1
    assert all(0 < turn["responseS"] < 5 for turn in talked.latencies if turn["responseS"] is not None), talked.latencies
    assert len(talked.speech["user"]) >= 3 and len(talked.speech["agent"]) >= 3
    assert likeness(heard(parts, talked.user, talked.rate_hz), expected) > 0.75
    told = " ".join(talked.heard)
    assert likeness(heard(parts, talked.agent, talked.rate_hz), told, "[a-z0-9]") > 0.8, told
