"""Where a conversation's sound comes from and goes to.

A transport deals in 20 ms frames: `receive` gives the user's, `send` takes the agent's. The session sends exactly one agent frame for
each user frame it received, zeros when the agent is silent, so both sides stay in step; a device with two clocks evens out the drift.
"""

from __future__ import annotations

from typing import Protocol

from duplex.audio import Frame, Samples


class Transport(Protocol):
    """A microphone and a loudspeaker, a file pair, a socket."""

    async def receive(self) -> Frame | None:
        """The next 20 ms of the user, None when the conversation is over. Cancelling loses no frame."""
        ...

    async def send(self, samples: Samples) -> None:
        """Take AGENT_FRAME samples (24 kHz) to play; waits while 200 ms are already committed. Cancelling drops this frame."""
        ...

    def committed(self) -> int:
        """Agent samples (24 kHz) that were sent but not yet played."""
        ...

    async def close(self) -> None:
        """Let go of devices and files; may be called twice."""
        ...
