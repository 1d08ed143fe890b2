"""Whatever satellites call a WAV file: every kind is read, and what is none is a ValueError and nothing else."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from apps.hermes_audio import MOST_BYTES, read_wav, write_wav

TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(800) / 16_000)).astype(np.float32)


@pytest.mark.parametrize(
    ("subtype", "error"), [("PCM_U8", 0.01), ("PCM_16", 1e-4), ("PCM_24", 1e-6), ("PCM_32", 1e-6), ("FLOAT", 0), ("DOUBLE", 1e-7)]
)
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_every_encoding_is_read(subtype: str, error: float, rate: int) -> None:
    file = io.BytesIO()
    soundfile.write(file, TONE, rate, subtype=subtype, format="WAV")
    samples, read_rate = read_wav(file.getvalue())
    assert read_rate == rate and samples.dtype == np.float32
    np.testing.assert_allclose(samples, TONE, atol=error)


def test_channels_are_averaged_and_extensible_headers_understood() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.stack([TONE, 0 * TONE], 1), 16_000, subtype="PCM_24", format="WAVEX")
    np.testing.assert_allclose(read_wav(file.getvalue())[0], TONE / 2, atol=1e-6)


def test_what_is_written_is_what_soundfile_reads() -> None:
    samples, rate = soundfile.read(io.BytesIO(write_wav(np.concatenate([TONE, [2.0, -2.0]]).astype(np.float32), 22_050)))
    assert rate == 22_050
    np.testing.assert_allclose(samples, [*TONE, 1.0, -1.0], atol=1e-4)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_length_that_a_streaming_writer_left_open_takes_what_is_there(size: int) -> None:
    wav = bytearray(write_wav(TONE, 16_000))
    struct.pack_into("<I", wav, 40, size)
    assert len(read_wav(bytes(wav))[0]) == len(TONE)


def test_other_chunks_and_half_samples_are_passed_over() -> None:
    wav = write_wav(TONE, 16_000)
    extra = wav[:12] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + wav[12:]
    np.testing.assert_array_equal(read_wav(extra)[0], read_wav(wav)[0])
    assert len(read_wav(wav[:-3])[0]) == len(TONE) - 2
    assert len(read_wav(write_wav(TONE[:0], 16_000))[0]) == 0


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "not a WAV"),
        (b"OggS" + bytes(60), "not a WAV"),
        (write_wav(TONE, 16_000)[:36], "no data chunk"),
        (write_wav(TONE, 16_000)[:12] + b"data\4\0\0\0abcd", "before their format"),
        (write_wav(TONE, 100), "rate"),
        (bytes(MOST_BYTES + 1), "too long"),
        (write_wav(TONE, 16_000).replace(b"\1\0\1\0", b"\2\0\1\0", 1), "encoding 2"),
        (write_wav(TONE, 16_000).replace(b"\1\0\1\0", b"\1\0\0\0", 1), "channels"),
        (write_wav(TONE, 16_000).replace(b"\2\0\x10\0data", b"\2\0\7\0data", 1), "7 bits"),
    ],
)
def test_what_is_no_sound_is_told(payload: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_wav(payload)


@given(st.one_of(st.binary(max_size=300), st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=20))))
def test_rubbish_is_a_value_error_or_a_sound_in_range(rubbish: bytes | tuple[int, bytes]) -> None:
    wav = write_wav(TONE[:50], 16_000)
    payload = rubbish if isinstance(rubbish, bytes) else wav[: rubbish[0]] + rubbish[1] + wav[rubbish[0] + len(rubbish[1]) :]
    try:
        samples, rate = read_wav(payload)
    except ValueError:
        return
    assert 4_000 <= rate <= 192_000 and samples.ndim == 1 and np.isfinite(samples).all()
    assert not len(samples) or np.abs(samples).max() <= 1.0
