"""The sound formats of the Realtime protocol: 16-bit PCM at 24 kHz, and G.711 mu-law and A-law at 8 kHz.

G.711 is two tables: 256 codes to samples, and 65,536 samples to the nearest code. Python's own `audioop` is gone since 3.13.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from duplex.audio import AGENT_RATE_HZ, USER_RATE_HZ, Samples
from duplex.resample import LiveResampler

Format = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
RATE_HZ: dict[Format, int] = {"audio/pcm": AGENT_RATE_HZ, "audio/pcmu": 8000, "audio/pcma": 8000}


@cache
def decode_table(kind: Format) -> NDArray[np.int16]:
    """[256] samples of the codes."""
    code = np.arange(256)
    if kind == "audio/pcmu":
        flipped = ~code & 0xFF
        magnitude = ((((flipped & 0x0F) << 3) + 0x84) << ((flipped >> 4) & 7)) - 0x84
        negative = (flipped & 0x80) != 0
    else:
        flipped = code ^ 0x55
        segment, step = (flipped >> 4) & 7, (flipped & 0x0F) << 4
        magnitude = np.where(segment == 0, step + 8, (step + 0x108) << np.maximum(segment - 1, 0))
        negative = (flipped & 0x80) == 0
    return np.where(negative, -magnitude, magnitude).astype(np.int16)


@cache
def encode_table(kind: Format) -> NDArray[np.uint8]:
    """[65536] codes of the samples -32768 to 32767: the code whose sample is nearest."""
    values = decode_table(kind).astype(np.int32)
    order = np.argsort(values, kind="stable")
    sorted_values = values[order]
    middles = (sorted_values[1:] + sorted_values[:-1]) / 2
    return order[np.searchsorted(middles, np.arange(-32768, 32768))].astype(np.uint8)


class SoundIn:
    """What a client sends, as user samples; one stream."""

    def __init__(self, kind: Format) -> None:
        self.kind: Format = kind
        self._resample = LiveResampler(RATE_HZ[kind], USER_RATE_HZ)

    def decode(self, data: bytes) -> Samples:
        """Bytes of whole samples -> [n] user samples. Raises ValueError for half a sample."""
        if self.kind == "audio/pcm":
            if len(data) % 2:
                raise ValueError("16-bit sound has an even number of bytes.")
            pcm = np.frombuffer(data, "<i2")
        else:
            pcm = decode_table(self.kind)[np.frombuffer(data, np.uint8)]
        return self._resample.push(pcm.astype(np.float32) / np.float32(32768))


class SoundOut:
    """The agent's voice, as a client wants it; one response."""

    def __init__(self, kind: Format) -> None:
        self.kind: Format = kind
        self._resample = LiveResampler(AGENT_RATE_HZ, RATE_HZ[kind])

    def encode(self, samples: Samples) -> bytes:
        """[n] agent samples -> bytes; a resampled format holds back 3 ms, which at the end of a response are silence."""
        pcm = np.clip(np.rint(self._resample.push(samples) * 32767), -32768, 32767).astype("<i2")
        return pcm.tobytes() if self.kind == "audio/pcm" else encode_table(self.kind)[pcm.astype(np.int32) + 32768].tobytes()
