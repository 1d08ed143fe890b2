"""Chromium on a virtual sound card whose loudspeaker is heard by its microphone: the agent must not interrupt itself.

The server runs as a process of lower priority: on an ordinary system sound has a higher one than models, and a browser is often on another
machine. A short talk here; five minutes with `DUOLOGUE_ECHO_S=300 pytest tests/apps/test_web_echo.py -s`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gradio", reason="needs the extra web: pip install 'duologue[web]'")

from apps.bench_clips import clips
from duplex.levels import level_db
from duplex.resample import resample
from tests.apps.browser import browser_page, downloaded_recording
from tests.apps.test_web import ROOT
from tests.apps.virtual_sound import Pulse, pulse_fixture, sound_in  # noqa: F401

LENGTH_S = float(os.environ.get("DUOLOGUE_ECHO_S", "25"))
REQUESTS = (
    "Tell me a long story about a lighthouse keeper and the sea.",
    "Explain to me in detail how a bicycle works.",
    "Tell me about the seasons of the year, one after the other.",
    "Explain in detail how bread is made.",
)


@contextmanager
def background_server() -> Iterator[str]:
    """`duologue web` with the profile edge, giving way to everything else; its address."""
    command = ["nice", "-n", "10", sys.executable, "-m", "apps", "web", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        finally:
            server.terminate()
            server.wait(60)


@pytest.mark.browser
@pytest.mark.sound
@pytest.mark.weights
@pytest.mark.parametrize("pulse", [(48000, 40)], indirect=True)
def test_the_agent_does_not_interrupt_itself(
    pulse: Pulse,
    edge_weights: dict[str, Path],
    tmp_path: Path,
) -> None:
    spoken = clips("long_questions")[1]
    with background_server() as url, browser_page(None, sound_env=pulse.env) as (page, seen):
        page.goto(url)
        page.get_by_role("checkbox", name="Record both sides").check()
        page.get_by_role("button", name="Talk").click()
        page.wait_for_function("document.querySelector('.status').textContent === 'Listening.'")
        page.evaluate(
            """() => {
              window.ended = [];
              const conversation = duologue.conversation;
              const event = conversation.event.bind(conversation);
              conversation.event = (e) => { if (e.type === "response.done") window.ended.push(e.response.status); event(e); };
            }"""
        )
        room = pulse.record("micfeed.monitor", pulse.folder / "room.raw")
        page.wait_for_timeout(1000)
        pulse.say(resample(spoken.samples(), 16000, pulse.rate))
        page.wait_for_function("duologue.conversation.latencies.length > 0", timeout=60000)
        asked, began = 0, time.monotonic()
        while time.monotonic() - began < LENGTH_S:
            if len(page.evaluate("window.ended")) > asked:
                page.get_by_label("A message in writing").fill(REQUESTS[asked % len(REQUESTS)])
                page.keyboard.press("Enter")
                asked += 1
            page.wait_for_timeout(250)
        page.wait_for_function("(asked) => window.ended.length > asked", arg=asked, timeout=120000)
        ended = page.evaluate("window.ended")
        latencies = page.evaluate("duologue.conversation.latencies")
        said = page.locator(".turn.user > span").all_inner_texts()
        voiced = page.evaluate("duologue.conversation.speech.user")
        page.get_by_role("button", name="Stop", exact=True).click()
        user, agent, _ = downloaded_recording(page, tmp_path / "conversation.wav")
        room.terminate()
        room.wait(10)

    print(f"{len(ended)} responses in {len(agent) / 24000:.0f} s, voice activity {len(voiced)} times, said {said}")
    whole = len(agent) // 480 * 480
    speaking = np.abs(agent[:whole]).reshape(-1, 480).max(1) > 0.01
    agent_s = float(speaking.sum()) * 0.02
    loud, left = (side[:whole].reshape(-1, 480)[speaking].ravel() for side in (agent, user))
    print(f"the agent spoke {agent_s:.0f} s, at {level_db(loud):.1f} dBFS; the microphone had {level_db(left):.1f} dBFS meanwhile")
    assert agent_s > 0.2 * LENGTH_S, "the agent has to speak, or nothing is shown"
    assert level_db(sound_in(pulse.folder / "room.raw")) > -45, "the loudspeaker reaches the microphone"
    assert set(ended) == {"completed"}, "nothing was cut off"
    assert [turn["stopS"] for turn in latencies if turn["stopS"] is not None] == []
    assert len(ended) == asked + 1, "it never answers itself"
    assert seen.errors == []
