"""The user's own switch at the microphone: mute, and push to talk.

Notable: while it is shut the session gets silence *without* an echo reference. With one, the canceller would learn that the room has no
echo, and the agent would hear itself when the microphone opens again.
"""

from __future__ import annotations

import numpy as np

from agent.transport import Transport
from duplex.audio import Frame, Samples

SPACE, MUTE = b" ", b"m"


class MicrophoneGate:
    """Whether the microphone is open. With push to talk it is shut until space is pressed, and again after the next press."""

    def __init__(self, push_to_talk: bool = False) -> None:
        self.push_to_talk = push_to_talk
        self._talking = False
        self._muted = False

    def press(self, key: bytes) -> None:
        """A key of the terminal: m mutes and opens again, space talks; others do nothing here. A terminal tells no key's release."""
        if key.lower() == MUTE:
            self._muted = not self._muted
        elif key == SPACE and self.push_to_talk:
            self._talking, self._muted = not self._talking or self._muted, False

    def shut(self) -> bool:
        """Nothing may pass."""
        return self._muted or (self.push_to_talk and not self._talking)

    def state(self) -> str:
        """For the view."""
        if self._muted:
            return "muted"
        if not self.push_to_talk:
            return "open"
        return "open, space when you are done" if self._talking else "shut, space to talk"

    def keys(self) -> str:
        """What the keys do."""
        return "space talks, m mutes" if self.push_to_talk else "m mutes"


class GatedTransport:
    """Another transport behind the gate."""

    def __init__(self, inner: Transport, gate: MicrophoneGate) -> None:
        self._inner, self._gate = inner, gate

    async def receive(self) -> Frame | None:
        """As the inner transport's; silence while the gate is shut."""
        frame = await self._inner.receive()
        if frame is not None and self._gate.shut():
            return Frame(frame.start, np.zeros_like(frame.near))
        return frame

    async def send(self, samples: Samples) -> None:
        """As the inner transport's."""
        await self._inner.send(samples)

    def committed(self) -> int:
        """As the inner transport's."""
        return self._inner.committed()

    async def close(self) -> None:
        """As the inner transport's."""
        await self._inner.close()
