"""How much the sound cards add: from a sound at the microphone to the same sound at the loudspeaker, with a conversation that echoes.

Run as a program for more than a glance: `python -m tests.apps.test_sound_cards_round_trip 200` prints median and p99 of 200 clicks.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from duplex.audio import Samples
from tests.apps.virtual_sound import Pulse, pulse_fixture  # noqa: F401
from tests.waiting import until

EVERY_S = 0.25
ECHOING = """
    import asyncio, sys
    from apps.sound_cards import SoundCards
    from duplex.audio import AGENT_RATE_HZ, USER_RATE_HZ
    from duplex.resample import LiveResampler
    import numpy as np

    async def main(seconds):
        up, waiting = LiveResampler(USER_RATE_HZ, AGENT_RATE_HZ), np.zeros(0, np.float32)
        async with await SoundCards.open() as cards:
            for index in range(round(seconds * 50)):
                frame = await cards.receive()
                waiting = np.concatenate([waiting, up.push(frame.near)])
                await cards.send(waiting[:480] if len(waiting) >= 480 else np.zeros(480, np.float32))
                waiting = waiting[480:]
                if index == 50:
                    print("READY", flush=True)
            print(cards.latency_ms(), cards.stats, flush=True)

    asyncio.run(main(float(sys.argv[1])))
"""


class Listener:
    """What passes a source, with the time of each sample: the earliest arrival says when sample 0 was."""

    def __init__(self, pulse: Pulse, source: str) -> None:
        form = [f"--rate={pulse.rate}", "--channels=1", "--format=s16le", "--raw", "--latency-msec=5"]
        self.rate, self.parts, self.origins = pulse.rate, list[bytes](), list[float]()
        self.program = pulse.start("parec", f"--device={source}", *form, stdout=subprocess.PIPE, bufsize=0)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        count = 0
        assert self.program.stdout is not None
        while part := self.program.stdout.read(480):
            self.parts.append(part)
            count += len(part) // 2
            self.origins.append(time.monotonic() - count / self.rate)

    def onsets_s(self) -> Samples:
        """[k] times of the clicks."""
        self.program.terminate()
        self.thread.join(timeout=10)
        sound = np.abs(np.frombuffer(b"".join(self.parts)[: sum(map(len, self.parts)) // 2 * 2], "<i2")) / 32768
        loud = np.flatnonzero(sound > 0.1)
        first = loud[np.diff(loud, prepend=-self.rate) > 0.1 * self.rate]
        return np.asarray(first / self.rate + np.percentile(self.origins, 5), np.float64)  # type: ignore[return-value]


def round_trips_ms(pulse: Pulse, count: int) -> tuple[list[float], str]:
    """One for each of `count` clicks that came through, and what the program says of itself."""
    program = pulse.python(textwrap.dedent(ECHOING), count * EVERY_S + 4)
    assert program.stdout is not None
    assert program.stdout.readline().strip() == "READY"
    near, far = Listener(pulse, "micfeed.monitor"), Listener(pulse, "spk.monitor")
    until(lambda: near.parts and far.parts)
    time.sleep(0.5)
    clicks = np.zeros(round(count * EVERY_S * pulse.rate), np.float32)
    burst = 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(pulse.rate // 50) / pulse.rate)
    for index in range(count):
        jitter = (index * 7) % 20 / 1000  # so that clicks fall anywhere within a frame
        at = round((index * EVERY_S + jitter) * pulse.rate)
        clicks[at : at + len(burst)] = burst
    pulse.say(clicks)
    told, _ = program.communicate(timeout=count * EVERY_S + 30)
    said, heard = near.onsets_s(), far.onsets_s()
    found = []
    for at in said:
        later = heard[(heard > at) & (heard < at + 0.5)]
        if len(later):
            found.append(1000 * float(later[0] - at))
    return found, str(told)


@pytest.mark.sound
@pytest.mark.parametrize("pulse", [(48_000, None), (44_100, None)], indirect=True, ids=["48k", "44.1k"])
def test_the_way_through_the_devices_is_short(pulse: Pulse) -> None:
    found, told = round_trips_ms(pulse, 20)
    print(f"median {np.median(found):.0f} ms, worst {max(found):.0f} ms of {len(found)}; it says {told}")
    assert len(found) >= 18
    assert 60 < np.median(found) < 300


def main() -> None:
    """Median and p99 at both rates."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    for rate in (48_000, 44_100):
        folder = Path(tempfile.mkdtemp(prefix="snd"))
        pulse = Pulse(folder, rate, None)
        try:
            found, told = round_trips_ms(pulse, count)
            median, p99 = np.percentile(found, [50, 99])
            print(f"{rate} Hz: median {median:.0f} ms, p99 {p99:.0f} ms of {len(found)} clicks; the program says {told}")
        finally:
            pulse.stop()
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
