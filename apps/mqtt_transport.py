"""A satellite as a transport: its audio frames are the microphone and the clock, pieces of the agent's voice go back to it.

The conversation goes at the pace at which the satellite sends. When a satellite that is connected sends nothing for a while (some
send only when they hear something), silence is put in its place in real time, so that turns end; while the broker is away the
conversation stands still and goes on where it was. Frames that come faster than they are taken wait here, 5 s at most; then the oldest
go. Works on sounds of any rate.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

import numpy as np

from apps.mqtt_playback import Piece, Playback, PlaybackConfig
from duplex.audio import AGENT_RATE_HZ, FRAME_MS, USER_FRAME, USER_RATE_HZ, Frame, Samples
from duplex.events import Event, FloorChanged, ResponseEnded
from duplex.resample import LiveResampler

log = logging.getLogger("duologue.mqtt")

MOST_FRAMES = 5000 // FRAME_MS
GAP_S = 0.4
"""A satellite silent for longer than this is filled up with silence."""
RATE_STEP_HZ = 25
"""Rates are taken as multiples of this: the usual ones are, and the converter of one that is not would be huge."""
TAIL_S = 0.25
"""Half duplex: how long after the agent's last sound the microphone stays closed."""


class SatelliteTransport:
    """One conversation's way to one satellite. All methods belong to the event loop's thread.

    hand_over: called with (piece, samples at the playback's rate) for each piece of voice. listen False: there is no microphone (an
    announcement), the clock alone gives the pace. half_duplex: for a satellite that does not cancel the agent's echo.
    """

    def __init__(
        self,
        hand_over: Callable[[Piece, Samples], None],
        playback: PlaybackConfig | None = None,
        *,
        listen: bool = True,
        half_duplex: bool = False,
    ) -> None:
        self.playback = Playback(playback)
        self.dropped_frames = 0
        """Frames of the microphone that nobody took in time."""
        self.unheard = 0
        """Agent samples of the newest interrupted response that were taken but never handed over."""
        self._hand_over, self._listen, self._half_duplex = hand_over, listen, half_duplex
        self._loop = asyncio.get_running_loop()
        self._frames: deque[Samples] = deque()
        self._rest = np.zeros(0, np.float32)
        self._in: LiveResampler | None = None
        self._out = LiveResampler(AGENT_RATE_HZ, self.playback.config.rate_hz)
        self._number = 0
        self._came = asyncio.Event()
        self._closed = self._frozen = self._deaf = False
        self._last_fed = self._loop.time()
        self._next_fill = self._loop.time() + (GAP_S if listen else 0.0)
        self._closed_until = 0.0  # half duplex: when the microphone opens again

    # -- from the satellite -------------------------------------------------------------------------------------------------------

    def feed(self, samples: Samples, rate_hz: int) -> None:
        """A piece of the microphone, [n] at any rate."""
        if self._closed or not self._listen:
            return
        rate_hz = round(rate_hz / RATE_STEP_HZ) * RATE_STEP_HZ
        if self._in is None or self._in.rate_in_hz != rate_hz:
            self._in = LiveResampler(rate_hz, USER_RATE_HZ)
        sound = np.concatenate([self._rest, self._in.push(samples)])
        whole = len(sound) // USER_FRAME
        self._frames.extend(sound[: whole * USER_FRAME].reshape(whole, USER_FRAME))
        self._rest = sound[whole * USER_FRAME :]
        while len(self._frames) > MOST_FRAMES:
            self._frames.popleft()
            self.dropped_frames += 1
            if self.dropped_frames in (1, 50, 500):
                log.warning("%d frames of a microphone were dropped: this machine is too slow for so many.", self.dropped_frames)
        self._last_fed = self._loop.time()
        self._next_fill = self._last_fed + GAP_S
        self._came.set()

    def played(self, passage: int, index: int | None) -> None:
        """The satellite reports a piece, or with None the whole passage, as played."""
        self.playback.played(passage, index, self._loop.time())

    # -- from the dialogue --------------------------------------------------------------------------------------------------------

    def freeze(self, frozen: bool) -> None:
        """The broker went away, or is back."""
        self._frozen = frozen
        self._next_fill = self._loop.time() + GAP_S
        self._came.set()

    def deafen(self, deaf: bool) -> None:
        """Replace the microphone by silence, or stop doing so."""
        self._deaf = deaf

    def steer(self, event: Event) -> None:
        """What the conversation's events mean for what was not handed over yet; for `Session.observe`, so that no frame comes between."""
        if isinstance(event, FloorChanged):
            self.playback.pause() if event.floor == "held" else self.playback.go_on()
        elif isinstance(event, ResponseEnded) and event.reason in ("interrupted", "cancelled"):
            self.unheard = self.playback.drop()

    def busy(self) -> bool:
        """Something is still to be played."""
        return self.playback.busy(self._loop.time())

    def starved_s(self) -> float:
        """Seconds since the satellite sent anything; 0 for an announcement."""
        return self._loop.time() - self._last_fed if self._listen else 0.0

    def end(self) -> None:
        """The conversation is over: `receive` gives None once the frames that came are taken."""
        self._closed = True
        self._came.set()

    # -- agent.transport.Transport ------------------------------------------------------------------------------------------------

    async def receive(self) -> Frame | None:
        """See agent.transport.Transport."""
        while not self._frames:
            if self._closed:
                return None
            self._came.clear()
            try:
                async with asyncio.timeout_at(None if self._frozen else self._next_fill):
                    await self._came.wait()
            except TimeoutError:
                self._fill()
        await asyncio.sleep(0)  # a backlog shall not keep everybody else waiting
        return self._next_frame()

    async def send(self, samples: Samples) -> None:
        """See agent.transport.Transport. Never waits: what is not due yet is kept here, where it can still be dropped."""
        self._give(self.playback.take(samples, self._loop.time()))

    def _give(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            sound = self._out.push(piece.samples)
            if piece.last:
                sound = np.concatenate([sound, self._out.flush()])
                self._out.reset()
            self._hand_over(piece, sound)

    def committed(self) -> int:
        """See agent.transport.Transport: at a beginning until the satellite has its first piece, else what it has to play."""
        return self.playback.committed(self._loop.time())

    async def close(self) -> None:
        """See agent.transport.Transport. What the satellite was given it plays to its end."""
        self.end()
        self._give(self.playback.finish(self._loop.time()))

    def _fill(self) -> None:
        self._frames.append(np.zeros(USER_FRAME, np.float32))
        self._next_fill += FRAME_MS / 1000
        if self._next_fill < self._loop.time() - 1.0:  # the machine slept: do not make up for it
            self._next_fill = self._loop.time()

    def _next_frame(self) -> Frame:
        near = self._frames.popleft()
        if self._half_duplex and self.playback.busy(now := self._loop.time()):
            self._closed_until = now + TAIL_S
        if self._deaf or self._loop.time() < self._closed_until:
            near = np.zeros(USER_FRAME, np.float32)
        frame = Frame(self._number * USER_FRAME, near)
        self._number += 1
        return frame
