"""A scripted PortAudio whose time the test moves by hand, and a conversation's end of it; fixture `open_fake`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import apps.sound_card_streams as sound_card_streams
import apps.sound_cards as sound_cards
from apps.devices import Device
from apps.sound_card_state import SoundCardConfig
from apps.sound_cards import SoundCards
from duplex.audio import AGENT_FRAME, USER_FRAME, USER_RATE_HZ, Samples


class FakeStream:
    def __init__(self, callback: Any, samplerate: int, blocksize: int, channels: int, latency: float, **more: Any) -> None:
        self.callback, self.rate, self.block, self.channels, self.latency = callback, samplerate, blocksize, channels, latency
        self.ended = more["finished_callback"]
        self.count = 0
        self.began_s = 0.0
        self.closed = False

    def start(self) -> None: ...

    def abort(self, ignore_errors: bool = True) -> None: ...

    def close(self, ignore_errors: bool = True) -> None:
        self.closed = True


class FakeCards:
    """The loudspeaker has a pace of its own and is heard by the microphone `echo_ms` later."""

    class PortAudioError(Exception): ...

    def __init__(
        self, pace: float = 1.0, echo_ms: int = 30, mono_refused: bool = False, rates: tuple[int, ...] | None = None
    ) -> None:
        self.pace, self.echo_ms, self.mono_refused, self.rates = pace, echo_ms, mono_refused, rates
        self.now_s = 100.0
        self.played = np.zeros(0, np.float32)
        self.played_before: list[Samples] = []
        """By the loudspeakers that are gone."""
        self.devices: list[Device] | None = None
        """What there is; None is what the test opened first."""
        self.unplugged = False
        self.tries = 0
        self.rescans = 0
        self.in_pace = 1.0
        self.stamp_off_s: Callable[[float], float] = lambda now_s: 0.0
        """How far off the microphone's time stamps are at a moment."""

    def rescan(self) -> None:
        self.rescans += 1

    def InputStream(self, **options: Any) -> FakeStream:
        self.input = self._stream(**options)
        return self.input

    def OutputStream(self, **options: Any) -> FakeStream:
        if self.mono_refused and options["channels"] == 1:
            raise self.PortAudioError("Invalid number of channels")
        self.output = self._stream(**options)
        self.played_before.append(self.played)
        self.played = np.zeros(0, np.float32)
        return self.output

    def _stream(self, **options: Any) -> FakeStream:
        self.tries += 1
        if self.unplugged:
            raise self.PortAudioError("Device unavailable", -9985)
        if self.rates is not None and options["samplerate"] not in self.rates:
            raise self.PortAudioError("Invalid sample rate", -9997)
        stream = FakeStream(**options)
        stream.began_s = self.now_s
        return stream

    def unplug(self) -> None:
        """Both streams die, and nothing can be opened."""
        self.unplugged = True
        self.output.ended()
        self.input.ended()

    def advance(self, ms: int, *, feed_in: bool = True, feed_out: bool = True) -> None:
        for _ in range(ms // 10):
            self.now_s += 0.01
            out_s = (self.now_s - self.output.began_s) * self.pace
            while (
                feed_out and not self.output.closed and (self.output.count + self.output.block) / self.output.rate <= out_s + 1e-9
            ):
                out = np.full((self.output.block, self.output.channels), 9.0, np.float32)
                times = SimpleNamespace(outputBufferDacTime=self.now_s + 0.02, currentTime=self.now_s)
                self.output.callback(out, len(out), times, None)
                assert (out == out[:, :1]).all()
                self.output.count += len(out)
                self.played = np.concatenate([self.played, out[:, 0]])
            in_s = (self.now_s - self.input.began_s) * self.in_pace
            while feed_in and not self.input.closed and (self.input.count + self.input.block) / self.input.rate <= in_s + 1e-9:
                # recorded 20 ms ago: what was played (20 + echo) ms before that, by a stream that may have been opened at another time
                apart = round(self.input.rate * (self.input.began_s - self.output.began_s))
                begin = self.input.count + apart - self.input.rate * (40 + self.echo_ms) // 1000
                span = np.arange(begin, begin + self.input.block)
                known = (span >= 0) & (span < len(self.played))
                echo = np.zeros(self.input.block, np.float32)
                echo[known] = self.played[span[known]]
                times = SimpleNamespace(inputBufferAdcTime=self.now_s - 0.02 + self.stamp_off_s(self.now_s), currentTime=self.now_s)
                self.input.callback(echo[:, None], len(echo), times, None)
                self.input.count += len(echo)


def device(rate: int, index: int = 0) -> Device:
    return Device(index, f"card {index}", "ALSA", 2, 2, rate, True, True)


@pytest.fixture(name="open_fake")
async def open_fake_fixture(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    opened: list[SoundCards] = []

    async def open_cards(fake: FakeCards, in_rate: int = 48_000, out_rate: int = 48_000, **config: Any) -> SoundCards:
        monkeypatch.setattr(sound_cards, "load_sounddevice", lambda: fake)
        for module in (sound_cards, sound_card_streams):
            monkeypatch.setattr(module, "monotonic", lambda: fake.now_s)
        monkeypatch.setattr(sound_cards, "rescan_devices", fake.rescan)
        first = [device(in_rate, 0), device(out_rate, 1)]
        monkeypatch.setattr(sound_cards, "list_devices", lambda: first if fake.devices is None else fake.devices)
        opened.append(await SoundCards.open("0", "1", SoundCardConfig(**{"retry_s": 0.01, **config})))
        return opened[-1]

    yield open_cards
    for cards in opened:
        await cards.close()


async def talk(fake: FakeCards, cards: SoundCards, frames: int, agent: Any, first: int = 0) -> tuple[Samples, Samples]:
    """Run `frames` frames on the manual clock, numbered from `first`; returns near and far."""
    near, far = [], []
    for index in range(first, first + frames):
        for spin in itertools.count():
            receiving = asyncio.ensure_future(cards.receive())
            await asyncio.sleep(0 if spin < 6 else 0.003)  # devices are opened on a thread, which takes real time
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
        await asyncio.wait_for(cards.send(agent(index)), 30)
    return np.concatenate(near), np.concatenate(far)


def silence(_: int) -> Samples:
    """What an agent says that says nothing."""
    return np.zeros(AGENT_FRAME, np.float32)


def lag_ms(far: Samples, near: Samples) -> tuple[float, float]:
    """(by how much near comes after far, normalised correlation of what they share there)."""
    size = 1 << (2 * len(far)).bit_length()
    cross = np.fft.irfft(np.conj(np.fft.rfft(far, size)) * np.fft.rfft(near, size), size)
    peak = int(np.argmax(cross))
    lag = peak if peak < size // 2 else peak - size
    cause, effect = far[max(-lag, 0) : len(far) - max(lag, 0)], near[max(lag, 0) : len(near) - max(-lag, 0)]
    return 1000 * lag / USER_RATE_HZ, float(cross[peak] / (np.linalg.norm(cause) * np.linalg.norm(effect) + 1e-12))
