"""The page in a real Chromium, against a server that does what the test says: what it shows, sends, and says when things go wrong."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gradio", reason="needs the extra web: pip install 'duologue[web]'")

from fastapi import FastAPI

from apps.bench_clips import clips
from apps.web_blocks import PageConfig, mount_page
from duplex.audio import Samples
from duplex.levels import level_db
from duplex.resample import resample
from tests.apps.browser import browser_page, downloaded_recording, write_microphone
from tests.apps.scripted_realtime import ScriptedRealtime, free_port, running

pytestmark = pytest.mark.browser
PAGE = PageConfig(("edge",), ("joe", "amy"), "You are kind.")


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


@pytest.fixture
def server() -> Iterator[tuple[ScriptedRealtime, str]]:
    app, scripted = FastAPI(), ScriptedRealtime()
    scripted.install(app)
    with running(mount_page(app, PAGE), free_port()) as url:
        yield scripted, url


def talk(page: Any, url: str, scripted: ScriptedRealtime | None = None) -> None:
    page.goto(url)
    page.get_by_role("button", name="Talk").click()
    if scripted is not None:
        scripted.wait_for(lambda: len(scripted.of("input_audio_buffer.append")) > 10)


EXCHANGE: tuple[dict[str, Any], ...] = (
    {"type": "input_audio_buffer.speech_started", "item_id": "u1", "audio_start_ms": 200},
    {"type": "duologue.floor", "floor": "user", "at_ms": 200},
)


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
        assert log.locator(".interim").text_content() == "What do bees"
        assert page.get_by_role("status").first.text_content() == "You speak."
        scripted.send({"type": "duologue.voice", "active": False, "at_ms": 900})
        scripted.send({**transcript, "type": transcript["type"].replace("delta", "completed"), "transcript": "What do bees make?"})
        page.wait_for_function("document.querySelector('.turn.user').textContent.includes('make?')")
        assert log.locator(".interim").count() == 0

        text = "Bees make honey, and wax, and a lot of noise."
        scripted.send({"type": "response.output_item.added", "item": {"type": "message", "id": "a1"}})
        scripted.send({"type": "duologue.floor", "floor": "agent", "at_ms": 1500})
        scripted.send({"type": "duologue.latency", "item_id": "a1", "response_ms": 640})
        scripted.send({"type": "duologue.heard", "item_id": "a1", "heard": "Bees make", "text": text, "final": False})
        scripted.say("a1", tone(300, 1.0))
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
        assert page.locator("svg .response").count() == 1 and page.locator("svg .stop").count() == 1
        assert "1 answer, the last after 0.64 s" in page.locator(".figures").inner_text()
        acks = scripted.of("duologue.playback.ack")
        assert acks and all(ack["item_id"] == "a1" for ack in acks)
        assert [ack["played_ms"] for ack in acks] == sorted(ack["played_ms"] for ack in acks)
        assert 700 <= acks[-1]["played_ms"] <= 1000

        page.get_by_role("button", name="Stop", exact=True).click()
        user, agent, rate = downloaded_recording(page, tmp_path / "conversation.wav")
        assert rate == 24000 and strength(user[24000:], 440) > 0.9
        loud = agent[np.abs(agent) > 0.01]
        assert len(loud) > 0.9 * 24000 and strength(agent[np.flatnonzero(np.abs(agent) > 0.2)[0] :][:12000], 300) > 0.95
        assert strength(scripted.microphone()[24000:], 440) > 0.9
        assert (seen.foreign, seen.errors) == ([], [])


def test_an_interruption_silences_the_loudspeaker_at_once(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    """Sound that lies ready when the user takes the floor is faded out, what comes late is dropped, and the next answer is heard."""
    scripted, url = server
    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 0.1), 24000)) as (page, seen):
        page.goto(url)
        page.get_by_role("checkbox", name="Record both sides").check()
        page.get_by_role("button", name="Talk").click()
        scripted.wait_for(lambda: len(scripted.of("input_audio_buffer.append")) > 10)
        scripted.send({"type": "response.output_item.added", "item": {"type": "message", "id": "a1"}})
        sound = [scripted.packet("a1", tone(300, 2.0))]
        scripted.send(*sound)
        time.sleep(0.5)
        scripted.send(*EXCHANGE, *sound)
        time.sleep(0.7)
        scripted.send({"type": "response.output_item.added", "item": {"type": "message", "id": "a2"}})
        scripted.send(scripted.packet("a2", tone(500, 0.3)), {"type": "response.output_audio.done", "item_id": "a2"})
        time.sleep(0.6)
        page.get_by_role("button", name="Stop", exact=True).click()
        _, agent, _ = downloaded_recording(page, tmp_path / "conversation.wav")
        loud = np.flatnonzero(np.abs(agent) > 0.02)
        breaks = np.flatnonzero(np.diff(loud) > 2400)
        assert len(breaks) == 1, "one answer, silence, one answer"
        first, second = agent[loud[0] : loud[breaks[0]]], agent[loud[breaks[0] + 1] : loud[-1]]
        assert len(first) < 1.0 * 24000 and strength(first, 300) > 0.9
        assert 0.28 * 24000 < len(second) < 0.32 * 24000 and strength(second, 500) > 0.9
        assert np.abs(np.diff(agent)).max() < 0.06, "no click: the steepest step of these tones is 0.04"
        assert seen.errors == []


def test_the_answer_can_be_stopped_and_the_microphone_muted(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    scripted, url = server
    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 60, 48000), 48000, lead_s=0)) as (page, _):
        talk(page, url, scripted)
        assert page.get_by_role("button", name="Stop the answer").is_disabled()
        scripted.send({"type": "response.output_item.added", "item": {"type": "message", "id": "a1"}})
        page.get_by_role("button", name="Stop the answer").click()
        scripted.wait_for(lambda: scripted.of("response.cancel"))
        page.get_by_role("button", name="Mute").click()
        before = len(scripted.microphone())
        scripted.wait_for(lambda: len(scripted.microphone()) > before + 24000)
        assert level_db(scripted.microphone()[before + 4800 :]) < -80, "muted sound is sent as silence: it is the clock"
        page.get_by_label("A message in writing").fill("Hello there")
        page.keyboard.press("Enter")
        scripted.wait_for(lambda: scripted.of("response.create"))
        assert scripted.of("conversation.item.create")[0]["item"]["content"] == [{"type": "input_text", "text": "Hello there"}]


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
        scripted.wait_for(lambda: scripted.of("session.update")[-1]["session"]["audio"]["output"] == {"voice": "amy"})
        assert scripted.of("session.update")[-1]["session"]["audio"]["input"]["turn_detection"]["eagerness"] == "high"
        assert page.get_by_label("Profile").is_disabled()


def test_a_server_that_is_full_is_told(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    scripted, url = server
    scripted.refuse_with = 1013
    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 0.1), 24000)) as (page, _):
        talk(page, url)
        page.wait_for_function("document.querySelector('.problem').textContent.includes('All places')")
        assert page.get_by_role("button", name="Talk").is_enabled()
        assert len(scripted.queries) == 1, "a page does not hammer on a full server"
        scripted.refuse_with = None
        page.get_by_role("button", name="Talk").click()
        scripted.wait_for(lambda: scripted.of("session.update"))
        assert page.get_by_role("alert").first.is_hidden()


def test_a_lost_connection_comes_back_with_its_token(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    scripted, url = server
    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 0.1), 24000)) as (page, _):
        talk(page, url, scripted)
        scripted.keep_session = True
        scripted.close(1011)
        scripted.wait_for(lambda: len(scripted.queries) == 2)
        assert scripted.queries[1]["resume"] == "token_1"
        page.wait_for_function("document.querySelector('.status').textContent === 'Listening.'")
        assert "new conversation" not in page.get_by_role("log").inner_text()
        scripted.keep_session = False
        scripted.close(1012)
        scripted.wait_for(lambda: len(scripted.queries) == 3)
        page.wait_for_function("document.querySelector('.transcript').textContent.includes('A new conversation begins')")
        scripted.close(1008)
        page.wait_for_selector(".problem:not([hidden])")
        assert page.get_by_role("button", name="Talk").is_enabled()


def test_a_server_that_is_gone_and_comes_back(tmp_path: Path) -> None:
    scripted, port = ScriptedRealtime(), free_port()

    def app() -> FastAPI:
        app = FastAPI()
        scripted.install(app)
        return mount_page(app, PAGE)

    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 0.1), 24000)) as (page, _):
        with running(app(), port) as url:
            talk(page, url, scripted)
        page.wait_for_function("document.querySelector('.status').textContent.includes('trying to come back')")
        with running(app(), port):
            scripted.wait_for(lambda: len(scripted.queries) == 2)
            page.wait_for_function("document.querySelector('.status').textContent === 'Listening.'")
            page.get_by_role("button", name="Stop", exact=True).click()
        page.get_by_role("button", name="Talk").click()
        page.wait_for_function("document.querySelector('.problem').textContent.includes('does not answer')")


def test_a_refused_or_missing_microphone_is_explained(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    scripted, url = server
    with browser_page(tmp_path / "none.wav", allow_microphone=False, permissions=[]) as (page, _):
        page.goto(url)
        page.evaluate(
            "() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', window.refusal)); }"
        )
        for refusal, words in {
            "NotAllowedError": "Allow it",
            "NotFoundError": "Plug one in",
            "NotReadableError": "Close that program",
        }.items():
            page.evaluate("(name) => { window.refusal = name; }", refusal)
            page.get_by_role("button", name="Talk").click()
            page.wait_for_function("(words) => document.querySelector('.problem').textContent.includes(words)", arg=words)
            assert page.get_by_role("button", name="Talk").is_enabled()
        assert scripted.queries == [], "no session is opened without a microphone"


def test_a_browser_that_denies_the_microphone(server: tuple[ScriptedRealtime, str]) -> None:
    """The browser's own refusal, not one we made up."""
    _, url = server
    with browser_page(None, allow_microphone=False, arguments=("--deny-permission-prompts",)) as (page, _):
        talk(page, url)
        page.wait_for_selector(".problem:not([hidden])")
        assert re.search("Allow it|There is no microphone", page.get_by_role("alert").first.inner_text())


