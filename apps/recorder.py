"""Keeping a live conversation: `conversation.wav`, left the microphone and right what the loudspeaker played, and `events.jsonl`.

It sits around the session's transport, so it sees exactly what the session hears. A full disk ends the recording, not the talk.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from agent.transport import Transport
from apps.stereo_writer import StereoWriter
from duplex.audio import USER_RATE_HZ, Frame, Samples
from duplex.errors import OutputError
from duplex.events import Event, Levels, as_dict

log = logging.getLogger(__name__)


class Recorder:
    """Writes into a folder, which is made. Raises OutputError when it cannot begin; later failures go to `failure`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failure: OutputError | None = None
        """What ended the recording early; what was written before is valid."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._events = (folder / "events.jsonl").open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise OutputError(f"{folder} cannot be recorded into ({error.strerror or error}); choose another folder.") from None
        try:
            self._sound = StereoWriter(folder / "conversation.wav", USER_RATE_HZ)
        except OutputError:
            self._events.close()
            raise

    def frame(self, frame: Frame) -> None:
        """Write 20 ms of both sides."""
        if self.failure is None:
            try:
                self._sound.write(frame.near, np.zeros_like(frame.near) if frame.far is None else frame.far)
            except OutputError as error:
                self._give_up(error)

    def event(self, event: Event) -> None:
        """Write an event, levels left out."""
        if self.failure is None and not isinstance(event, Levels):
            try:
                self._events.write(json.dumps(as_dict(event), ensure_ascii=False) + "\n")
            except OSError as error:
                self._give_up(OutputError(f"{self.folder} is full ({error.strerror or error}); the recording ends here."))

    def close(self) -> None:
        """Finish both files; may be called twice."""
        try:
            self._sound.close()
            self._events.close()
        except OutputError as error:
            self._give_up(error)
        except OSError as error:
            self._give_up(OutputError(f"{self.folder} is full ({error.strerror or error}); the recording ends early."))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _give_up(self, error: OutputError) -> None:
        if self.failure is None:
            self.failure = error
            log.warning("%s", error)


class RecordedTransport:
    """Another transport, with everything that passes written down; the microphone's side as silence while `hushed` says so."""

    def __init__(self, inner: Transport, recorder: Recorder, hushed: Callable[[], bool] | None = None) -> None:
        self._inner, self._recorder, self._hushed = inner, recorder, hushed

    async def receive(self) -> Frame | None:
        """As the inner transport's."""
        frame = await self._inner.receive()
        if frame is not None:
            quiet = self._hushed is not None and self._hushed()
            self._recorder.frame(Frame(frame.start, np.zeros_like(frame.near), frame.far) if quiet else frame)
        return frame

    async def send(self, samples: Samples) -> None:
        """As the inner transport's."""
        await self._inner.send(samples)

    def committed(self) -> int:
        """As the inner transport's."""
        return self._inner.committed()

    async def close(self) -> None:
        """As the inner transport's; the recorder is closed by its owner."""
        await self._inner.close()
