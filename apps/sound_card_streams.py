"""A microphone and a loudspeaker: one stream each, at the device's own rate, with a ring to the event loop and a clock.

A callback only copies into or out of a ring and notes its time; resampling happens on the other side. A device that refuses the rate it
announces is tried at the usual ones. A stream lives once: when its device goes away, a new object is made for the one that comes back,
so that a callback of the dead one that still runs somewhere touches nothing of the living.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, ClassVar

import numpy as np

from apps.devices import NAMES, Device, Kind
from apps.sample_ring import SampleRing
from apps.sound_card_state import RateWatch, SoundCardConfig, SoundCardStats, StreamClock, plausible
from duplex.audio import AGENT_RATE_HZ, FRAME_MS, USER_RATE_HZ, Samples
from duplex.errors import DeviceError
from duplex.resample import LiveResampler, resample

log = logging.getLogger(__name__)

USUAL_RATES_HZ = (48_000, 44_100, 32_000, 24_000, 16_000, 8_000, 96_000)
RING_S = 2
NO_SUCH_RATE_HELPS = (-9996, -9985)  # PortAudio: invalid device, device unavailable


class CardStream:
    """What both directions share: opening, the clock, and how it tells that something is wrong."""

    kind: ClassVar[Kind]

    def __init__(self, device: Device, config: SoundCardConfig, stats: SoundCardStats) -> None:
        self.device, self.config, self.stats = device, config, stats
        self.rate_hz = 0
        """Of the open stream; not always the one that the device announces."""
        self.watched = True
        """Whether a rate that is off counts as trouble."""
        self._stream: Any = None
        self._opened_at = self._last = 0.0
        self._ended = False

    def open(self, sounddevice: Any) -> None:
        """Start the stream, with one channel, or with two where the device insists; blocks. Raises DeviceError."""
        make = sounddevice.InputStream if self.kind == "input" else sounddevice.OutputStream
        first: Exception | None = None
        for rate_hz in dict.fromkeys((self.device.rate_hz, *USUAL_RATES_HZ)):
            for channels in dict.fromkeys((1, min(2, self.device.channels(self.kind)))):
                stream = None
                self._prepare(rate_hz)
                try:
                    stream = make(
                        device=self.device.index,
                        samplerate=rate_hz,
                        channels=channels,
                        dtype="float32",
                        latency=self.config.latency_ms / 1000,
                        blocksize=rate_hz // 100,
                        callback=self._on_block,
                        finished_callback=self._on_end,
                    )
                    stream.start()
                    self._stream = stream
                    return
                except (sounddevice.PortAudioError, ValueError) as failure:
                    first = first or failure
                    if stream is not None:
                        _abandon(stream)
                    if len(failure.args) > 1 and failure.args[1] in NO_SUCH_RATE_HELPS:
                        break
            else:
                continue
            break
        raise DeviceError(
            f"The {NAMES[self.kind]} {self.device.name!r} cannot be opened ({first}); close other programs that use it, "
            f"or choose another with --{self.kind}."
        )

    def close(self) -> None:
        """Stop and let go; blocks, for ever where a dead sound system hangs."""
        stream, self._stream = self._stream, None
        if stream is not None:
            _abandon(stream)

    @property
    def began(self) -> bool:
        """The first callback has come."""
        return self._last > 0

    @property
    def latency_s(self) -> float:
        """Of the device, as it says itself."""
        return float(self._stream.latency) if self._stream is not None else 0.0

    def trouble(self) -> str | None:
        """What is wrong with it, as the end of a sentence that begins with its name; None while it runs."""
        now = monotonic()
        if self._ended:
            return "stopped answering" if self.began else "does not start"
        starting = now - self._opened_at < self.config.start_s
        quiet_s = now - (self._last or self._opened_at)
        if quiet_s > (self.config.start_s if starting or not self.began else self.config.gone_s):
            return "stopped answering" if self.began else "does not start"
        if starting or not self.watched:
            return None
        measured_hz = self._watch.measure(self._count, now)
        return None if measured_hz is None else f"runs at about {measured_hz:.0f} Hz instead of {self.rate_hz}"

    def _prepare(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self.clock = StreamClock(rate_hz)
        self._watch = RateWatch(rate_hz, self.config)
        self._count = 0  # device samples seen by the callback
        self._ended = False
        self._opened_at = monotonic()

    def _on_block(self, data: Samples, count: int, times: Any, status: Any) -> None:
        raise NotImplementedError

    def _on_end(self) -> None:
        self._ended = True


class Microphone(CardStream):
    """Sound in; `arrived` is called from the device's thread with each block."""

    kind = "input"

    def __init__(self, device: Device, config: SoundCardConfig, stats: SoundCardStats, arrived: Callable[[], None]) -> None:
        super().__init__(device, config, stats)
        self._arrived = arrived

    def read(self) -> Samples:
        """[n] at 16 kHz: everything new."""
        return self._down.push(self._heard.read())

    def _prepare(self, rate_hz: int) -> None:
        super()._prepare(rate_hz)
        self._heard = SampleRing(RING_S * rate_hz)
        self._down = LiveResampler(rate_hz, USER_RATE_HZ)

    def _on_block(self, data: Samples, count: int, times: Any, status: Any) -> None:
        now = monotonic()
        if status and status.input_overflow:
            self.stats.input_overflows += 1
        at_s = plausible(times.inputBufferAdcTime, times.currentTime, now, -self.config.latency_ms / 1000)
        self.clock.stamp(self._count, at_s)
        self._count += count
        taken = self._heard.write(data[:, 0])
        if taken < count:
            self.stats.lost_input_ms += 1000 * (count - taken) / self.rate_hz
        self._last = now
        self._arrived()

    def _on_end(self) -> None:
        super()._on_end()
        self._arrived()


