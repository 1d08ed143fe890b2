"""Sound in Hermes messages: every message is a complete WAV file, and every satellite writes its own kind.

`read_wav` takes what satellites send: PCM of 8 to 32 bits or float, any rate and number of channels, extra chunks, and lengths that a
streaming writer left at 0 or at "unknown". What is no sound at all is a ValueError that says why; nothing else is ever raised.
"""

from __future__ import annotations

import struct

import numpy as np

from duplex.audio import Samples

MOST_BYTES = 4 << 20
"""A message longer than this is refused: at 16 kHz it would hold two minutes."""

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
LOWEST_HZ, HIGHEST_HZ = 4_000, 192_000
MOST_CHANNELS = 16


def read_wav(payload: bytes) -> tuple[Samples, int]:
    """A WAV file -> (mono samples [n] in [-1, 1], rate in Hz); channels are averaged, n may be 0. Raises ValueError."""
    if len(payload) > MOST_BYTES:
        raise ValueError(f"a message of {len(payload)} bytes is too long; send at most {MOST_BYTES}")
    if len(payload) < 12 or payload[:4] != b"RIFF" or payload[8:12] != b"WAVE":
        raise ValueError("the payload is not a WAV file (it does not begin with RIFF....WAVE)")
    form: tuple[int, int, int, int] | None = None
    at = 12
    while at + 8 <= len(payload):
        name, size = payload[at : at + 4], struct.unpack_from("<I", payload, at + 4)[0]
        body = at + 8
        if name == b"fmt ":
            form = _read_form(payload[body : body + size])
        elif name == b"data":
            if form is None:
                raise ValueError("the WAV file has its samples before their format")
            open_ended = size == 0 or body + size > len(payload)  # a streaming writer does not know the length
            return _decode(payload[body:] if open_ended else payload[body : body + size], *form)
        at = body + size + size % 2
    raise ValueError("the WAV file holds no samples (no data chunk)")


def write_wav(samples: Samples, rate_hz: int) -> bytes:
    """Mono samples [n] -> a WAV file of 16-bit PCM; what is beyond [-1, 1] is clipped."""
    pcm = (np.clip(samples, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, PCM, 1, rate_hz, 2 * rate_hz, 2, 16)
    return b"".join((struct.pack("<4sI4s", b"RIFF", 36 + len(pcm), b"WAVE"), form, struct.pack("<4sI", b"data", len(pcm)), pcm))


def _read_form(chunk: bytes) -> tuple[int, int, int, int]:
    """(kind, channels, rate in Hz, bits) of a format chunk."""
    if len(chunk) < 16:
        raise ValueError("the WAV file's format chunk is cut short")
    kind, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if kind == EXTENSIBLE and len(chunk) >= 26:
        kind = struct.unpack_from("<H", chunk, 24)[0]
    if kind not in (PCM, FLOAT):
        raise ValueError(f"the WAV file's encoding {kind} is not known; send PCM or float")
    if bits not in ((8, 16, 24, 32) if kind == PCM else (32, 64)):
        raise ValueError(f"the WAV file has {bits} bits a sample; send 16")
    if not 1 <= channels <= MOST_CHANNELS:
        raise ValueError(f"the WAV file has {channels} channels; send one")
    if not LOWEST_HZ <= rate_hz <= HIGHEST_HZ:
        raise ValueError(f"the WAV file's rate of {rate_hz} Hz is not between {LOWEST_HZ} and {HIGHEST_HZ} Hz")
    return kind, channels, rate_hz, bits


def _decode(data: bytes, kind: int, channels: int, rate_hz: int, bits: int) -> tuple[Samples, int]:
    width = bits // 8 * channels
    data = data[: len(data) // width * width]
    if kind == FLOAT:
        values = np.frombuffer(data, "<f4" if bits == 32 else "<f8")
        with np.errstate(over="ignore", invalid="ignore"):
            samples = np.nan_to_num(np.clip(values, -1.0, 1.0)).astype(np.float32)
    elif bits == 8:
        samples = (np.frombuffer(data, np.uint8).astype(np.float32) - 128.0) / 128.0
    elif bits == 24:
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        samples = padded.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
    else:
        samples = np.frombuffer(data, f"<i{bits // 8}").astype(np.float32) / np.float32(2 ** (bits - 1))
    if channels > 1:
        samples = samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return samples, rate_hz