def test_an_insecure_page_says_what_to_do(server: tuple[ScriptedRealtime, str]) -> None:
    _, url = server
    with browser_page(None, arguments=("--host-resolver-rules=MAP duologue.test 127.0.0.1",)) as (page, _):
        page.unroute("**/*")
        page.goto(url.replace("127.0.0.1", "duologue.test"))
        page.wait_for_selector(".problem:not([hidden])")
        assert "--ssl-certfile" in page.get_by_role("alert").first.inner_text()


def test_a_browser_that_does_not_resample_a_microphone(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    """As Firefox does: the page then takes the device's own rate and resamples in its worklet, both ways."""
    scripted, url = server
    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 60, 48000), 48000, lead_s=0)) as (page, seen):
        page.goto(url)
        page.evaluate(
            """() => {
              const Real = window.MediaStreamAudioSourceNode;
              window.MediaStreamAudioSourceNode = class extends Real {
                constructor(context, options) {
                  if (context.sampleRate === 24000) throw new DOMException("different sample-rate", "NotSupportedError");
                  super(context, options);
                }
              };
            }"""
        )
        page.get_by_role("checkbox", name="Record both sides").check()
        page.get_by_role("button", name="Talk").click()
        scripted.wait_for(lambda: len(scripted.of("input_audio_buffer.append")) > 10)
        assert page.evaluate("duologue.sound.context.sampleRate") != 24000
        began = len(scripted.microphone())
        time.sleep(2)
        assert 1.8 * 24000 < len(scripted.microphone()) - began < 2.3 * 24000
        scripted.say("a1", tone(300, 1.0))
        time.sleep(0.3)
        page.get_by_role("button", name="Stop", exact=True).click()
        user, agent, _ = downloaded_recording(page, tmp_path / "conversation.wav")
        assert strength(user[24000:], 440) > 0.9
        assert strength(agent[np.flatnonzero(np.abs(agent) > 0.2)[0] :][:20000], 300) > 0.95
        assert seen.errors == []


