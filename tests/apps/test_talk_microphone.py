"""Mute and push to talk: what the keys do, and what the session gets while the microphone is shut."""

from __future__ import annotations

import numpy as np
import pytest

from apps.talk_microphone import GatedTransport, MicrophoneGate
from duplex.audio import AGENT_FRAME, USER_FRAME, Frame, Samples


@pytest.mark.parametrize(
    ("push_to_talk", "keys", "shut", "state"),
    [
        (False, b"", False, "open"),
        (False, b" ", False, "open"),
        (False, b"m", True, "muted"),
        (False, b"mM", False, "open"),
        (True, b"", True, "shut, space to talk"),
        (True, b" ", False, "open, space when you are done"),
        (True, b"  ", True, "shut, space to talk"),
        (True, b" m", True, "muted"),
        (True, b" m ", False, "open, space when you are done"),
        (True, b"m ", False, "open, space when you are done"),
        (True, b"x", True, "shut, space to talk"),
    ],
)
def test_the_keys(push_to_talk: bool, keys: bytes, shut: bool, state: str) -> None:
    gate = MicrophoneGate(push_to_talk)
    for key in keys:
        gate.press(bytes([key]))
    assert gate.shut() is shut
    assert gate.state() == state


class Device:
    def __init__(self) -> None:
        self.start = 0
        self.got: list[Samples] = []
        self.closed = False

    async def receive(self) -> Frame | None:
        if self.start == 3 * USER_FRAME:
            return None
        frame = Frame(self.start, np.full(USER_FRAME, 0.5, np.float32), np.full(USER_FRAME, 0.25, np.float32))
        self.start += USER_FRAME
        return frame

    async def send(self, samples: Samples) -> None:
        self.got.append(samples)

    def committed(self) -> int:
        return 7

    async def close(self) -> None:
        self.closed = True


async def test_a_shut_gate_gives_silence_without_a_reference_and_keeps_the_clock() -> None:
    gate, device = MicrophoneGate(), Device()
    gated = GatedTransport(device, gate)
    first = await gated.receive()
    gate.press(b"m")
    second = await gated.receive()
    gate.press(b"m")
    third = await gated.receive()
    assert first is not None and second is not None and third is not None
    assert [frame.start for frame in (first, second, third)] == [0, USER_FRAME, 2 * USER_FRAME]
    assert [float(frame.near[0]) for frame in (first, second, third)] == [0.5, 0.0, 0.5]
    assert [frame.far is None for frame in (first, second, third)] == [False, True, False]
    assert await gated.receive() is None
    await gated.send(np.zeros(AGENT_FRAME, np.float32))
    await gated.close()
    assert len(device.got) == 1 and device.closed and gated.committed() == 7