class Loudspeaker(CardStream):
    """Sound out. Silent until `go`; what it hands to the device is kept as the echo reference."""

    kind = "output"

    def __init__(self, device: Device, config: SoundCardConfig, stats: SoundCardStats) -> None:
        super().__init__(device, config, stats)
        self._live = False

    @property
    def live(self) -> bool:
        """The queue is being played."""
        return self._live

    def go(self) -> None:
        """Begin to play, with the queue as full as it shall stay: silence first, then what was left over, then the coming frame."""
        rest = self._queued.read()
        fill = self.rate_hz * (self.config.queue_ms - FRAME_MS) // 1000 - len(rest)
        self._queued.write(np.zeros(max(fill, 0), np.float32))
        self._queued.write(rest)
        self._live = True

    def queue(self, samples: Samples) -> None:
        """[n] at 24 kHz, to be played next."""
        self._queued.write(self._up.push(samples))

    def queued_ms(self) -> float:
        """What waits in our own queue."""
        return 1000 * len(self._queued) / self.rate_hz

    def take_over(self, gone: Loudspeaker) -> None:
        """Queue what the one that is gone had still to play."""
        self._queued.write(resample(gone._queued.read(), gone.rate_hz, self.rate_hz))

    def played(self) -> Samples:
        """[n] at 16 kHz: everything new that was handed to the device."""
        return self._down.push(self._played.read())

    def _prepare(self, rate_hz: int) -> None:
        super()._prepare(rate_hz)
        self._queued, self._played = SampleRing(RING_S * rate_hz), SampleRing(RING_S * rate_hz)
        self._up = LiveResampler(AGENT_RATE_HZ, rate_hz)
        self._down = LiveResampler(rate_hz, USER_RATE_HZ)

    def _on_block(self, data: Samples, count: int, times: Any, status: Any) -> None:
        now = monotonic()
        if status and status.output_underflow:
            self.stats.output_underflows += 1
        at_s = plausible(times.outputBufferDacTime, times.currentTime, now, self.config.latency_ms / 1000)
        self.clock.stamp(self._count, at_s)
        self._count += count
        mono = data[:, 0]
        filled = self._queued.read_into(mono) if self._live else 0
        if filled < count:
            mono[filled:] = 0
            if self._live:
                self.stats.underruns += 1
        data[:, 1:] = data[:, :1]
        self._played.write(mono)
        self._last = now


def _abandon(stream: Any) -> None:
    """Abort and close; a device that is gone may complain, which tells us nothing new."""
    try:
        stream.abort(ignore_errors=True)
        stream.close(ignore_errors=True)
    except Exception as error:  # PortAudio raises several kinds
        log.debug("closing a sound stream: %s", error)