def test_the_resampler_is_exact(server: tuple[ScriptedRealtime, str]) -> None:
    """A tone through the page's own resampler, pushed in pieces, against the same tone computed at the other rate."""
    _, url = server
    with browser_page(None) as (page, _):
        page.goto(url)
        for from_hz, to_hz in ((48000, 24000), (44100, 24000), (24000, 48000), (24000, 44100)):
            out = np.array(
                page.evaluate(
                    """async ([fromHz, toHz]) => {
                      globalThis.AudioWorkletProcessor ??= class {};
                      globalThis.registerProcessor ??= () => {};
                      const { Resampler } = await import("/web_page/duplex_worklet.js");
                      const resampler = new Resampler(fromHz, toHz);
                      const out = [];
                      const sine = (i) => Math.sin((2 * Math.PI * 1000 * i) / fromHz);
                      for (let at = 0; at < fromHz; at += 128)
                        out.push(...resampler.push(Float32Array.from({ length: 128 }, (_, i) => sine(at + i))));
                      return out;
                    }""",
                    [from_hz, to_hz],
                )
            )
            expected = np.sin(2 * np.pi * 1000 * np.arange(len(out)) / to_hz)
            assert abs(len(out) - to_hz) < 200
            assert np.abs(out - expected)[200:].max() < 2e-3, f"{from_hz} to {to_hz}"


