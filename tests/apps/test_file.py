"""`duologue file`: the whole program on the tiny profile, with good and bad input, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from apps.cli import main
from duplex.audio import AGENT_RATE_HZ
from tests.waiting import until


def recording(path: Path, seconds: float = 3.0, rate: int = 16_000, **options: str) -> Path:
    count = int(seconds * rate)
    t = np.arange(count) / rate
    voice = 0.2 * np.sin(2 * np.pi * 150 * t) * (np.sin(2 * np.pi * 3 * t) > 0) * (t > 0.5) * (t < seconds - 1.0)
    soundfile.write(path, voice + 1e-4 * np.random.default_rng(0).standard_normal(count), rate, **options)
    return path


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def stereo(path: Path) -> tuple[np.ndarray, int]:
    return soundfile.read(path, dtype="float32", always_2d=True)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_the_output_is_as_long_as_the_input_and_holds_the_user(
    tmp_path: Path, rate: int, capsys: pytest.CaptureFixture[str]
) -> None:
    user = recording(tmp_path / "user.wav", 3.0, rate)
    assert run("file", user, tmp_path / "out.wav", "--profile", "tiny") == 0
    both, out_rate = stereo(tmp_path / "out.wav")
    assert out_rate == AGENT_RATE_HZ and both.shape == (3 * AGENT_RATE_HZ, 2)
    original, _ = soundfile.read(user, dtype="float32")
    assert np.sqrt(np.mean(both[:, 0] ** 2)) == pytest.approx(np.sqrt(np.mean(original**2)), rel=0.05)
    events = [json.loads(line) for line in (tmp_path / "out.events.jsonl").read_text().splitlines()]
    assert {"user_started", "user_stopped"} <= {e["type"] for e in events}
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_sample_format_is_read(tmp_path: Path, subtype: str) -> None:
    user = recording(tmp_path / "user.wav", 1.5, subtype=subtype)
    assert run("file", user, tmp_path / "out.wav", "--profile", "tiny") == 0


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def one_sentence(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) == 1 and lines[0].startswith("duologue: ")


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "header-only", "folder", "nan"])
def test_bad_input_is_one_sentence_and_exit_code_3(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "user.wav"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is not sound\n" * 100)
    elif kind == "header-only":
        soundfile.write(path, np.zeros(0, np.float32), 16_000)
    elif kind == "folder":
        path.mkdir()
    elif kind == "nan":
        sound = np.zeros(48_000, np.float32)
        sound[30_000] = np.nan
        soundfile.write(path, sound, 16_000, subtype="FLOAT")
    assert run("file", path, tmp_path / "out.wav", "--profile", "tiny") == 3
    assert one_sentence(capsys.readouterr().err)
    if kind == "nan":  # it was begun: what there is must be a valid file
        both, _ = stereo(tmp_path / "out.wav")
        assert 1.0 < len(both) / AGENT_RATE_HZ < 2.0


@pytest.mark.parametrize("sound", ["silent", "clipped"])
def test_silent_and_clipped_recordings_are_taken_with_a_note(
    tmp_path: Path, sound: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "user.wav"
    samples = np.zeros(32_000) if sound == "silent" else np.sign(np.sin(np.arange(32_000) / 20.0))
    soundfile.write(path, samples.astype(np.float32), 16_000)
    assert run("file", path, tmp_path / "out.wav", "--profile", "tiny") == 0
    assert "Note: " in capsys.readouterr().out


def test_wrong_arguments_and_keys_are_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user = recording(tmp_path / "user.wav")
    out = tmp_path / "out.wav"
    assert run("file", user, out, "--profile", "nowhere") == 2
    assert run("file", user, out, "--profile", "tiny", "--set", "session.interim=1") == 2
    assert "interim_s" in capsys.readouterr().err
    assert run("file", user, out, "--profile", "tiny", "--set", "session.turns.release_p=7") == 2
    assert run("file", user, tmp_path / "out.mp3", "--profile", "tiny") == 6
    assert run("file", user, tmp_path / "no" / "folder" / "out.wav", "--profile", "tiny") == 6
    assert run("file", user, user, "--profile", "tiny") == 3
    assert not out.exists()


def test_missing_weights_are_exit_code_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUOLOGUE_HOME", str(tmp_path / "cache"))
    assert run("file", recording(tmp_path / "user.wav"), tmp_path / "out.wav") == 4
    assert "duologue fetch edge" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0 and not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_exit_code_6(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.wav").symlink_to("/dev/full")
    assert run("file", recording(tmp_path / "user.wav"), tmp_path / "out.wav", "--profile", "tiny") == 6
    assert one_sentence(capsys.readouterr().err)


def mapped(process: subprocess.Popen[bytes], library: str) -> bool:
    """Whether a program has loaded a native library."""
    maps = Path(f"/proc/{process.pid}/maps")
    return maps.exists() and library in maps.read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="sees how far a program is by /proc")
@pytest.mark.parametrize("moment", ["numpy loads", "torch loads", "the sound is written", "the conversation goes on"])
def test_ctrl_c_at_any_moment_is_130_and_leaves_valid_files(tmp_path: Path, moment: str) -> None:
    user = recording(tmp_path / "user.wav", 60.0)
    out = tmp_path / "out.wav"
    command = [sys.executable, "-m", "apps", "file", str(user), str(out), "--profile", "tiny", "--paced"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    reached: dict[str, Callable[[], bool]] = {
        "numpy loads": lambda: mapped(process, "numpy"),
        "torch loads": lambda: mapped(process, "libtorch"),
        "the sound is written": out.exists,
        "the conversation goes on": lambda: out.exists() and out.stat().st_size > 2 * 24_000 * 4,  # a second
    }
    until(reached[moment], 120)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    if out.exists():
        stereo(out)
        for line in (tmp_path / "out.events.jsonl").read_text().splitlines():
            json.loads(line)
