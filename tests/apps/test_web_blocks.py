"""The page in a real Chromium, against a server that does what the test says: what it shows and what it sends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gradio", reason="needs the extra web: pip install 'duologue[web]'")


from apps.web_blocks import PageConfig, ProfileChoice
from tests.apps.browser import browser_page, downloaded_recording, write_microphone
from tests.apps.scripted_realtime import ScriptedRealtime
from tests.apps.web_stage import EXCHANGE, page_served, strength, talk, tone

pytestmark = pytest.mark.browser


@pytest.fixture
def server() -> Iterator[tuple[ScriptedRealtime, str]]:
    with page_served() as served:
        yield served


def test_the_page_shows_a_conversation(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    scripted, url = server
    microphone = write_microphone(tmp_path / "mic.wav", tone(440, 30, 48000), 48000, lead_s=0)
    with browser_page(microphone) as (page, seen):
        page.goto(url)
        page.get_by_role("checkbox", name="Record both sides").check()
        page.get_by_role("button", name="Talk").click()
        scripted.wait_for(lambda: len(scripted.of("input_audio_buffer.append")) > 50)
        session = scripted.of("session.update")[-1]["session"]
        assert session["instructions"] == "You are kind." and session["duologue"] == {"levels": True}
        log = page.get_by_role("log", name="Transcript")

        scripted.send(*EXCHANGE)
        scripted.send({"type": "duologue.voice", "active": True, "at_ms": 200})
        transcript = {"type": "conversation.item.input_audio_transcription.delta", "item_id": "u1", "delta": ""}
        scripted.send({**transcript, "transcript": "What do trees"}, {**transcript, "transcript": "What do bees"})
        page.wait_for_function("document.querySelector('.interim')?.textContent === 'What do bees'")
        page.wait_for_function("document.querySelector('.status').textContent === 'You speak.'")
        scripted.send({"type": "duologue.voice", "active": False, "at_ms": 900})
        scripted.send({**transcript, "type": transcript["type"].replace("delta", "completed"), "transcript": "What do bees make?"})
        page.wait_for_function("document.querySelector('.turn.user').textContent.includes('make?')")
        assert log.locator(".interim").count() == 0

        text = "Bees make honey, and wax, and a lot of noise."
        scripted.send({"type": "response.output_item.added", "item": {"type": "message", "id": "a1"}})
        scripted.send({"type": "duologue.floor", "floor": "agent", "at_ms": 1500})
        scripted.send({"type": "duologue.latency", "item_id": "a1", "response_ms": 640})
        scripted.send({"type": "duologue.heard", "item_id": "a1", "heard": "Bees make", "text": text, "final": False})
        scripted.send(scripted.packet("a1", tone(300, 1.0)))
        scripted.wait_for(lambda: scripted.played_ms("a1") > 950)
        assert log.locator(".coming").text_content() == " honey, and wax, and a lot of noise."
        assert page.evaluate("duologue.conversation.speech.agent.length") == 1
        scripted.send({"type": "duologue.backchannel", "text": "mm-hm", "at_ms": 2000})

        scripted.send({"type": "input_audio_buffer.speech_started", "item_id": "u2", "audio_start_ms": 2400})
        scripted.send({"type": "duologue.latency", "item_id": "a1", "stop_ms": 170})
        scripted.send({"type": "duologue.heard", "item_id": "a1", "heard": "Bees make honey,", "text": text, "final": True})
        cancelled = {"status": "cancelled", "output": [{"type": "message", "id": "a1"}]}
        scripted.send({"type": "response.done", "response": cancelled})
        page.wait_for_selector(".turn.agent s")
        assert log.locator("s").text_content() == " and wax, and a lot of noise."
        assert "after 0.64 s" in log.inner_text() and "silent after 0.17 s" in log.inner_text() and "mm-hm" in log.inner_text()
        page.wait_for_function("document.querySelector('.figures').textContent.includes('1 answer, the last after 0.64 s')")
        assert page.locator("svg .response").count() == 1 and page.locator("svg .stop").count() == 1
        acks = scripted.of("duologue.playback.ack")
        assert acks and all(ack["item_id"] == "a1" for ack in acks)
        assert [ack["played_ms"] for ack in acks] == sorted(ack["played_ms"] for ack in acks)
        assert acks[-1]["played_ms"] <= 1000

        page.get_by_role("button", name="Stop", exact=True).click()
        user, agent, rate = downloaded_recording(page, tmp_path / "conversation.wav")
        assert rate == 24000 and strength(user[24000:], 440) > 0.9
        loud = agent[np.abs(agent) > 0.01]
        assert len(loud) > 0.9 * 24000 and strength(agent[np.flatnonzero(np.abs(agent) > 0.2)[0] :][:12000], 300) > 0.95
        assert strength(scripted.microphone()[24000:], 440) > 0.9
        assert (seen.foreign, seen.errors) == ([], [])


def test_settings_are_sent_when_they_change(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    scripted, url = server
    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 0.1), 24000)) as (page, _):
        talk(page, url, scripted)
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Quick").check()
        page.get_by_label("System prompt").fill("You are a pirate.")
        page.get_by_label("System prompt").blur()
        scripted.wait_for(lambda: scripted.of("session.update")[-1]["session"]["instructions"] == "You are a pirate.")
        page.get_by_label("Voice").click()
        page.get_by_role("option", name="amy").click()
        audio = {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}}, "output": {"voice": "amy"}}
        scripted.wait_for(lambda: scripted.of("session.update")[-1]["session"]["audio"] == audio)
        assert page.get_by_label("Profile").is_disabled()


SEVERAL = PageConfig(
    {
        "edge": ProfileChoice(("default",), "You are kind."),
        "minmo-7b": ProfileChoice(("default", "amy"), "You are brief."),
    }
)


def test_a_profile_is_chosen_with_its_voices_and_its_prompt(tmp_path: Path) -> None:
    microphone = write_microphone(tmp_path / "mic.wav", tone(440, 0.1), 24000)
    with page_served(SEVERAL) as (scripted, url), browser_page(microphone) as (page, seen):
        page.goto(url)
        page.get_by_role("button", name="Settings").click()
        assert page.get_by_label("Voice").count() == 0, "a single voice is no choice"
        choose(page, "Profile", "minmo-7b")
        page.wait_for_function("document.querySelector('#settings textarea').value === 'You are brief.'")
        choose(page, "Voice", "amy")
        page.wait_for_function("window.duologueSettings.voice === 'amy'")
        page.get_by_role("button", name="Talk").click()
        scripted.wait_for(lambda: scripted.of("session.update"))
        assert scripted.queries[-1]["model"] == "minmo-7b"
        session = scripted.of("session.update")[-1]["session"]
        assert (session["instructions"], session["audio"]["output"]) == ("You are brief.", {"voice": "amy"})

        count = len(scripted.of("session.update"))
        page.get_by_label("System prompt").fill("You are a pirate.")
        page.get_by_label("System prompt").blur()
        scripted.wait_for(lambda: len(scripted.of("session.update")) > count)
        choose(page, "Profile", "edge")
        page.wait_for_function("document.querySelector('.transcript').textContent.includes('You still talk with minmo-7b.')")
        page.wait_for_function("window.duologueSettings.profile === 'edge' && window.duologueSettings.voice === 'default'")
        assert scripted.of("session.update")[-1]["session"]["audio"]["output"] == {"voice": "amy"}, (
            "of the other profile nothing is sent"
        )
        page.get_by_role("button", name="Stop", exact=True).click()
        page.get_by_role("button", name="Talk").click()
        scripted.wait_for(lambda: len(scripted.queries) == 2 and len(scripted.of("session.update")) > count + 1)
        assert scripted.queries[-1]["model"] == "edge"
        assert scripted.of("session.update")[-1]["session"]["instructions"] == "You are a pirate.", "what the user wrote stays"
        assert scripted.of("session.update")[-1]["session"]["audio"]["output"] == {"voice": "default"}
        assert seen.errors == []


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_label(label).click()
    page.get_by_role("option", name=option).click()


def test_a_keyboard_is_enough_and_everything_has_a_name(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    scripted, url = server
    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 0.1), 24000), viewport={"width": 390, "height": 844}) as (
        page,
        _,
    ):
        page.goto(url)
        page.wait_for_selector(".talk:enabled")
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.className") == "talk":
                break
        assert page.evaluate("document.activeElement.className") == "talk"
        page.keyboard.press("Enter")
        scripted.wait_for(lambda: scripted.of("session.update"))
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, canvas, svg[role], [role=meter], [role=log]")]
              .filter((e) => e.checkVisibility() && !e.getAttribute("aria-label") && !e.getAttribute("aria-labelledby")
                && !e.labels?.length && !e.textContent.trim())
              .map((e) => e.outerHTML.slice(0, 120))"""
        )
        assert unnamed == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "no sideways scrolling on a phone"