def test_an_echo_that_the_browser_missed_is_recognised_and_a_person_is_not(server: tuple[ScriptedRealtime, str]) -> None:
    """Speech played, and heard again at any delay, even when the delay jumps; against another voice, alone and louder than the echo."""
    _, url = server
    agent, person = (
        np.concatenate([resample(clip.samples(), 16000, 24000) for clip in clips("long_questions")[part : part + 2]])
        for part in (0, 2)
    )
    length = min(len(agent), len(person)) // 480 * 480
    agent, person = agent[:length], person[:length]

    def echo(delay_ms: int, gain: float) -> Samples:
        return gain * np.concatenate([np.zeros(24 * delay_ms, np.float32), agent])[:length]

    jumping = np.concatenate([echo(90, 0.1)[: length // 2], echo(310, 0.1)[length // 2 :]])
    with browser_page(None) as (page, seen):
        page.goto(url)

        def silenced(near: Samples) -> float:
            """Share of the audible blocks that the guard takes for an echo."""
            blocks = page.evaluate(
                """async ([near, far]) => {
                  const { EchoGuard } = await import("/web_page/echo_guard.js");
                  const { decode } = await import("/web_page/pcm.js");
                  const [guard, n, f] = [new EchoGuard(), decode(near), decode(far)];
                  return Array.from({ length: n.length / 480 }, (_, i) =>
                    guard.isEcho(n.slice(480 * i, 480 * i + 480), f.slice(480 * i, 480 * i + 480)));
                }""",
                [pcm16(near), pcm16(agent)],
            )
            loud = np.array([level_db(near[at : at + 480]) > -50 for at in range(0, length, 480)])
            return float(np.array(blocks)[loud].mean())

        assert silenced(echo(40, 0.1)) > 0.75
        assert silenced(echo(450, 0.3)) > 0.75
        assert silenced(jumping) > 0.75
        assert silenced(person) < 0.06
        assert silenced(person + echo(90, 0.01)) < 0.25, "most of what is silenced lies between the person's words"
        assert seen.errors == []


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
