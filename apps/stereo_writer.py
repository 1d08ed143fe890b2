"""The recording of a conversation: a stereo WAV that is a valid file at any moment, even when the process is killed.

Left is the user, right the agent. The header is rewritten as the file grows; beyond 4 GB it becomes RF64 (EBU Tech 3306), for which
a JUNK chunk keeps the place from the start.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from duplex.audio import Samples
from duplex.errors import OutputError

HEADER_BYTES = 12 + 36 + 24 + 8  # RIFF, JUNK (the place of ds64), fmt, data
SMALL_LIMIT = 0xFFFF_FFFF - HEADER_BYTES  # bytes of sound that plain RIFF can count


class StereoWriter:
    """A 16-bit stereo WAV, left the user and right the agent, written as it comes and always a valid file.

    The header is brought up to date about once a second and on close; the file is written in place, so that what there is of a
    conversation is kept when it ends early. Raises OutputError when the file cannot be made or the disk is full.
    """

    def __init__(self, path: str | os.PathLike[str], rate_hz: int, *, small_limit: int = SMALL_LIMIT) -> None:
        self.path = Path(path)
        self.rate_hz = rate_hz
        self.frames = 0
        """Stereo samples written so far."""
        self._small_limit = small_limit
        self._stated = 0
        try:
            self._file = open(self.path, "wb", buffering=0)  # noqa: SIM115  (closed in close)
        except OSError as error:
            raise OutputError(_cannot_write(self.path, error)) from None
        try:
            self._state_length()
        except OutputError:
            self._file.close()
            raise

    @property
    def duration_s(self) -> float:
        """Seconds written so far."""
        return self.frames / self.rate_hz

    def write(self, user: Samples, agent: Samples) -> None:
        """Append [n] samples of each side, float32 in [-1, 1]; louder ones are clipped."""
        if user.shape != agent.shape or user.ndim != 1:
            raise ValueError(f"Both sides must be of one length [n], not {user.shape} and {agent.shape}.")
        both = np.stack([user, agent], axis=1)
        self._put(np.round(np.clip(np.nan_to_num(both), -1, 1) * 32767).astype("<i2").tobytes())
        self.frames += len(user)
        if self.frames - self._stated >= self.rate_hz:
            self._state_length()

    def close(self) -> None:
        """State the length and close; may be called twice. Whatever was written before is valid."""
        if self._file.closed:
            return
        try:
            self._state_length()
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._file.write(view) :]
            except OSError as error:
                raise OutputError(_cannot_write(self.path, error)) from None

    def _state_length(self) -> None:
        """Write the header for the whole frames there are, and go back to their end."""
        end = HEADER_BYTES + 4 * self.frames
        try:
            self._file.seek(0)
            self._put(_header(self.rate_hz, self.frames, self._small_limit))
            self._file.seek(end)
            self._file.truncate()  # a write that the full disk cut short leaves no half sample
        except OSError as error:
            raise OutputError(_cannot_write(self.path, error)) from None
        self._stated = self.frames


def _header(rate_hz: int, frames: int, small_limit: int) -> bytes:
    """RIFF with room for a ds64 chunk, or RF64 with it once the sound has outgrown 32 bits."""
    size = 4 * frames
    large = size > small_limit
    riff = struct.pack("<4sI4s", b"RF64" if large else b"RIFF", 0xFFFF_FFFF if large else size + HEADER_BYTES - 8, b"WAVE")
    if large:
        spare = struct.pack("<4sIQQQI", b"ds64", 28, size + HEADER_BYTES - 8, size, frames, 0)
    else:
        spare = struct.pack("<4sI28x", b"JUNK", 28)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, rate_hz, rate_hz * 4, 4, 16)
    return riff + spare + form + struct.pack("<4sI", b"data", 0xFFFF_FFFF if large else size)


def _cannot_write(path: Path, error: OSError) -> str:
    """One sentence about a failed write."""
    if isinstance(error, FileNotFoundError):
        return f"{path} cannot be written because its folder does not exist; create {path.parent} first."
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder; name a file to write."
    if isinstance(error, PermissionError):
        return f"{path} may not be written; choose another place or change the permissions."
    return f"{path} could not be written ({error.strerror or error}); free some space or choose another place."
