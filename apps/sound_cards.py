"""A microphone and a loudspeaker as a transport of the conversation, which outlives the devices.

Two separate streams, since a duplex stream is broken where ALSA leads to PulseAudio. The microphone's clock drives the conversation. The
loudspeaker's clock differs a little: `send` keeps the queue near `queue_ms` by leaving out or repeating silence.

When a device goes away, or changes its rate, the conversation stands still: no frame passes, so the agent stops where it is, and both
devices are looked up and opened anew until they are back. What was waiting to be played is played then; only the gap is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from time import monotonic
from typing import Self

import numpy as np

from apps.devices import NAMES, Device, find_again, find_device, list_devices, load_sounddevice, rescan_devices
from apps.sound_card_echo import EchoReference
from apps.sound_card_state import SoundCardConfig, SoundCardStats
from apps.sound_card_streams import CardStream, Loudspeaker, Microphone
from apps.sound_card_thread import aside
from duplex.audio import AGENT_FRAME, AGENT_RATE_HZ, FRAME_MS, USER_FRAME, Frame, Samples
from duplex.errors import DeviceError

log = logging.getLogger(__name__)

SILENT_PEAK = 1e-4  # a frame below this can be left out or doubled unheard
OPEN_S = 10.0  # a sound system that takes longer to open a device hangs
CLOSE_S = 1.0

Pair = tuple[Microphone, Loudspeaker]


class SoundCards:
    """The transport: `async with await SoundCards.open(...)`. Raises DeviceError when a device cannot be used, or stays away."""

    def __init__(self, wanted: tuple[str | None, str | None], config: SoundCardConfig) -> None:
        self.config = config
        self.stats = SoundCardStats()
        self.on_note: Callable[[str], None] | None = None
        """Called with a sentence when a device goes away, and when it is back."""
        self.on_reopened: Callable[[], None] | None = None
        """Called when the conversation goes on with newly opened devices: whoever has learnt the room has to forget it."""
        self._wanted = wanted
        self._microphone: Microphone
        self._loudspeaker: Loudspeaker
        self._reference: EchoReference
        self._near = np.zeros(0, np.float32)  # microphone at 16 kHz, not yet given
        self._near_start = 0  # position of the microphone stream's first sample in the conversation
        self._start = 0
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._mending: asyncio.Task[None] | None = None
        self._hung = False  # a stream hangs while it closes: PortAudio must not be started anew beneath it
        self._closed = False

    @classmethod
    async def open(
        cls, microphone: str | None = None, loudspeaker: str | None = None, config: SoundCardConfig | None = None
    ) -> Self:
        """Choose by number or part of the name (None: the system's default), open, start. Raises DeviceError."""
        self = cls((microphone, loudspeaker), config or SoundCardConfig())
        self._use(*await self._aside(self._open_pair))
        return self

    # -- the transport ------------------------------------------------------------------------------------------------------------

    async def receive(self) -> Frame | None:
        """The next 20 ms of the microphone beside what was played then; None after `close`. Cancelling loses no frame.

        Waits while a device is away. Raises DeviceError when it stays away.
        """
        while len(self._near) < USER_FRAME:
            if self._closed:
                return None
            self._arrived.clear()
            self._near = np.concatenate([self._near, self._microphone.read()])
            if len(self._near) >= USER_FRAME:
                break
            await self._keep_devices()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), 0.1)
        near, self._near = self._near[:USER_FRAME], self._near[USER_FRAME:]
        frame = Frame(self._start, near, self._reference.beside(self._start - self._near_start))
        self._start += USER_FRAME
        return frame

    async def send(self, samples: Samples) -> None:
        """Queue AGENT_FRAME samples (24 kHz) for the loudspeaker; waits while enough is committed. Cancelling drops this frame."""
        if samples.shape != (AGENT_FRAME,):
            raise ValueError(f"send takes one frame of [{AGENT_FRAME}] samples, not {samples.shape}.")
        while self.committed_ms() > self.config.most_committed_ms and not self._closed:
            await self._keep_devices()
            await asyncio.sleep(0.005)
        speaker = self._loudspeaker
        if not speaker.live:
            speaker.go()
        silent = float(np.abs(samples).max()) < SILENT_PEAK
        off_ms = speaker.queued_ms() - self.config.queue_ms
        if silent and off_ms > self.config.slack_ms:
            self.stats.left_out_ms += FRAME_MS
            return
        if silent and off_ms < -self.config.slack_ms:
            self.stats.repeated_ms += FRAME_MS
            speaker.queue(samples)
        speaker.queue(samples)

    def committed(self) -> int:
        """Agent samples (24 kHz) sent but not yet played: our queue and the device's."""
        return round(self.committed_ms() * AGENT_RATE_HZ / 1000)

    def committed_ms(self) -> float:
        """The same in milliseconds."""
        return self._loudspeaker.queued_ms() + 1000 * self._loudspeaker.latency_s

    async def close(self) -> None:
        """Stop both devices; may be called twice. A device that hangs while it closes is left behind after a second."""
        self._closed = True
        self._arrived.set()
        if (mending := self._mending) is not None and mending is not asyncio.current_task():
            mending.cancel()
            await asyncio.wait({mending})
        await self._close_pair((self._microphone, self._loudspeaker))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- what a view shows --------------------------------------------------------------------------------------------------------

    def names(self) -> tuple[str, str]:
        """Of the microphone and the loudspeaker, with the rate where it is not the one that the device announces."""
        found = []
        for card in (self._microphone, self._loudspeaker):
            odd = "" if card.rate_hz == card.device.rate_hz else f" at {card.rate_hz} Hz"
            found.append(f"{card.device.name!r}{odd}")
        return found[0], found[1]

    def latency_ms(self) -> float:
        """From the microphone to the loudspeaker, by what the devices say of themselves and what waits in the queue."""
        return 1000 * self._microphone.latency_s + FRAME_MS + self.committed_ms()

    # -- devices that come and go -------------------------------------------------------------------------------------------------

    async def _keep_devices(self) -> None:
        """Returns once both devices run, or the transport is closed. Cancelling stops only the waiting. Raises DeviceError."""
        if self._mending is None:
            cards: tuple[CardStream, CardStream] = (self._microphone, self._loudspeaker)
            card, why = next(((card, why) for card in cards if (why := card.trouble()) is not None), (None, ""))
            if card is None or self._closed:
                return
            self._mending = asyncio.create_task(self._mend(card, why), name="mend-sound")
        mending = self._mending
        await asyncio.wait({mending})
        if self._mending is mending:
            self._mending = None
        if not mending.cancelled():
            mending.result()

    async def _mend(self, card: CardStream, why: str) -> None:
        """Open both devices anew, as soon as they are there."""
        what = f"The {NAMES[card.kind]} {card.device.name!r} {why}"
        if not (self._microphone.began and self._loudspeaker.began and self.config.away_s):
            await self.close()
            raise DeviceError(f"{what}; check that it is connected, then start again.")
        self._note(f"{what}; the conversation waits for it.")
        log.info("%s", what)
        gone = self._microphone, self._loudspeaker
        await self._close_pair(gone)
        since = monotonic()
        while not self._closed:
            try:
                found = await self._aside(self._open_pair_again)
                await self._first_sound(found)
                break
            except DeviceError as error:
                log.debug("%s", error)
                if monotonic() - since >= self.config.away_s:
                    self._closed = True
                    limit = f"and did not come back within {self.config.away_s:.0f} s"
                    raise DeviceError(f"{what}, {limit}; check that it is connected, then start again.") from None
            await asyncio.sleep(self.config.retry_s)
        else:
            return
        for old, new in zip(gone, found, strict=True):
            if "Hz" in why and old.kind == card.kind and old.rate_hz == new.rate_hz:
                new.watched = False  # it says so itself, and will say so again
        found[1].take_over(gone[1])
        self._use(*found)
        self.stats.reopened += 1
        self._note("The conversation goes on with {} and {}.".format(*self.names()))
        if self.on_reopened is not None:
            self.on_reopened()

    async def _first_sound(self, pair: Pair) -> None:
        """Until both have called back; closes them and raises DeviceError when they do not."""
        try:
            while not all(card.began for card in pair):
                for card in pair:
                    if (why := card.trouble()) is not None:
                        raise DeviceError(f"The {NAMES[card.kind]} {card.device.name!r} {why}.")
                await asyncio.sleep(0.02)
        except BaseException:
            await self._close_pair(pair)
            raise

    def _use(self, microphone: Microphone, loudspeaker: Loudspeaker) -> None:
        self._microphone, self._loudspeaker = microphone, loudspeaker
        self._reference = EchoReference(microphone, loudspeaker, self.config, self.stats)
        self._near_start = self._start + len(self._near)

    def _note(self, text: str) -> None:
        if self.on_note is not None:
            self.on_note(text)

    # -- blocking work, aside -----------------------------------------------------------------------------------------------------

    async def _aside(self, open_pair: Callable[[], Pair]) -> Pair:
        try:
            return await aside(open_pair, OPEN_S, _close_both)
        except TimeoutError:
            raise DeviceError("The sound system hangs while it opens a device; restart it, then try again.") from None

    def _open_pair(self) -> Pair:
        devices = list_devices()
        return self._opened(find_device("input", self._wanted[0], devices), find_device("output", self._wanted[1], devices))

    def _open_pair_again(self) -> Pair:
        if not self._hung:
            rescan_devices()
        devices = list_devices()
        microphone = find_again(self._microphone.device, "input", self._wanted[0], devices)
        return self._opened(microphone, find_again(self._loudspeaker.device, "output", self._wanted[1], devices))

    def _opened(self, microphone: Device, loudspeaker: Device) -> Pair:
        sounddevice = load_sounddevice()
        speaker = Loudspeaker(loudspeaker, self.config, self.stats)
        speaker.open(sounddevice)
        mic = Microphone(microphone, self.config, self.stats, self._on_arrival)
        try:
            mic.open(sounddevice)
        except BaseException:
            speaker.close()
            raise
        return mic, speaker

    def _on_arrival(self) -> None:
        """Called from the microphone's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def _close_pair(self, pair: Pair) -> None:
        for card in reversed(pair):
            try:
                await aside(card.close, CLOSE_S)
            except TimeoutError:
                self._hung = True
                log.info("the %s %r hangs while it closes and is left behind", NAMES[card.kind], card.device.name)


def _close_both(pair: Pair) -> None:
    for card in reversed(pair):
        card.close()
