"""The echo reference: what the loudspeaker played, placed beside the microphone frame of the same moment.

The two streams' time stamps say where; `lead_ms` early, so that an echo never comes before its cause. Through a sound server the stamps
wander by tens of milliseconds while the streams themselves, counted in samples, keep their distance; every move of the reference costs the
canceller what it has learnt, and for a second the agent would hear itself. So once something has been played, only `realign_ms` move it.
"""

from __future__ import annotations

import numpy as np

from apps.sound_card_state import SoundCardConfig, SoundCardStats
from apps.sound_card_streams import Loudspeaker, Microphone
from duplex.audio import USER_FRAME, USER_RATE_HZ, Samples

ALIGN_EVERY_FRAMES = 50  # one second


class EchoReference:
    """Of one pair of streams. Positions count microphone samples at 16 kHz since that stream began."""

    def __init__(self, microphone: Microphone, loudspeaker: Loudspeaker, config: SoundCardConfig, stats: SoundCardStats) -> None:
        self._microphone, self._loudspeaker = microphone, loudspeaker
        self._config, self._stats = config, stats
        self._far = np.zeros(0, np.float32)  # the last second or two
        self._far_start = 0  # position of far[0] in what was played
        self._shift: int | None = None  # position in what was played minus position in the microphone, of the same moment
        self._frames = 0
        self._sounded = False  # the canceller has had something to learn from

    def beside(self, near_index: int) -> Samples:
        """[USER_FRAME] of what was played while near_index.. was recorded; zeros where nothing is known."""
        self._far = np.concatenate([self._far, self._loudspeaker.played()])
        if len(self._far) > 3 * USER_RATE_HZ:
            cut = len(self._far) - 2 * USER_RATE_HZ
            self._far, self._far_start = self._far[cut:], self._far_start + cut
        if self._shift is None or self._frames % ALIGN_EVERY_FRAMES == 0:
            self._align()
        self._frames += 1
        out = np.zeros(USER_FRAME, np.float32)
        if self._shift is not None:
            begin = near_index + self._shift - self._far_start
            source = self._far[max(begin, 0) : max(begin + USER_FRAME, 0)]
            at = max(-begin, 0)
            out[at : at + len(source)] = source[: USER_FRAME - at] if at < USER_FRAME else 0
        self._sounded = self._sounded or bool(out.any())
        return out

    def _align(self) -> None:
        """Move the reference when the stamps say so: freely before anything was played, then only by more than `realign_ms`."""
        near_s, far_s = self._microphone.clock.origin_s(), self._loudspeaker.clock.origin_s()
        if near_s is None or far_s is None:
            return
        shift = round((near_s - far_s + self._config.lead_ms / 1000) * USER_RATE_HZ)
        most_off = self._config.realign_ms * USER_RATE_HZ // 1000 if self._sounded else 0
        if self._shift is None or abs(shift - self._shift) > most_off:
            self._stats.realigned += self._sounded
            self._shift = shift
