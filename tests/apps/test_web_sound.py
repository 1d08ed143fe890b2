"""The page's sound in a real Chromium: played, interrupted, muted, resampled, and rid of the echo that the browser left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gradio", reason="needs the extra web: pip install 'duologue[web]'")


from apps.bench_clips import clips
from duplex.audio import Samples
from duplex.levels import level_db
from duplex.resample import resample
from tests.apps.browser import browser_page, downloaded_recording, write_microphone
from tests.apps.scripted_realtime import ScriptedRealtime
from tests.apps.web_stage import EXCHANGE, page_served, pcm16, strength, talk, tone

pytestmark = pytest.mark.browser


@pytest.fixture
def server() -> Iterator[tuple[ScriptedRealtime, str]]:
    with page_served() as served:
        yield served


def test_an_interruption_silences_the_loudspeaker_at_once(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    """Sound that lies ready when the user takes the floor is faded out, what comes late is dropped, and the next answer is heard."""
    scripted, url = server
    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 0.1), 24000)) as (page, seen):
        page.goto(url)
        page.get_by_role("checkbox", name="Record both sides").check()
        page.get_by_role("button", name="Talk").click()
        scripted.wait_for(lambda: len(scripted.of("input_audio_buffer.append")) > 10)
        scripted.send({"type": "response.output_item.added", "item": {"type": "message", "id": "a1"}})
        sound = [scripted.packet("a1", tone(300, 8.0))]
        scripted.send(*sound)
        scripted.wait_for(lambda: scripted.played_ms("a1") > 200)
        scripted.send(*EXCHANGE, *sound)
        page.wait_for_function("duologue.conversation.open === 'u1'")
        silent_s = page.evaluate("duologue.conversation.nowS")
        page.wait_for_function("(from) => duologue.conversation.nowS > from + 0.5", arg=silent_s)
        scripted.send({"type": "response.output_item.added", "item": {"type": "message", "id": "a2"}})
        scripted.send(scripted.packet("a2", tone(500, 0.3)), {"type": "response.output_audio.done", "item_id": "a2"})
        scripted.wait_for(lambda: scripted.played_ms("a2") > 290)
        page.wait_for_timeout(200)
        page.get_by_role("button", name="Stop", exact=True).click()
        _, agent, _ = downloaded_recording(page, tmp_path / "conversation.wav")
        loud = np.flatnonzero(np.abs(agent) > 0.02)
        breaks = np.flatnonzero(np.diff(loud) > 2400)
        assert len(breaks) == 1, "one answer, silence, one answer"
        first, second = agent[loud[0] : loud[breaks[0]]], agent[loud[breaks[0] + 1] : loud[-1]]
        assert len(first) < 7.5 * 24000 and strength(first, 300) > 0.9
        assert 0.28 * 24000 < len(second) < 0.32 * 24000 and strength(second, 500) > 0.9
        assert np.abs(np.diff(agent)).max() < 0.06, "no click: the steepest step of these tones is 0.04"
        assert seen.errors == []


def test_a_backchannel_of_the_agent_is_played_and_shown_and_is_no_answer(
    server: tuple[ScriptedRealtime, str], tmp_path: Path
) -> None:
    scripted, url = server
    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 0.1), 24000)) as (page, seen):
        page.goto(url)
        page.get_by_role("checkbox", name="Record both sides").check()
        page.get_by_role("button", name="Talk").click()
        scripted.wait_for(lambda: len(scripted.of("input_audio_buffer.append")) > 10)
        sound = scripted.packet("", tone(300, 0.3))["delta"]
        scripted.send({"type": "duologue.agent_backchannel", "at_ms": 900, "text": "Uh-huh.", "audio": sound})
        page.wait_for_function("document.querySelector('.turn.agent')?.textContent.includes('Uh-huh.')")
        page.wait_for_function("duologue.conversation.acks.at(-1).played === 7200")
        page.wait_for_timeout(500)
        page.get_by_role("button", name="Stop", exact=True).click()
        _, agent, _ = downloaded_recording(page, tmp_path / "conversation.wav")
        loud = np.flatnonzero(np.abs(agent) > 0.02)
        assert 0.28 * 24000 < loud[-1] - loud[0] < 0.32 * 24000 and strength(agent[loud[0] : loud[-1]], 300) > 0.9
        assert not scripted.of("duologue.playback.ack") and seen.errors == []


def test_the_answer_can_be_stopped_and_the_microphone_muted(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    scripted, url = server
    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 60, 48000), 48000, lead_s=0)) as (page, _):
        talk(page, url, scripted)
        assert page.get_by_role("button", name="Stop the answer").is_disabled()
        scripted.send({"type": "response.output_item.added", "item": {"type": "message", "id": "a1"}})
        page.get_by_role("button", name="Stop the answer").click()
        scripted.wait_for(lambda: scripted.of("response.cancel"))
        scripted.wait_for(lambda: level_db(scripted.microphone()[-12000:]) > -40)
        page.get_by_role("button", name="Mute").click()
        scripted.wait_for(lambda: level_db(scripted.microphone()[-12000:]) < -80)  # what was on its way has come
        before = len(scripted.microphone())
        scripted.wait_for(lambda: len(scripted.microphone()) > before + 24000)
        assert level_db(scripted.microphone()[before:]) < -80, "muted sound is sent as silence: it is the clock"
        page.get_by_label("A message in writing").fill("Hello there")
        page.keyboard.press("Enter")
        scripted.wait_for(lambda: scripted.of("response.create"))
        assert scripted.of("conversation.item.create")[0]["item"]["content"] == [{"type": "input_text", "text": "Hello there"}]


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
        before, began = len(scripted.microphone()), page.evaluate("duologue.sound.context.currentTime")
        scripted.wait_for(lambda: len(scripted.microphone()) - before > 6 * 24000)
        took = page.evaluate("duologue.sound.context.currentTime") - began  # on the clock of the sound, as both may be late
        assert 0.6 < 6 / took < 1.5, "neither half as much sound nor twice"
        scripted.send(scripted.packet("a1", tone(300, 1.0)))
        scripted.wait_for(lambda: scripted.played_ms("a1") > 950)
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
