"""A private PulseAudio with virtual devices; fixture `pulse`, with the rate and, for an echo loop, its delay in ms as parameter.

What is played into `micfeed` is the microphone, what arrives at `spk` is what was heard. Programs under test run as processes of their own,
because PortAudio reads its surroundings once.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import weight_cache
from duplex.audio import Samples
from duplex.resample import resample
from tests.waiting import until

ROOT = Path(__file__).parents[2]


class Pulse:
    def __init__(self, folder: Path, rate: int, loop_ms: int | None) -> None:
        self.folder, self.rate, self.loop_ms = folder, rate, loop_ms
        (folder / "rt/pulse").mkdir(parents=True, mode=0o700)
        (folder / ".asoundrc").write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
        self.env = {
            **os.environ,
            "DUOLOGUE_HOME": str(weight_cache.home()),
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder / "rt"),
            "PULSE_RUNTIME_PATH": str(folder / "rt/pulse"),
            "PULSE_SINK": "spk",
            "PULSE_SOURCE": "virtmic",
            "PYTHONPATH": str(ROOT),
        }
        self.children: list[subprocess.Popen[Any]] = []
        self.server: subprocess.Popen[Any]
        self.serve()

    def serve(self) -> None:
        """Start the server and its devices; again after `kill`."""
        modules = [
            "module-native-protocol-unix",
            f"module-null-sink sink_name=spk rate={self.rate} channels=1",
            f"module-null-sink sink_name=micfeed rate={self.rate} channels=1",
            "module-remap-source master=micfeed.monitor source_name=virtmic",
        ]
        if self.loop_ms is not None:
            modules.append(f"module-loopback source=spk.monitor sink=micfeed latency_msec={self.loop_ms}")
        loads = [part for module in modules for part in ("-L", module)]
        self.server = self.start("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", *loads)
        until(lambda: self.control("set-default-source", "virtmic"))
        assert self.control("set-default-sink", "spk")
        for sink in ("spk", "micfeed"):  # a null sink that sleeps gives a gap of a second when it wakes
            self.play(sink, Path("/dev/zero"))
        until(lambda: self.states("sinks") == ["RUNNING", "RUNNING"])
        time.sleep(1)

    def kill(self) -> None:
        """The server, and with it every device, is gone at once."""
        self.server.send_signal(signal.SIGKILL)
        self.server.wait(timeout=10)

    def control(self, *words: str) -> bool:
        return subprocess.run(["pactl", *words], env=self.env, capture_output=True, check=False).returncode == 0

    def states(self, kind: str) -> list[str]:
        """RUNNING, IDLE or SUSPENDED, of each of the "sinks" or "sources"."""
        told = subprocess.run(["pactl", "list", "short", kind], env=self.env, capture_output=True, text=True, check=False).stdout
        return [line.split("\t")[-1] for line in told.splitlines()]

    def python(self, code: str, *words: object, **options: Any) -> subprocess.Popen[str]:
        """A program that talks through the devices; its stdout is a pipe of text."""
        command = [sys.executable, "-c", code, *map(str, words)]
        return self.start(*command, stdout=subprocess.PIPE, text=True, **options)

    def start(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        child = subprocess.Popen(command, env=self.env, **{"stderr": subprocess.DEVNULL, **options})
        self.children.append(child)
        return child

    def play(self, sink: str, raw: Path, latency_ms: int = 40) -> subprocess.Popen[Any]:
        form = [f"--rate={self.rate}", "--channels=1", "--format=s16le", "--raw", f"--latency-msec={latency_ms}"]
        return self.start("pacat", "--playback", f"--device={sink}", *form, str(raw))

    def say(self, user: Samples) -> subprocess.Popen[Any]:
        """Play [n] at the server's rate into the microphone."""
        raw = self.folder / f"user-{len(self.children)}.raw"
        raw.write_bytes((user * 32767).astype("<i2").tobytes())
        return self.play("micfeed", raw, latency_ms=400)  # a busy machine shall not make the user stutter

    def record(self, source: str, raw: Path) -> subprocess.Popen[Any]:
        form = [f"--rate={self.rate}", "--channels=1", "--format=s16le", "--raw"]
        return self.start("parec", f"--device={source}", *form, str(raw))

    def stop(self) -> None:
        for child in reversed(self.children):
            child.kill()
        for child in self.children:
            child.wait(timeout=10)


@pytest.fixture(name="pulse")
def pulse_fixture(request: pytest.FixtureRequest) -> Iterator[Pulse]:
    missing = [name for name in ("pulseaudio", "pactl", "pacat", "parec") if shutil.which(name) is None]
    try:
        import sounddevice  # noqa: F401
    except (ImportError, OSError) as error:
        missing.append(f"sounddevice with libportaudio2 ({error})")
    if missing:
        message = f"virtual sound devices need {', '.join(missing)}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    rate, loop_ms = request.param
    folder = Path(tempfile.mkdtemp(prefix="snd"))  # a socket's path must be short
    server = None
    try:
        server = Pulse(folder, rate, loop_ms)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def speechlike(rate: int, seconds: float, seed: int) -> Samples:
    """Band-limited noise in syllables: it has one place only where it matches itself."""
    noise = resample(np.random.default_rng(seed).normal(0, 0.12, round(6_000 * seconds)).astype(np.float32), 6_000, rate)
    beat = np.clip(np.sin(2 * np.pi * 3 * np.arange(len(noise)) / rate) + 0.6, 0, 1)
    return np.asarray(noise * beat, np.float32)


def sound_in(raw: Path) -> Samples:
    """What `record` wrote."""
    return np.frombuffer(raw.read_bytes()[: raw.stat().st_size // 2 * 2], "<i2").astype(np.float32) / 32768


def best_match(part: Samples, whole: Samples) -> float:
    """Quarter seconds of `part` looked for anywhere in `whole`: the upper quartile of their highest normalised correlations (16 kHz).

    A busy machine drops a block here and there, which spoils the quarter second that it is in, but no more.
    """
    found = []
    for piece in np.array_split(part, len(part) // 4_000):
        size = 1 << (len(whole) + len(piece)).bit_length()
        cross = np.fft.irfft(np.fft.rfft(whole, size) * np.conj(np.fft.rfft(piece, size)), size)[: len(whole) - len(piece)]
        energy = np.cumsum(np.concatenate([[0.0], whole.astype(np.float64) ** 2]))
        here = np.sqrt(energy[len(piece) : len(piece) + len(cross)] - energy[: len(cross)])
        loud = here > 0.1 * here.max()
        found.append(float((cross[loud] / (here[loud] * np.linalg.norm(piece) + 1e-12)).max()))
    return float(np.percentile(found, 75))
