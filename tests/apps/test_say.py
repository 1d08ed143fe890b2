"""`duologue say` with the voice of random weights, and the real one where its weights are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from agent.edge import is_trained
from agent.profiles import load_profile
from apps.cli import main
from duplex.audio import AGENT_RATE_HZ, USER_RATE_HZ
from duplex.resample import resample
from encoders.whisper_ears import WhisperEars


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A profile of random weights with the voices of `edge`."""
    file = tmp_path / "small.yaml"
    file.write_text("description: tiny\nencoder: whisper\ndecoder: vits\nweights: []\n")
    assert load_profile(file).output == "bridge"
    return file


@pytest.mark.parametrize("voice", ["bridge", "own"])
def test_it_says_a_text(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], voice: str) -> None:
    out = tmp_path / "out.wav"
    assert main(["say", "Hello there, my friend.", str(out), "--profile", str(tiny), "--voice", voice, "--words"]) == 0
    sound, rate = soundfile.read(out)
    assert rate == AGENT_RATE_HZ and len(sound) > 0.3 * rate
    lines = capsys.readouterr().out.splitlines()
    words = [line for line in lines if "'" in line]
    assert "".join(line.split("'")[1] for line in words) == "Hello there, my friend."
    assert f"{len(sound) / rate:.2f} s of speech" in lines[-1]


def test_hidden_states_change_how_the_own_voice_says_it(tiny: Path, tmp_path: Path) -> None:
    made = []
    for flags in ([], ["--hidden"], ["--seed", "1"]):
        out = tmp_path / "out.wav"
        assert main(["say", "Hello there.", str(out), "--profile", str(tiny), "--voice", "own", *flags]) == 0
        made.append(out.read_bytes())
    assert made[0] != made[2]
    assert made[0] == made[1]  # untrained, the projector's hidden half is zero


def test_what_cannot_be_said_is_told(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["say", "  ", str(tmp_path / "out.wav"), "--profile", str(tiny)]) == 3
    assert "nothing to say" in capsys.readouterr().err
    assert main(["say", "Hello.", str(tmp_path / "none" / "out.wav"), "--profile", str(tiny)]) == 6
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.weights
@pytest.mark.parametrize("flags", [[], ["--hidden"]])
def test_the_shipped_voice_is_understood(edge_weights: dict[str, Path], tmp_path: Path, flags: list[str]) -> None:
    if not is_trained():
        pytest.skip("the voice's weights are not there")
    out = tmp_path / "out.wav"
    assert main(["say", "Good morning. I hope that you slept well.", str(out), "--voice", "own", *flags]) == 0
    sound, _ = soundfile.read(out, dtype="float32")
    assert 1.5 < len(sound) / AGENT_RATE_HZ < 5.0
    ears = WhisperEars.load(edge_weights["whisper-tiny-en"], edge_weights["whisper-vocab"])
    state = ears.open()
    ears.begin_turn(state, 0)
    ears.feed(state, np.concatenate([resample(sound, AGENT_RATE_HZ, USER_RATE_HZ), np.zeros(USER_RATE_HZ // 2, np.float32)]))
    heard = ears.transcribe(ears.window(state)).text.lower().replace(".", "").replace(",", "").split()
    assert len(set(heard) & {"good", "morning", "i", "hope", "that", "you", "slept", "well"}) >= 6
