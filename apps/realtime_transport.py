"""A client on a socket as a transport: its sound is the clock, and when none comes the server's own clock goes on with silence.

Orders that belong at a place in the sound (commit, clear) wait in the same line as the sound before them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import numpy as np

from duplex.audio import AGENT_FRAME, AGENT_RATE_HZ, FRAME_MS, USER_FRAME, USER_RATE_HZ, Frame, Samples, user_samples

FRAME_S = FRAME_MS / 1000
GAP_S, LONGEST_GAP_S = 0.2, 1.0
"""So long without sound, or half as long again as the client's packets are, and the server's clock goes on."""
AHEAD_S = 0.2
"""The agent's sound is sent at most so far ahead of real time."""
MOST_WAITING_S = 60.0
BEHIND_S, QUIET_PEAK = 0.1, 10 ** (-50 / 20)
"""While the agent speaks and more than this waits, as after a stall of the network, quiet frames are left out until it is caught up."""
BULK_S, BULK_FRAME_S = 0.25, 0.0025
"""Beyond so much waiting sound a client is not live: it is taken in a frame per BULK_FRAME_S, eight times real time."""


class SocketTransport:
    """Implements agent.transport.Transport. `push`, `order` and `hang_up` are called from the event loop by whoever reads the socket."""

    def __init__(self, deliver: Callable[[Samples], None]) -> None:
        """deliver: takes every frame of the agent's side, at its time."""
        self._deliver = deliver
        self._line: deque[Samples | Callable[[], None]] = deque()
        self._waiting = 0
        self._orders = 0
        self._arrived = asyncio.Event()
        self._over = False
        self._start = 0
        self._gap_s = GAP_S
        self._silent_at: float | None = None  # when the server's own clock makes the next frame
        self._audible_until = 0.0
        self.audible: Callable[[], bool] = lambda: True
        """Whether the frame that is being sent is heard at all; silence between responses is not sent ahead."""

    def push(self, samples: Samples) -> bool:
        """Take user samples [n]; False when too much is waiting already, and nothing was taken."""
        if self._waiting + len(samples) > user_samples(MOST_WAITING_S):
            return False
        if len(samples):
            self._line.append(samples)
            self._waiting += len(samples)
            self._gap_s = min(max(GAP_S, self._gap_s * 0.9, 1.5 * len(samples) / USER_RATE_HZ), LONGEST_GAP_S)
            self._arrived.set()
        return True

    def order(self, call: Callable[[], None]) -> bool:
        """Call `call` once the sound that was pushed before has been taken in; False when too many orders wait already."""
        if self._orders >= 256:
            return False
        self._orders += 1
        self._line.append(call)
        self._arrived.set()
        return True

    def hang_up(self) -> None:
        """The client is gone for good: the conversation's input ends."""
        self._over = True
        self._arrived.set()

    async def receive(self) -> Frame | None:
        """The next frame: the client's as soon as it is there, else silence at its time. Cancelling loses no frame."""
        loop = asyncio.get_running_loop()
        if self._silent_at is None:
            self._silent_at = loop.time() + self._gap_s
        while not self._over:
            self._give_orders()
            if self._waiting >= USER_FRAME:
                if self._may_leave_out(loop.time()):
                    continue
                if self._waiting > user_samples(BULK_S):
                    await asyncio.sleep(BULK_FRAME_S)
                self._silent_at = loop.time() + self._gap_s
                return self._frame()
            late = self._silent_at - loop.time()
            if late <= 0 or self._orders:  # an order after part of a frame: the rest of the frame is silence
                self._silent_at = max(self._silent_at + FRAME_S, loop.time() - 0.1) if late <= 0 else loop.time() + self._gap_s
                return self._frame()
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), late)
            except TimeoutError:
                continue
        return None

    async def send(self, samples: Samples) -> None:
        """Deliver the frame; waits while AHEAD_S are sent ahead already. Cancelling drops nothing, the frame is delivered first."""
        self._deliver(samples)
        if self.audible():
            now = asyncio.get_running_loop().time()
            self._audible_until = max(self._audible_until, now) + FRAME_S
            if (ahead := self._audible_until - now - AHEAD_S) > 0:
                await asyncio.sleep(ahead)

    def committed(self) -> int:
        """By this clock; the client's own buffer is not known."""
        ahead = self._audible_until - asyncio.get_running_loop().time()
        return max(round(ahead * AGENT_RATE_HZ), 0) // AGENT_FRAME * AGENT_FRAME

    async def close(self) -> None:
        """Forget what waits."""
        self._over = True
        self._line.clear()
        self._waiting = self._orders = 0

    def _give_orders(self) -> None:
        while self._line and callable(self._line[0]):
            call = self._line.popleft()
            assert callable(call)
            self._orders -= 1
            call()

    def _may_leave_out(self, now: float) -> bool:
        """Leave out the piece that is next, if there is too much of it and it holds nothing."""
        piece = self._line[0]
        if self._waiting <= user_samples(BEHIND_S) or self._audible_until <= now + BEHIND_S or callable(piece):
            return False
        head, rest = piece[:USER_FRAME], piece[USER_FRAME:]
        if float(np.abs(head).max()) > QUIET_PEAK:
            return False
        self._line.popleft()
        if len(rest):
            self._line.appendleft(rest)
        self._waiting -= len(head)
        return True

    def _frame(self) -> Frame:
        """One frame out of what waits before the next order, filled up with silence."""
        near = np.zeros(USER_FRAME, np.float32)
        filled = 0
        while filled < USER_FRAME and self._line and not callable(self._line[0]):
            piece = self._line.popleft()
            assert not callable(piece)
            count = min(len(piece), USER_FRAME - filled)
            near[filled : filled + count] = piece[:count]
            filled += count
            self._waiting -= count
            if count < len(piece):
                self._line.appendleft(piece[count:])
        frame = Frame(self._start, near)
        self._start += USER_FRAME
        return frame
