"""The sound formats: G.711 as the standard has it, and every format there and back."""

from __future__ import annotations

import numpy as np
import pytest

from apps.realtime_audio import RATE_HZ, Format, SoundIn, SoundOut, decode_table, encode_table


@pytest.mark.parametrize(
    ("kind", "code", "sample"),
    [
        ("audio/pcmu", 0x00, -32124),
        ("audio/pcmu", 0x80, 32124),
        ("audio/pcmu", 0xFF, 0),
        ("audio/pcmu", 0x7F, 0),
        ("audio/pcmu", 0xEF, 132),
        ("audio/pcma", 0x2A, -32256),
        ("audio/pcma", 0xAA, 32256),
        ("audio/pcma", 0xD5, 8),
        ("audio/pcma", 0x55, -8),
        ("audio/pcma", 0x00, -5504),
    ],
)
def test_codes_of_the_standard(kind: Format, code: int, sample: int) -> None:
    assert decode_table(kind)[code] == sample


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
def test_every_sample_goes_to_its_nearest_code(kind: Format) -> None:
    values = decode_table(kind).astype(np.int32)
    samples = np.arange(-32768, 32768, 7)
    coded = values[encode_table(kind)[samples + 32768]]
    nearest = np.abs(samples[:, None] - values[None, :]).min(1)
    assert (np.abs(coded - samples) == nearest).all()


@pytest.mark.parametrize("kind", list(RATE_HZ))
def test_there_and_back(kind: Format) -> None:
    at = np.arange(24_000) / 24_000
    sound = (0.5 * np.sin(2 * np.pi * 440 * at)).astype(np.float32)
    back = SoundIn(kind).decode(SoundOut(kind).encode(sound))
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(back)) / 16_000)
    middle = slice(1600, len(back) - 1600)
    assert len(back) == pytest.approx(16_000, abs=100)
    assert float(np.abs(back[middle] - wanted[middle]).max()) < (0.03 if kind != "audio/pcm" else 0.002)


def test_half_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        SoundIn("audio/pcm").decode(b"abc")
