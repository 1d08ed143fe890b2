"""The sound cards: against PulseAudio with virtual devices (marker `sound`), and against a scripted PortAudio on a manual clock.

The conversation side of the PulseAudio tests runs in a process of its own, because PortAudio reads its surroundings once.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import apps.sound_cards as sound_cards
from apps.devices import Device
from apps.sample_ring import SampleRing
from apps.sound_card_state import SoundCardConfig, StreamClock
from apps.sound_cards import SoundCards
from duplex.audio import AGENT_FRAME, AGENT_RATE_HZ, USER_FRAME, USER_RATE_HZ, Samples
from duplex.errors import ConfigError, DeviceError
from duplex.resample import resample

# -- the ring and the clock -------------------------------------------------------------------------------------------------------


def test_the_ring_gives_back_what_it_took_in_order_and_refuses_what_does_not_fit() -> None:
    ring, rng = SampleRing(100), np.random.default_rng(0)
    sent, got, counter = [], [], 0
    for _ in range(500):
        block = np.arange(counter, counter + rng.integers(0, 60)).astype(np.float32)
        taken = ring.write(block)
        assert taken == min(len(block), 100 - (len(ring) - taken))
        sent.append(block[:taken])
        counter += taken
        out = np.empty(rng.integers(0, 60), np.float32)
        got.append(out[: ring.read_into(out)])
    got.append(ring.read())
    assert len(ring) == 0
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate(sent))


def test_the_clock_sees_through_jitter() -> None:
    clock, rng = StreamClock(48_000), np.random.default_rng(0)
    assert clock.origin_s() is None
    for block in range(100):
        late = 0.2 if block % 10 == 0 else 0.0
        clock.stamp(block * 480, 12.5 + block / 100 + rng.normal(0, 0.001) + late)
    assert clock.origin_s() == pytest.approx(12.5, abs=0.001)


# -- a scripted PortAudio ---------------------------------------------------------------------------------------------------------


class FakeStream:
    def __init__(self, callback: Any, samplerate: int, blocksize: int, channels: int, latency: float, **_: Any) -> None:
        self.callback, self.rate, self.block, self.channels, self.latency = callback, samplerate, blocksize, channels, latency
        self.count = 0
        self.closed = False

    def start(self) -> None: ...

    def abort(self, ignore_errors: bool = True) -> None: ...

    def close(self, ignore_errors: bool = True) -> None:
        self.closed = True


class FakeCards:
    """PortAudio whose time the test moves by hand; the loudspeaker has a pace of its own and is heard by the microphone."""

    class PortAudioError(Exception): ...

    def __init__(self, pace: float = 1.0, echo_ms: int = 30, mono_refused: bool = False) -> None:
        self.pace, self.echo_ms, self.mono_refused = pace, echo_ms, mono_refused
        self.now_s = 100.0
        self.played = np.zeros(0, np.float32)

    def InputStream(self, **options: Any) -> FakeStream:
        self.input = FakeStream(**options)
        return self.input

    def OutputStream(self, **options: Any) -> FakeStream:
        if self.mono_refused and options["channels"] == 1:
            raise self.PortAudioError("Invalid number of channels")
        self.output = FakeStream(**options)
        return self.output

    def advance(self, ms: int, *, feed_in: bool = True, feed_out: bool = True) -> None:
        for _ in range(ms // 10):
            self.now_s += 0.01
            while feed_out and (self.output.count + self.output.block) / self.output.rate <= (self.now_s - 100.0) * self.pace:
                out = np.full((self.output.block, self.output.channels), 9.0, np.float32)
                times = SimpleNamespace(outputBufferDacTime=self.now_s + 0.02, currentTime=self.now_s)
                self.output.callback(out, len(out), times, None)
                assert (out == out[:, :1]).all()
                self.output.count += len(out)
                self.played = np.concatenate([self.played, out[:, 0]])
            if feed_in:
                # recorded 20 ms ago: what was played (20 + echo) ms before that
                begin = self.input.count - self.input.rate * (40 + self.echo_ms) // 1000
                span = np.arange(begin, begin + self.input.block)
                known = (span >= 0) & (span < len(self.played))
                echo = np.zeros(self.input.block, np.float32)
                echo[known] = self.played[span[known]]
                times = SimpleNamespace(inputBufferAdcTime=self.now_s - 0.02, currentTime=self.now_s)
                self.input.callback(echo[:, None], len(echo), times, None)
                self.input.count += len(echo)


def device(rate: int, index: int = 0) -> Device:
    return Device(index, f"card {index}", "ALSA", 2, 2, rate, True, True)


@pytest.fixture
async def open_fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    opened: list[SoundCards] = []

    async def open_cards(fake: FakeCards, in_rate: int = 48_000, out_rate: int = 48_000, **config: Any) -> SoundCards:
        monkeypatch.setattr(sound_cards, "load_sounddevice", lambda: fake)
        monkeypatch.setattr(sound_cards, "monotonic", lambda: fake.now_s)
        monkeypatch.setattr(sound_cards, "list_devices", lambda: [device(in_rate, 0), device(out_rate, 1)])
        opened.append(await SoundCards.open("0", "1", SoundCardConfig(**config)))
        return opened[-1]

    yield open_cards
    for cards in opened:
        await cards.close()


async def talk(fake: FakeCards, cards: SoundCards, frames: int, agent: Any) -> tuple[Samples, Samples]:
    """Run `frames` frames on the manual clock; returns near and far."""
    near, far = [], []
    for index in range(frames):
        while True:
            receiving = asyncio.ensure_future(cards.receive())
            await asyncio.sleep(0)
            if receiving.done():
                break
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            fake.advance(10)
        frame = receiving.result()
        assert frame is not None
        assert frame.start == index * USER_FRAME
        near.append(frame.near)
        far.append(frame.far)
        await asyncio.wait_for(cards.send(agent(index)), 5)
    return np.concatenate(near), np.concatenate(far)


def lag_ms(far: Samples, near: Samples) -> tuple[float, float]:
    """(by how much near comes after far, normalised correlation there)."""
    size = 1 << (2 * len(far)).bit_length()
    cross = np.fft.irfft(np.conj(np.fft.rfft(far, size)) * np.fft.rfft(near, size), size)
    peak = int(np.argmax(cross))
    lag = peak if peak < size // 2 else peak - size
    return 1000 * lag / USER_RATE_HZ, float(cross[peak] / (np.linalg.norm(far) * np.linalg.norm(near) + 1e-12))


@pytest.mark.parametrize(("in_rate", "out_rate"), [(48_000, 48_000), (16_000, 16_000), (44_100, 44_100), (8_000, 8_000)])
async def test_the_reference_lies_just_before_its_echo(open_fake: Any, in_rate: int, out_rate: int) -> None:
    fake = FakeCards(echo_ms=30)
    cards = await open_fake(fake, in_rate, out_rate)
    rng = np.random.default_rng(0)
    narrow = resample(rng.normal(0, 0.1, 6_000 * 4).astype(np.float32), 6_000, AGENT_RATE_HZ)
    near, far = await talk(fake, cards, 150, lambda i: narrow[i * AGENT_FRAME : (i + 1) * AGENT_FRAME])
    delay_ms, match = lag_ms(far[16_000:], near[16_000:])
    assert delay_ms == pytest.approx(30 + cards.config.lead_ms, abs=2)
    assert match > 0.97
    assert cards.stats.underruns == 0
    assert cards.stats.lost_input_ms == 0


async def test_what_is_sent_is_played_unbroken_on_every_channel(open_fake: Any) -> None:
    fake = FakeCards(mono_refused=True)
    cards = await open_fake(fake)
    assert fake.output.channels == 2
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(100 * AGENT_FRAME) / AGENT_RATE_HZ)).astype(np.float32)
    await talk(fake, cards, 100, lambda i: tone[i * AGENT_FRAME : (i + 1) * AGENT_FRAME])
    fake.advance(200)
    expected = resample(tone, AGENT_RATE_HZ, 48_000)
    begin = int(np.argmax(np.abs(fake.played) > 1e-3))
    played = fake.played[begin : begin + len(expected) - 5_000]
    _, match = lag_ms(played, expected[: len(played)])
    assert match > 0.999


@pytest.mark.parametrize("pace", [0.99, 1.01])
async def test_a_loudspeaker_whose_clock_drifts_is_followed_in_the_silences(open_fake: Any, pace: float) -> None:
    fake = FakeCards(pace=pace)
    cards = await open_fake(fake)
    speech = np.full(AGENT_FRAME, 0.1, np.float32)
    silence = np.zeros(AGENT_FRAME, np.float32)
    committed = []

    def agent(index: int) -> Samples:
        committed.append(cards.committed_ms())
        return speech if index % 100 < 60 else silence

    await talk(fake, cards, 2_000, agent)  # 40 s at 1 %: 400 ms apart
    assert max(committed[50:]) <= 200
    assert cards.stats.underruns == 0
    moved = cards.stats.left_out_ms if pace < 1 else cards.stats.repeated_ms
    assert moved >= 300
    assert cards.committed() == round(cards.committed_ms() * 24)


async def test_send_waits_while_enough_is_committed(open_fake: Any) -> None:
    fake = FakeCards()
    cards = await open_fake(fake)
    loud = np.full(AGENT_FRAME, 0.1, np.float32)

    async def flood() -> None:
        while True:
            await cards.send(loud)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(flood(), 0.2)
    assert 200 <= cards.committed_ms() <= 240
    fake.advance(100)
    await asyncio.wait_for(cards.send(loud), 1)


async def test_a_microphone_that_nobody_fetches_loses_sound_and_says_so(open_fake: Any) -> None:
    fake = FakeCards()
    cards = await open_fake(fake)
    fake.advance(3_000)
    assert cards.stats.lost_input_ms == pytest.approx(1_000, abs=20)


@pytest.mark.parametrize("which", ["microphone", "loudspeaker"])
async def test_a_device_that_falls_silent_is_gone(open_fake: Any, which: str) -> None:
    fake = FakeCards()
    cards = await open_fake(fake)
    await talk(fake, cards, 150, lambda _: np.zeros(AGENT_FRAME, np.float32))
    fell_silent_s = fake.now_s

    async def go_on() -> None:
        while True:
            await asyncio.sleep(0.001)
            fake.advance(10, feed_in=which != "microphone", feed_out=which != "loudspeaker")

    going_on = asyncio.ensure_future(go_on())
    with pytest.raises(DeviceError, match=f"The {which} .* stopped answering"):
        while fake.now_s < fell_silent_s + 3:
            await cards.receive()
            await cards.send(np.zeros(AGENT_FRAME, np.float32))
    going_on.cancel()
    assert fake.input.closed
    assert fake.output.closed
    assert await cards.receive() is None


async def test_a_device_that_never_starts_is_noticed(open_fake: Any) -> None:
    fake = FakeCards()
    cards = await open_fake(fake)
    receiving = asyncio.ensure_future(cards.receive())
    await asyncio.sleep(0.01)
    assert not receiving.done()
    fake.advance(2_600, feed_in=False, feed_out=False)
    with pytest.raises(DeviceError, match="does not start"):
        await asyncio.wait_for(receiving, 2)


async def test_a_device_that_cannot_be_opened_is_named_and_the_other_one_closed(open_fake: Any) -> None:
    fake = FakeCards()

    def busy(**_: Any) -> None:
        raise fake.PortAudioError("Device unavailable")

    fake.InputStream = busy  # type: ignore[assignment,method-assign]
    with pytest.raises(DeviceError, match=r"microphone 'card 0' cannot be opened .*Device unavailable.*--input"):
        await open_fake(fake)
    assert fake.output.closed


async def test_close_ends_the_conversation_and_may_be_called_twice(open_fake: Any) -> None:
    cards = await open_fake(FakeCards())
    waiting = asyncio.ensure_future(cards.receive())
    await asyncio.sleep(0.01)
    await cards.close()
    assert await asyncio.wait_for(waiting, 1) is None
    await cards.close()
    assert await cards.receive() is None


def test_the_configuration_is_checked() -> None:
    with pytest.raises(ConfigError, match="most_committed_ms"):
        SoundCardConfig(most_committed_ms=100)
    with pytest.raises(ConfigError, match="queue_ms"):
        SoundCardConfig(queue_ms=0)


# -- PulseAudio -------------------------------------------------------------------------------------------------------------------

CLIENT = """
    import asyncio, json, sys
    import numpy as np
    from apps.sound_cards import SoundCards
    from duplex.errors import DeviceError

    async def main(seconds, agent_file, out_file):
        agent = np.load(agent_file)
        near, far = [], []
        async with await SoundCards.open() as cards:
            for index in range(round(seconds * 50)):
                frame = await cards.receive()
                if index == 25:
                    print("READY", flush=True)
                near.append(frame.near)
                far.append(frame.far)
                block = agent[index * 480 : (index + 1) * 480]
                await cards.send(np.pad(block, (0, 480 - len(block))))
            stats = {name: getattr(cards.stats, name) for name in cards.stats.__slots__}
        np.savez(out_file, near=np.concatenate(near), far=np.concatenate(far))
        print(json.dumps(stats), flush=True)

    try:
        asyncio.run(main(float(sys.argv[1]), sys.argv[2], sys.argv[3]))
    except DeviceError as error:
        print("GONE", error, flush=True)
        sys.exit(error.exit_code)
