"""A microphone and a loudspeaker as a transport of the conversation.

Two separate streams, since a duplex stream is broken where ALSA leads to PulseAudio; each runs at its device's own rate and is
resampled outside its callback. A callback only copies into or out of a ring and notes its time. The microphone's clock drives the
conversation. The loudspeaker's clock differs a little: `send` keeps the queue near `queue_ms` by leaving out or repeating silence.

Echo reference: what the output callback handed over is kept, and the two streams' time stamps place it beside the microphone frame
of the same moment, `lead_ms` early so that an echo never comes before its cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Self

import numpy as np

from apps.devices import NAMES, Device, Kind, find_device, list_devices, load_sounddevice
from apps.sample_ring import SampleRing
from apps.sound_card_state import SoundCardConfig, SoundCardStats, StreamClock, plausible
from duplex.audio import AGENT_FRAME, AGENT_RATE_HZ, FRAME_MS, USER_FRAME, USER_RATE_HZ, Frame, Samples
from duplex.errors import DeviceError
from duplex.resample import LiveResampler

log = logging.getLogger(__name__)

ALIGN_EVERY = 50 * USER_FRAME  # one second
SILENT_PEAK = 1e-4  # a frame below this can be left out or doubled unheard


class SoundCards:
    """The transport: `async with await SoundCards.open(...)`. Raises DeviceError when a device cannot be used, or leaves."""

    def __init__(self, microphone: Device, loudspeaker: Device, config: SoundCardConfig) -> None:
        self.config = config
        self.microphone, self.loudspeaker = microphone, loudspeaker
        self.stats = SoundCardStats()
        self._in_rate, self._out_rate = microphone.rate_hz, loudspeaker.rate_hz
        self._heard = SampleRing(2 * self._in_rate)
        self._queued = SampleRing(2 * self._out_rate)
        self._played = SampleRing(2 * self._out_rate)
        self._in_clock, self._out_clock = StreamClock(self._in_rate), StreamClock(self._out_rate)
        self._in_count = self._out_count = 0  # device samples seen by the callbacks
        self._in_down = LiveResampler(self._in_rate, USER_RATE_HZ)
        self._out_up = LiveResampler(AGENT_RATE_HZ, self._out_rate)
        self._far_down = LiveResampler(self._out_rate, USER_RATE_HZ)
        self._near = np.zeros(0, np.float32)  # microphone at 16 kHz, not yet given
        self._far = np.zeros(0, np.float32)  # played sound at 16 kHz, the last second or two
        self._far_start = 0  # index of far[0]
        self._shift: int | None = None  # far index minus near index of the same moment
        self._start = 0
        self._sent = False
        self._streams: list[Any] = []
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._opened_at = monotonic()
        self._last_in = self._last_out = 0.0
        self._closed = False

    @classmethod
    async def open(
        cls, microphone: str | None = None, loudspeaker: str | None = None, config: SoundCardConfig | None = None
    ) -> Self:
        """Choose by number or part of the name (None: the system's default), open, start. Raises DeviceError."""
        devices = await asyncio.to_thread(list_devices)
        chosen = find_device("input", microphone, devices), find_device("output", loudspeaker, devices)
        self = cls(*chosen, config or SoundCardConfig())
        try:
            await asyncio.to_thread(self._open_streams)
        except BaseException:
            await self.close()
            raise
        return self

    # -- the transport ------------------------------------------------------------------------------------------------------------

    async def receive(self) -> Frame | None:
        """The next 20 ms of the microphone beside what was played then; None after `close`. Cancelling loses no frame."""
        while len(self._near) < USER_FRAME:
            if self._closed:
                return None
            self._arrived.clear()
            self._near = np.concatenate([self._near, self._in_down.push(self._heard.read())])
            if len(self._near) >= USER_FRAME:
                break
            await self._check_devices()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), 0.1)
        near, self._near = self._near[:USER_FRAME], self._near[USER_FRAME:]
        frame = Frame(self._start, near, self._far_beside(self._start))
        self._start += USER_FRAME
        return frame

    async def send(self, samples: Samples) -> None:
        """Queue AGENT_FRAME samples (24 kHz) for the loudspeaker; waits while enough is committed. Cancelling drops this frame."""
        if samples.shape != (AGENT_FRAME,):
            raise ValueError(f"send takes one frame of [{AGENT_FRAME}] samples, not {samples.shape}.")
        while self.committed_ms() > self.config.most_committed_ms and not self._closed:
            await self._check_devices()
            await asyncio.sleep(0.005)
        if not self._sent:  # begin with the queue as full as it shall stay
            self._queue(np.zeros(AGENT_RATE_HZ * max(self.config.queue_ms - FRAME_MS, 0) // 1000, np.float32))
            self._sent = True
        silent = float(np.abs(samples).max()) < SILENT_PEAK
        off_ms = self._queued_ms() - self.config.queue_ms
        if silent and off_ms > self.config.slack_ms:
            self.stats.left_out_ms += FRAME_MS
            return
        if silent and off_ms < -self.config.slack_ms:
            self.stats.repeated_ms += FRAME_MS
            self._queue(samples)
        self._queue(samples)

    def committed(self) -> int:
        """Agent samples (24 kHz) sent but not yet played: our queue and the device's."""
        return round(self.committed_ms() * AGENT_RATE_HZ / 1000)

    def committed_ms(self) -> float:
        """The same in milliseconds."""
        return self._queued_ms() + 1000 * self._out_latency()

    async def close(self) -> None:
        """Stop both devices; may be called twice. A device that hangs while it closes is left behind after a second."""
        self._closed = True
        self._arrived.set()
        streams, self._streams = self._streams, []
        for stream in streams:
            thread = threading.Thread(target=_abandon, args=(stream,), daemon=True, name="close-sound")
            thread.start()
            for _ in range(100):
                if not thread.is_alive():
                    break
                await asyncio.sleep(0.01)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- callbacks: on PortAudio's threads ----------------------------------------------------------------------------------------

    def _on_input(self, data: Samples, count: int, times: Any, status: Any) -> None:
        now = monotonic()
        if status and status.input_overflow:
            self.stats.input_overflows += 1
        at_s = plausible(times.inputBufferAdcTime, times.currentTime, now, -self.config.latency_ms / 1000)
        self._in_clock.stamp(self._in_count, at_s)
        self._in_count += count
        taken = self._heard.write(data[:, 0])
        if taken < count:
            self.stats.lost_input_ms += 1000 * (count - taken) / self._in_rate
        self._last_in = now
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._arrived.set)

    def _on_output(self, data: Samples, count: int, times: Any, status: Any) -> None:
        now = monotonic()
        if status and status.output_underflow:
            self.stats.output_underflows += 1
        at_s = plausible(times.outputBufferDacTime, times.currentTime, now, self.config.latency_ms / 1000)
        self._out_clock.stamp(self._out_count, at_s)
        self._out_count += count
        mono = data[:, 0]
        filled = self._queued.read_into(mono)
        if filled < count:
            mono[filled:] = 0
            if self._sent:
                self.stats.underruns += 1
        data[:, 1:] = data[:, :1]
        self._played.write(mono)
        self._last_out = now

    # -- devices ------------------------------------------------------------------------------------------------------------------

    def _open_streams(self) -> None:
        sounddevice = load_sounddevice()
        self._opened_at = monotonic()
        for kind, device, callback in (("output", self.loudspeaker, self._on_output), ("input", self.microphone, self._on_input)):
            self._streams.append(_open_stream(sounddevice, kind, device, callback, self.config.latency_ms / 1000))  # type: ignore[arg-type]

    async def _check_devices(self) -> None:
        """Raises DeviceError, and closes, when a device is gone."""
        now = monotonic()
        for last, device, kind in ((self._last_in, self.microphone, "input"), (self._last_out, self.loudspeaker, "output")):
            quiet_s = now - (last or self._opened_at)
            starting = now - self._opened_at < self.config.start_s
            if quiet_s > (self.config.start_s if starting or not last else self.config.gone_s):
                await self.close()
                what = NAMES[kind]
                why = "stopped answering" if last else "does not start"
                raise DeviceError(f"The {what} {device.name!r} {why}; check that it is connected, then start again.")

    def _out_latency(self) -> float:
        return float(self._streams[0].latency) if self._streams else 0.0

    # -- queue and reference ------------------------------------------------------------------------------------------------------

    def _queue(self, samples: Samples) -> None:
        self._queued.write(self._out_up.push(samples))

    def _queued_ms(self) -> float:
        return 1000 * len(self._queued) / self._out_rate

    def _far_beside(self, near_index: int) -> Samples:
        """[USER_FRAME] of what was played while near_index.. was recorded; zeros where nothing is known."""
        played = self._far_down.push(self._played.read())
        self._far = np.concatenate([self._far, played])
        if len(self._far) > 3 * USER_RATE_HZ:
            cut = len(self._far) - 2 * USER_RATE_HZ
            self._far, self._far_start = self._far[cut:], self._far_start + cut
        if self._shift is None or near_index % ALIGN_EVERY == 0:
            self._align()
        out = np.zeros(USER_FRAME, np.float32)
        if self._shift is not None:
            begin = near_index + self._shift - self._far_start
            source = self._far[max(begin, 0) : max(begin + USER_FRAME, 0)]
            at = max(-begin, 0)
            out[at : at + len(source)] = source[: USER_FRAME - at] if at < USER_FRAME else 0
        return out

    def _align(self) -> None:
        """Move the reference only when the stamps have said so by more than half a frame: a canceller has to learn each move."""
        near_s, far_s = self._in_clock.origin_s(), self._out_clock.origin_s()
        if near_s is None or far_s is None:
            return
        shift = round((near_s - far_s + self.config.lead_ms / 1000) * USER_RATE_HZ)
        if self._shift is None or abs(shift - self._shift) > USER_FRAME // 2:
            self.stats.realigned += self._shift is not None
            self._shift = shift


def _open_stream(sounddevice: Any, kind: Kind, device: Device, callback: Callable[..., None], latency_s: float) -> Any:
    """A running stream with one channel, or with two where the device insists."""
    make = sounddevice.InputStream if kind == "input" else sounddevice.OutputStream
    error: Exception | None = None
    for channels in dict.fromkeys((1, min(2, device.channels(kind)))):
        stream = None
        try:
            stream = make(
                device=device.index,
                samplerate=device.rate_hz,
                channels=channels,
                dtype="float32",
                latency=latency_s,
                blocksize=device.rate_hz // 100,
                callback=callback,
            )
            stream.start()
            return stream
        except (sounddevice.PortAudioError, ValueError) as failure:
            error = failure
            if stream is not None:
                _abandon(stream)
    raise DeviceError(
        f"The {NAMES[kind]} {device.name!r} cannot be opened ({error}); close other programs that use it, "
        f"or choose another with --{kind}."
    )


def _abandon(stream: Any) -> None:
    """Abort and close; a device that is gone may complain, which tells us nothing new."""
    try:
        stream.abort(ignore_errors=True)
        stream.close(ignore_errors=True)
    except Exception as error:  # PortAudio raises several kinds
        log.debug("closing a sound stream: %s", error)
