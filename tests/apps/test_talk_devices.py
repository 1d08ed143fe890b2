"""`duologue talk` as a user runs it, on virtual devices whose loudspeaker the microphone hears, with the real weights.

The program is a process of its own; what it did is read from its recording's events and from the loudspeaker's own monitor.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.bench_clips import Clip, clips
from duplex.audio import USER_RATE_HZ
from duplex.resample import resample
from tests.apps.virtual_sound import Pulse, pulse_fixture, sound_in  # noqa: F401

PROGRAM = "import sys\nfrom apps.cli import main\nsys.exit(main(sys.argv[1:]))"


class Talk:
    """The program, and its events as they are written."""

    def __init__(self, pulse: Pulse, *options: str) -> None:
        self.pulse, self.folder = pulse, pulse.folder / "recording"
        self.program = pulse.python(PROGRAM, "talk", "--record", self.folder, *options, stdin=subprocess.DEVNULL)
        assert self.program.stdout is not None
        for line in self.program.stdout:
            if line.startswith("Listening to"):
                return
        pytest.fail("the talk did not begin")

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        lines = (self.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        return [event for line in lines if line.endswith("}") and (event := json.loads(line))["type"] in kinds]

    def wait(self, what: Callable[[], bool], limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while not what():
            assert time.monotonic() < end, self.events("user_transcript", "response_started", "response_ended", "floor_changed")
            time.sleep(0.05)

    def say(self, clip: Clip) -> None:
        self.pulse.say(resample(clip.samples(), USER_RATE_HZ, self.pulse.rate))

    def end(self) -> str:
        self.program.send_signal(signal.SIGINT)
        told, _ = self.program.communicate(timeout=60)
        assert self.program.returncode == 130, told
        return str(told)


@pytest.mark.sound
@pytest.mark.weights
@pytest.mark.parametrize("pulse", [(48_000, 60), (44_100, 60)], indirect=True, ids=["48k", "44.1k"])
def test_with_the_echo_in_the_microphone_only_the_user_interrupts(pulse: Pulse, edge_weights: dict[str, Path]) -> None:
    question = next(c for c in clips("questions") if "France" in c.text)
    story, wait = clips("long_questions")[0], clips("interruptions")[0]
    heard_file = pulse.folder / "heard.raw"
    pulse.record("spk.monitor", heard_file)
    talk = Talk(pulse)
    time.sleep(1)
    talk.say(question)
    talk.wait(lambda: len(talk.events("response_ended")) == 1, 60)
    (first,) = talk.events("response_ended")
    assert first["reason"] == "completed"
    assert "Paris" in first["heard"]
    time.sleep(0.5)
    talk.say(story)
    talk.wait(lambda: len(talk.events("response_started")) == 2, 60)
    time.sleep(2.0)
    assert len(talk.events("response_ended")) == 1  # still speaking, and has not interrupted itself
    talk.say(wait)
    talk.wait(lambda: len(talk.events("response_ended")) == 2, 30)
    second = talk.events("response_ended")[1]
    assert second["reason"] == "interrupted"
    assert second["stop_latency_s"] < 1.0
    talk.wait(lambda: len([e for e in talk.events("user_transcript") if e["final"]]) >= 3, 60)
    told = talk.end()
    said = [event["text"] for event in talk.events("user_transcript") if event["final"]]
    print("stop latency", second["stop_latency_s"], "said", said, "\n", told)
    assert "capital of France" in said[0]
    assert len(said) == 3  # the agent's own voice was never taken for the user's
    assert "Echo removed at the end" in told
    assert np.abs(sound_in(heard_file)).max() > 0.05
