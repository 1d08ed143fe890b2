"""Recordings read in bounded memory, whatever the user hands over.

Anything libsndfile knows (WAV, FLAC, OGG, MP3, AIFF), at any rate, mixed down to mono, 16 kHz, one 20 ms block at a time. What
makes a file useless raises InputError; what makes it doubtful (silence, clipping, a cut-off end) is noted in `warnings`.
The other direction is `StereoWriter`, which has its own file.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import soundfile

from apps.stereo_writer import StereoWriter as StereoWriter
from duplex.audio import USER_FRAME, USER_RATE_HZ, Samples
from duplex.errors import InputError
from duplex.resample import Resampler

READ_SECONDS = 0.5  # how much of the file is decoded at a time
RATES_HZ = (4_000, 384_000)
CLIPPED_SHARE = 1e-3  # of the samples; more than this is audible distortion
FORMATS = "WAV, FLAC, OGG or MP3"


class SoundReader:
    """A user's recording as float32 mono blocks of [USER_FRAME] at 16 kHz, the last one padded with zeros. Read once, then closed.

    `bad_samples` says what to do about samples that are not numbers (NaN, infinity): "refuse" raises InputError naming the place
    when they are reached (what was written until then stays valid), "silence" plays them as zeros and warns.
    Raises InputError from the constructor and while reading.
    """

    def __init__(self, path: str | os.PathLike[str], *, bad_samples: Literal["refuse", "silence"] = "refuse") -> None:
        self.path = Path(path)
        self.warnings: list[str] = []
        """One sentence each; complete once the last block was read."""
        self._bad_samples = bad_samples
        self._descriptor = _open(self.path)
        try:
            self._sound = _decode(self.path, self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.rate_hz: int = self._sound.samplerate
        self.channels: int = self._sound.channels
        self.frames: int = self._sound.frames
        self._closed = False
        missing = _missing_share(self.path)
        if missing is not None:
            self.warnings.append(f"{self.path} is cut off: {missing:.0%} of what its header announces is missing; using the rest.")

    @property
    def duration_s(self) -> float:
        """Length of the recording in seconds, by its header."""
        return self.frames / self.rate_hz

    @property
    def total_samples(self) -> int:
        """Length at 16 kHz, without the padding of the last block."""
        return round(self.frames * USER_RATE_HZ / self.rate_hz)

    def __iter__(self) -> Iterator[Samples]:
        """Blocks of [USER_FRAME]; together they are `total_samples`, padded to a whole block, fewer when the file breaks off."""
        resampler = Resampler(self.rate_hz, USER_RATE_HZ)
        pending = np.zeros(0, np.float32)
        left = self.total_samples
        peak, clipped, read = 0.0, 0, 0
        try:
            for mono, block_peak, block_clipped, frames in self._decoded():
                peak, clipped, read = max(peak, block_peak), clipped + block_clipped, read + frames
                converted = resampler.push(mono)[:left]
                left -= len(converted)
                pending = np.concatenate([pending, np.clip(converted, -1, 1)])
                whole = len(pending) // USER_FRAME * USER_FRAME
                yield from pending[:whole].reshape(-1, USER_FRAME)
                pending = pending[whole:]
            if read == 0:
                raise InputError(f"{self.path} holds no sound that can be decoded; convert it to {FORMATS} again.")
            pending = np.concatenate([pending, np.clip(resampler.flush()[:left], -1, 1)])
            padded = np.zeros(-(-len(pending) // USER_FRAME) * USER_FRAME, np.float32)
            padded[: len(pending)] = pending
            yield from padded.reshape(-1, USER_FRAME)
            self._judge(peak, clipped, read)
        finally:
            self.close()

    def whole(self) -> Iterator[Samples]:
        """The same sound at its own rate `rate_hz`, mono, in blocks of any length; for short recordings. Instead of iterating, once."""
        try:
            yield from (mono for mono, _, _, _ in self._decoded())
        finally:
            self.close()

    def _decoded(self) -> Iterator[tuple[Samples, float, int, int]]:
        """(mono [n], peak, clipped samples, n), checked for bad numbers."""
        block = max(1, int(self.rate_hz * READ_SECONDS))
        position = 0
        warned = False
        while True:
            try:
                sound = self._sound.read(block, dtype="float32", always_2d=True)
            except (soundfile.SoundFileError, RuntimeError) as error:
                self.warnings.append(
                    f"{self.path} is damaged after {position / self.rate_hz:.2f} s ({_reason(error)}); using the rest."
                )
                return
            if len(sound) == 0:
                if position < self.frames:
                    at_s = position / self.rate_hz
                    self.warnings.append(f"{self.path} is cut off: it ends after {at_s:.2f} s of {self.duration_s:.2f} s.")
                return
            good = np.isfinite(sound)
            if not good.all():
                at_s = (position + int(np.argmin(good.all(axis=1)))) / self.rate_hz
                what = f"{self.path} has samples that are not numbers (NaN or infinity) at {at_s:.3f} s"
                if self._bad_samples == "refuse":
                    raise InputError(f"{what}; export it again as 16-bit WAV.")
                if not warned:
                    self.warnings.append(f"{what}; playing such samples as silence.")
                    warned = True
                sound = np.where(good, sound, np.float32(0))
            size = np.abs(sound)
            # float files may hold anything up to 1e38, which would overflow on the way; nothing above full scale means anything
            mono = np.clip(sound, -1, 1).mean(axis=1, dtype=np.float32)
            yield mono, float(size.max()), int(np.count_nonzero(size.max(axis=1) >= 0.999)), len(sound)
            position += len(sound)

    def _judge(self, peak: float, clipped: int, read: int) -> None:
        if peak == 0:
            self.warnings.append(f"{self.path} is silent: every sample is zero; check the microphone that recorded it.")
        if clipped > CLIPPED_SHARE * read:
            self.warnings.append(f"{self.path} is clipped ({clipped / read:.1%} of it is at full scale); record it more quietly.")

    def close(self) -> None:
        """Let go of the file; may be called twice."""
        if not self._closed:
            self._closed = True
            self._sound.close()
            os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_sound(path: str | os.PathLike[str], *, bad_samples: Literal["refuse", "silence"] = "refuse") -> SoundReader:
    """Open a recording. Raises InputError, in one sentence that says what to do, when it cannot be used."""
    return SoundReader(path, bad_samples=bad_samples)


def _open(path: Path) -> int:
    """A descriptor of a regular, non-empty file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the name.") from None
    except PermissionError:
        raise InputError(f"{path} may not be read; change its permissions (chmod +r) or copy it.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be opened ({_reason(error)}); check the name.") from None
    state = os.fstat(descriptor)
    problem = None
    if stat.S_ISDIR(state.st_mode):
        problem = f"{path} is a folder; name a sound file in it."
    elif not stat.S_ISREG(state.st_mode):
        problem = f"{path} is not an ordinary file; save the sound into a file first."
    elif state.st_size == 0:
        problem = f"{path} is empty (0 bytes); record or download it again."
    if problem is not None:
        os.close(descriptor)
        raise InputError(problem)
    return descriptor