def test_text_has_contrast_in_light_and_dark(server: tuple[ScriptedRealtime, str]) -> None:
    """At least 4.5 to 1 against what lies behind it, as WCAG AA asks."""
    _, url = server
    for scheme in ("light", "dark"):
        with browser_page(None, color_scheme=scheme) as (page, _):
            page.goto(url)
            page.wait_for_selector(".talk:enabled")
            page.get_by_role("button", name="Settings").click()
            page.get_by_label("System prompt").wait_for()
            low = page.evaluate(
                """() => {
                  const luminance = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
                    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
                  const color = (text) => text.match(/[\\d.]+/g).map(Number);
                  const behind = (e) => { for (; e; e = e.parentElement) { const c = color(getComputedStyle(e).backgroundColor);
                    if (c.length < 4 || c[3] > 0.5) return c.slice(0, 3); } return [255, 255, 255]; };
                  return [...document.querySelectorAll(":is(.duologue, #settings) :is(p, span, b, button, label)")]
                    .filter((e) => e.checkVisibility() && e.textContent.trim() && !e.disabled)
                    .map((e) => { const [a, b] = [luminance(color(getComputedStyle(e).color).slice(0, 3)), luminance(behind(e))];
                      return [e.className + e.textContent.slice(0, 20), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; })
                    .filter(([, ratio]) => ratio < 4.5);
                }"""
            )
            assert low == [], scheme
            background = page.evaluate("getComputedStyle(document.querySelector('.transcript')).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")


def test_answers_carry_the_security_headers(server: tuple[ScriptedRealtime, str]) -> None:
    import urllib.request

    _, url = server
    for path in ("/", "/web_page/page.js"):
        with urllib.request.urlopen(url + path) as answer:
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            assert "http" not in answer.headers["Content-Security-Policy"]