"""


class Pulse:
    """A private PulseAudio: what is played into `micfeed` is the microphone, what arrives at `spk` is what was heard."""

    def __init__(self, folder: Path, rate: int, loop_ms: int | None) -> None:
        self.folder, self.rate = folder, rate
        (folder / "rt/pulse").mkdir(parents=True, mode=0o700)
        (folder / ".asoundrc").write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
        self.env = {
            **os.environ,
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder / "rt"),
            "PULSE_RUNTIME_PATH": str(folder / "rt/pulse"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        modules = [
            "module-native-protocol-unix",
            f"module-null-sink sink_name=spk rate={rate} channels=1",
            f"module-null-sink sink_name=micfeed rate={rate} channels=1",
            "module-remap-source master=micfeed.monitor source_name=virtmic",
        ]
        if loop_ms is not None:
            modules.append(f"module-loopback source=spk.monitor sink=micfeed latency_msec={loop_ms}")
        loads = [part for module in modules for part in ("-L", module)]
        self.children: list[subprocess.Popen[Any]] = []
        self.server = self.start("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", *loads)
        for _ in range(100):
            if self.control("set-default-source", "virtmic"):
                break
            time.sleep(0.05)
        assert self.control("set-default-sink", "spk")
        for sink in ("spk", "micfeed"):  # a null sink that sleeps gives a gap of a second when it wakes
            self.play(sink, Path("/dev/zero"))
        time.sleep(1)

    def control(self, *words: str) -> bool:
        return subprocess.run(["pactl", *words], env=self.env, capture_output=True, check=False).returncode == 0

    def client(self, seconds: float, agent: Samples) -> subprocess.Popen[str]:
        """A conversation of that many seconds, once it is under way; it leaves its recording in out.npz."""
        np.save(self.folder / "agent.npy", agent)
        words = [str(seconds), str(self.folder / "agent.npy"), str(self.folder / "out.npz")]
        client = self.start(sys.executable, "-c", textwrap.dedent(CLIENT), *words, stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        assert client.stdout.readline().strip() == "READY"
        return client

    def start(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        child = subprocess.Popen(command, env=self.env, stderr=subprocess.DEVNULL, **options)
        self.children.append(child)
        return child

    def play(self, sink: str, raw: Path) -> None:
        form = [f"--rate={self.rate}", "--channels=1", "--format=s16le", "--raw", "--latency-msec=40"]
        self.start("pacat", "--playback", f"--device={sink}", *form, str(raw))

    def stop(self) -> None:
        for child in reversed(self.children):
            child.kill()
        for child in self.children:
            child.wait(timeout=10)


@pytest.fixture
def pulse(request: pytest.FixtureRequest) -> Iterator[Pulse]:
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


def converse(pulse: Pulse, seconds: float, agent: Samples, user: Samples | None = None) -> tuple[Any, dict[str, float], Samples]:
    """Run the client; returns its recording, its statistics, and what the loudspeaker's monitor heard at the pulse rate."""
    heard_file = pulse.folder / "heard.raw"
    form = [f"--rate={pulse.rate}", "--channels=1", "--format=s16le", "--raw"]
    recorder = pulse.start("parec", "--device=spk.monitor", *form, str(heard_file))
    client = pulse.client(seconds, agent)
    if user is not None:
        raw = pulse.folder / "user.raw"
        raw.write_bytes((user * 32767).astype("<i2").tobytes())
        pulse.play("micfeed", raw)
    told, _ = client.communicate(timeout=60)
    assert client.returncode == 0, told
    recorder.terminate()
    recorder.wait(timeout=10)
    heard = np.frombuffer(heard_file.read_bytes(), "<i2").astype(np.float32) / 32768
    return np.load(pulse.folder / "out.npz"), json.loads(told.splitlines()[-1]), heard


