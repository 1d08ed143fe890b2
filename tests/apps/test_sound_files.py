"""Every kind of file a user may hand over, good and bad; and an output that is valid at any moment."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apps.sound_files import StereoWriter, open_sound
from apps.stereo_writer import HEADER_BYTES
from duplex.audio import USER_FRAME
from duplex.errors import InputError, OutputError


def tone(rate: int, seconds: float = 1.0, hz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def read_all(path: Path, **options: Any) -> tuple[np.ndarray, list[str]]:
    with open_sound(path, **options) as reader:
        blocks = list(reader)
    assert all(block.shape == (USER_FRAME,) and block.dtype == np.float32 for block in blocks)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32), reader.warnings


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_usual_wav_arrives_at_16_khz_mono(tmp_path: Path, rate: int, subtype: str, channels: int) -> None:
    path = tmp_path / "in.wav"
    soundfile.write(path, np.repeat(tone(rate)[:, None], channels, axis=1), rate, subtype=subtype)
    samples, warnings = read_all(path)
    assert len(samples) == 16_000
    assert warnings == []
    coarse = subtype in ("PCM_U8", "ULAW")
    np.testing.assert_allclose(samples[800:-800], tone(16_000)[800:-800], atol=0.03 if coarse else 2e-3)


COMPRESSED = [("a.flac", "FLAC", "PCM_24"), ("a.ogg", "OGG", "VORBIS"), ("a.mp3", "MP3", None)]


@pytest.mark.parametrize(("name", "form", "subtype"), COMPRESSED)
def test_compressed_files(tmp_path: Path, name: str, form: str, subtype: str | None) -> None:
    path = tmp_path / name
    soundfile.write(path, tone(44_100, 2.0), 44_100, format=form, subtype=subtype)
    samples, warnings = read_all(path)
    assert warnings == []
    assert abs(len(samples) - 32_000) <= 2_000  # MP3 adds its own padding
    assert np.sqrt(np.mean(samples[8_000:24_000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    for name in ("speech.txt", "speech.raw", "speech"):
        soundfile.write(tmp_path / name, tone(16_000), 16_000, format="WAV")
        assert len(read_all(tmp_path / name)[0]) == 16_000


def test_channels_are_mixed_down(tmp_path: Path) -> None:
    sides = np.stack([tone(16_000), np.zeros(16_000, np.float32), np.zeros(16_000, np.float32), tone(16_000)], axis=1)
    soundfile.write(tmp_path / "four.wav", sides, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_all(tmp_path / "four.wav")[0], tone(16_000) / 2, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 319, 320, 321, 8_001, 24_013])
def test_the_last_block_is_padded_with_zeros(tmp_path: Path, frames: int) -> None:
    soundfile.write(tmp_path / "in.wav", np.full(frames, 0.25, np.float32), 16_000, subtype="FLOAT")
    samples, _ = read_all(tmp_path / "in.wav")
    assert len(samples) == -(-frames // USER_FRAME) * USER_FRAME
    assert (samples[:frames] == 0.25).all()
    assert not samples[frames:].any()


def expect_refusal(path: Path, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_all(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    expect_refusal(tmp_path / "none.wav", "does not exist")
    expect_refusal(tmp_path, "folder")
    (tmp_path / "empty.wav").touch()
    expect_refusal(tmp_path / "empty.wav", "empty")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.wav")
        expect_refusal(tmp_path / "pipe.wav", "not an ordinary file")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("apps.sound_files.os.open", denied)
    expect_refusal(tmp_path / "locked.wav", "may not be read")


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("It was a dark and stormy night.\n" * 40)
    expect_refusal(tmp_path / "text.wav", "not a sound file")
    soundfile.write(tmp_path / "header.wav", np.zeros(0, np.float32), 16_000)
    expect_refusal(tmp_path / "header.wav", "header but no sound")
    soundfile.write(tmp_path / "slow.wav", np.ones(100, np.float32), 100)
    expect_refusal(tmp_path / "slow.wav", "100 Hz")
    unknown = bytearray((tmp_path / "slow.wav").read_bytes())
    unknown[20:22] = struct.pack("<H", 0x1234)
    (tmp_path / "codec.wav").write_bytes(unknown)
    expect_refusal(tmp_path / "codec.wav", "not a sound file")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused_where_they_stand(tmp_path: Path, bad: float) -> None:
    sound = tone(16_000, 3.0)
    sound[32_000] = bad
    soundfile.write(tmp_path / "nan.wav", sound, 16_000, subtype="FLOAT")
    expect_refusal(tmp_path / "nan.wav", r"at 2\.000 s")
    samples, warnings = read_all(tmp_path / "nan.wav", bad_samples="silence")
    assert np.isfinite(samples).all()
    assert len(warnings) == 1
    assert "not numbers" in warnings[0]


def test_silence_and_clipping_are_noted(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000, np.float32), 16_000)
    samples, warnings = read_all(tmp_path / "silent.wav")
    assert len(samples) == 16_000
    assert len(warnings) == 1
    assert "silent" in warnings[0]
    soundfile.write(tmp_path / "loud.wav", tone(48_000, level=30_000), 48_000, subtype="FLOAT")
    samples, warnings = read_all(tmp_path / "loud.wav")
    assert np.abs(samples).max() <= 1
    assert len(warnings) == 1
    assert "clipped" in warnings[0]


def test_a_cut_off_wav_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.wav", tone(16_000, 2.0), 16_000)
    data = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    samples, warnings = read_all(tmp_path / "cut.wav")
    assert 15_000 < len(samples) < 17_000
    assert len(warnings) == 1
    assert "cut off" in warnings[0]


def test_a_cut_off_flac_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 64_000)
    soundfile.write(tmp_path / "whole.flac", noise, 16_000)
    data = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    samples, warnings = read_all(tmp_path / "cut.flac")
    assert 16_000 < len(samples) < 48_000
    assert warnings


def test_a_wav_of_unknown_length_is_no_cut_off_one(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "piped.wav", tone(16_000), 16_000)
    data = bytearray((tmp_path / "piped.wav").read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "piped.wav").write_bytes(data)
    samples, warnings = read_all(tmp_path / "piped.wav")
    assert len(samples) == 16_000
    assert warnings == []


MAGIC = [b"", b"RIFF\x00\x01\x00\x00WAVE", b"fLaC", b"OggS", b"FORM", b"ID3", b"\xff\xfb"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=2_000), magic=st.sampled_from(MAGIC))
def test_random_bytes_raise_nothing_but_input_error(tmp_path: Path, data: bytes, magic: bytes) -> None:
    path = tmp_path / "random.wav"
    path.write_bytes(magic + data)
    try:
        samples, _ = read_all(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert np.isfinite(samples).all()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(["WAV", "FLAC", "OGG", "AIFF"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(20, 5_000),
)
def test_damaged_files_raise_nothing_but_input_error(tmp_path: Path, form: str, changes: list[tuple[int, int]], cut: int) -> None:
    path = tmp_path / "damaged"
    soundfile.write(path, tone(16_000, 0.2), 16_000, format=form)
    data = bytearray(path.read_bytes()[:cut])
    for position, value in changes:
        if position < len(data):
            data[position] = value
    path.write_bytes(data)
    try:
        with open_sound(path, bad_samples="silence") as reader:
            for count, block in enumerate(reader):
                assert np.isfinite(block).all()
                if count > 2_000:
                    break
    except InputError as error:
        assert str(path) in str(error)


def test_three_hours_pass_in_a_few_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    size = 3 * 3_600 * 8_000 * 2
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, 8_000, 16_000, 2, 16, b"data", size)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)  # sparse: takes no disk
    tracemalloc.start()
    try:
        with open_sound(path) as reader:
            assert reader.duration_s == 10_800
            count = sum(1 for _ in reader)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
    assert count == 10_800 * 50
    assert "silent" in reader.warnings[0]


def test_closing_early_lets_go_of_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", tone(16_000), 16_000)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with open_sound(tmp_path / "in.wav") as reader:
        next(iter(reader))
    reader.close()
    for name in ("none.wav", "bad.wav"):
        (tmp_path / "bad.wav").write_text("no sound")
        with pytest.raises(InputError):
            open_sound(tmp_path / name)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    left, right = tone(24_000, 1.5), tone(24_000, 1.5, hz=880, level=2.0)
    with StereoWriter(tmp_path / "out.wav", 24_000) as writer:
        for begin in range(0, len(left), 480):
            writer.write(left[begin : begin + 480], right[begin : begin + 480])
        assert writer.duration_s == 1.5
    sound, rate = soundfile.read(tmp_path / "out.wav")
    assert rate == 24_000
    np.testing.assert_allclose(sound, np.stack([left, np.clip(right, -1, 1)], axis=1), atol=1e-4)
    writer.close()


def test_the_file_is_valid_even_while_it_is_written_and_after_a_kill(tmp_path: Path) -> None:
    script = """
        import os, sys
        import numpy as np
        from apps.sound_files import StereoWriter
        writer = StereoWriter(sys.argv[1], 16_000)
        for _ in range(130):
            writer.write(np.full(320, 0.5, np.float32), np.zeros(320, np.float32))
        os.kill(os.getpid(), 9)
    """
    path = tmp_path / "killed.wav"
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=False, timeout=60)
    sound, _ = soundfile.read(path)
    assert len(sound) >= 2 * 16_000
    assert sound[:32_000, 0] == pytest.approx(0.5, abs=1e-3)


def test_an_exception_leaves_a_finished_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), StereoWriter(tmp_path / "out.wav", 16_000) as writer:
        writer.write(tone(16_000, 0.1), tone(16_000, 0.1))
        raise KeyboardInterrupt
    assert len(soundfile.read(tmp_path / "out.wav")[0]) == 1_600


def test_nothing_written_is_still_a_wav(tmp_path: Path) -> None:
    StereoWriter(tmp_path / "out.wav", 16_000).close()
    assert soundfile.info(tmp_path / "out.wav").channels == 2


def test_beyond_what_riff_can_count_it_becomes_rf64(tmp_path: Path) -> None:
    with StereoWriter(tmp_path / "out.wav", 16_000, small_limit=10_000) as writer:
        writer.write(tone(16_000), tone(16_000))
    assert soundfile.info(tmp_path / "out.wav").format == "RF64"
    sound, _ = soundfile.read(tmp_path / "out.wav")
    np.testing.assert_allclose(sound[:, 0], tone(16_000), atol=1e-4)


def test_a_full_disk_leaves_what_fitted(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    script = """
        import resource, signal, sys
        import numpy as np
        from apps.sound_files import StereoWriter
        from duplex.errors import OutputError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_001, 100_001))
        try:
            with StereoWriter(sys.argv[1], 16_000) as writer:
                while True:
                    writer.write(np.full(320, 0.5, np.float32), np.zeros(320, np.float32))
        except OutputError as error:
            print(error)
    """
    assert resource is not None
    path = tmp_path / "full.wav"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], capture_output=True, text=True, timeout=60)
    assert "could not be written" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
    sound, _ = soundfile.read(path)
    assert len(sound) == (100_001 - HEADER_BYTES) // 4 // 320 * 320


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder does not exist"):
        StereoWriter(tmp_path / "none" / "out.wav", 16_000)
    with pytest.raises(OutputError, match="is a folder"):
        StereoWriter(tmp_path, 16_000)
    if Path("/dev/full").exists():
        with pytest.raises(OutputError, match="free some space"):
            StereoWriter("/dev/full", 16_000)


def test_two_sides_of_different_length_are_a_mistake(tmp_path: Path) -> None:
    with StereoWriter(tmp_path / "out.wav", 16_000) as writer, pytest.raises(ValueError, match="one length"):
        writer.write(np.zeros(10, np.float32), np.zeros(11, np.float32))