def _decode(path: Path, descriptor: int) -> Any:
    """libsndfile's view of the file. By descriptor, so that the name's ending does not matter, only the content."""
    try:
        sound = soundfile.SoundFile(descriptor, closefd=False)
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a sound file that can be read ({_reason(error)}); convert it to {FORMATS}.") from None
    problem = None
    if sound.frames <= 0:
        problem = f"{path} has a header but no sound; record it again."
    elif not RATES_HZ[0] <= sound.samplerate <= RATES_HZ[1]:
        problem = f"{path} has a sample rate of {sound.samplerate} Hz; convert it to one between 8 and 192 kHz."
    if problem is not None:
        sound.close()
        raise InputError(problem)
    return sound


def _missing_share(path: Path) -> float | None:
    """How much of a WAV's announced data is not in the file, 0 to 1; None when it is whole, not a WAV, or announces nothing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return None
        file.seek(12)
        while len(head := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", head)
            if name == b"data":
                there = size - file.tell()
                streamed = length >= 0x7FFF_F000  # a recorder that could not seek back writes the largest number
                return None if length <= there or streamed else 1 - there / length
            file.seek(length + length % 2, os.SEEK_CUR)
    return None


def _reason(error: BaseException) -> str:
    """The library's own words, short and without its punctuation."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return str(text).strip().rstrip(".").removeprefix("Error : ")[:120]