@pytest.mark.sound
@pytest.mark.parametrize("pulse", [(48_000, None), (44_100, None)], indirect=True)
def test_both_directions_arrive_intact(pulse: Pulse) -> None:
    user, agent = speechlike(pulse.rate, 3, 1), speechlike(AGENT_RATE_HZ, 4, 2)
    recording, stats, heard = converse(pulse, 5.5, agent, user)
    for source, got in (
        (resample(user, pulse.rate, USER_RATE_HZ), recording["near"]),
        (resample(agent, AGENT_RATE_HZ, USER_RATE_HZ), resample(heard, pulse.rate, USER_RATE_HZ)),
    ):
        padded = np.pad(source, (0, max(len(got) - len(source), 0)))
        _, match = lag_ms(padded, np.pad(got, (0, len(padded) - len(got))))
        assert match > 0.95, stats
    assert stats["underruns"] <= 2


@pytest.mark.sound
@pytest.mark.parametrize("pulse", [(48_000, 60)], indirect=True)
def test_the_reference_lines_up_with_the_echo(pulse: Pulse) -> None:
    recording, _, _ = converse(pulse, 6, speechlike(AGENT_RATE_HZ, 6, 3))
    second = USER_RATE_HZ
    spans = [slice(start * second, (start + 1) * second) for start in range(2, 6)]
    found = [lag_ms(recording["far"][span], recording["near"][span]) for span in spans]
    print("echo after the reference, ms and correlation, each second:", [(round(at, 1), round(match, 3)) for at, match in found])
    # the loopback itself bends its rate to hold its latency, so each second is looked at alone
    assert np.median([match for _, match in found]) > 0.8
    assert all(0 < at < 250 for at, _ in found)  # a canceller looks for the echo here


@pytest.mark.sound
@pytest.mark.parametrize("pulse", [(48_000, None)], indirect=True)
def test_a_sound_server_that_dies_is_a_device_error_within_three_seconds(pulse: Pulse) -> None:
    client = pulse.client(30, np.zeros(0, np.float32))
    time.sleep(2.5)
    pulse.server.send_signal(signal.SIGKILL)
    began = time.monotonic()
    told, _ = client.communicate(timeout=20)
    assert time.monotonic() - began < 3.5  # and half a second for the process to end
    assert told.startswith("GONE The "), told
    assert client.returncode == DeviceError.exit_code
