"""Playout: what the agent has ready to say, what it has said, and what the user has heard of it.

The voice puts chunks in ahead of time; `pull` hands out one 20 ms frame at a time, with ducking, holding and stopping as short
gain ramps. A response that was prepared but not released stays silent and can be dropped without a trace. What was heard is computed
from the samples that were pulled, through the word ends that came with the chunks.

A machine that makes sound more slowly than it is played would leave holes in it. So a response that ran dry makes the next ones wait that
much longer between their first sound and their beginning, or until they are whole; where none runs dry, the wait shrinks again. This is a
matter of the machine, so all conversations on it may share it (`Pace`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from duplex.audio import AGENT_FRAME, AGENT_RATE_HZ, FRAME_MS, Samples
from duplex.errors import ConfigError

LEAD_SHRINKS = 0.9
"""What is left of a response's wait after one that did not run dry."""


@dataclass(slots=True)
class Pace:
    """How well a machine keeps up with what it plays."""

    lead: int = 0
    """Frames that should lie between a response's first sound and its beginning."""

    def learn(self, waited: int, dry: int, most: int) -> None:
        """From a response that began `waited` frames after its first sound was there, and then ran dry `dry` times."""
        self.lead = min(waited + dry if dry else int(LEAD_SHRINKS * self.lead), most)


@dataclass(frozen=True, slots=True)
class PlayoutConfig:
    """How the agent's voice yields."""

    duck_db: float = -14.0
    """Gain while the user speaks over the agent and it is not yet clear why."""
    fade_ms: float = 8.0
    """Length of the ramp to silence at a stop or hold."""
    rewind_ms: float = 500.0
    """After a hold, speech resumes from the start of the word that was cut, if that is at most so far back."""
    most_lead_ms: float = 1000.0
    """Longest wait between a response's first sound and its beginning, on a machine on which responses run dry; 0 never waits."""

    def __post_init__(self) -> None:
        if not 0 < self.fade_ms <= 20:
            raise ConfigError("playout.fade_ms must be above 0 and at most 20 (one frame).")
        if not 0 <= self.most_lead_ms <= 10_000:
            raise ConfigError("playout.most_lead_ms must be in 0 to 10000.")


@dataclass(slots=True)
class _Response:
    """One response's sound, in the order it is played."""

    epoch: int
    chunks: list[Samples] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # first sample of each chunk
    length: int = 0
    position: int = 0  # next sample to play
    heard: int = 0  # furthest sample played
    waited: int = 0  # frames since there was something to play
    released: bool = False
    finished: bool = False
    words: list[str] = field(default_factory=list)
    word_ends: list[int] = field(default_factory=list)


class Playout:
    """The agent's loudspeaker side; one response at a time."""

    def __init__(self, config: PlayoutConfig | None = None, pace: Pace | None = None) -> None:
        """pace: shared by all conversations of a machine."""
        self.config = config or PlayoutConfig()
        self.pace = pace or Pace()
        self.underruns = 0
        """Frames in which a released, unfinished, already audible response had nothing to play."""
        self.playing: int | None = None
        """The epoch of the response that the newest frame was taken from; None for silence, as between responses or in a hold."""
        self.murmuring = False
        """The newest frame was taken from a murmur."""
        self._response: _Response | None = None
        self._waited: int | None = None  # how long the newest response waited before it was heard, if it was
        self._dry = 0  # how often it ran dry
        self._murmur = np.zeros(0, np.float32)
        self._gain = 1.0
        self._target = 1.0
        self._stopping = False
        self._most_lead = round(self.config.most_lead_ms / FRAME_MS)
        self._fade = round(AGENT_RATE_HZ * self.config.fade_ms / 1000)
        self._silence = np.zeros(AGENT_FRAME, np.float32)
        self._silence.setflags(write=False)

    # -- filling ------------------------------------------------------------------------------------------------------------------

    def begin(self, epoch: int) -> None:
        """Make room for response `epoch`; whatever was there is gone."""
        self._adapt()
        self._response = _Response(epoch)
        self._gain = self._target = 1.0
        self._stopping = False

    def put(self, epoch: int, samples: Samples, words: Sequence[tuple[str, int]]) -> bool:
        """Append a chunk of response `epoch` and its words with their end offsets in it. Stale epochs are refused: False."""
        response = self._of(epoch)
        if response is None or response.finished:
            return False
        for text, end in words:
            response.words.append(text)
            response.word_ends.append(response.length + min(end, len(samples)))
        if len(samples):
            response.chunks.append(samples)
            response.starts.append(response.length)
            response.length += len(samples)
        return True

    def finish(self, epoch: int) -> None:
        """Response `epoch` has no more chunks."""
        if response := self._of(epoch):
            response.finished = True

    # -- steering -----------------------------------------------------------------------------------------------------------------

    def release(self, epoch: int) -> None:
        """Let response `epoch` out from the next frame on."""
        if response := self._of(epoch):
            response.released = True

    def drop(self, epoch: int) -> None:
        """Forget response `epoch`; for one that nobody has heard."""
        if self._of(epoch):
            self._response = None

    def duck(self) -> None:
        """Go on more quietly."""
        self._target = 10.0 ** (self.config.duck_db / 20.0)

    def hold(self) -> None:
        """Fade out and keep the place."""
        self._target = 0.0

    def resume(self) -> None:
        """Go on at full level; after a hold, from the start of the word that was cut."""
        response = self._response
        if response and self._target == 0.0:
            done = bisect_right(response.word_ends, response.position)
            word_start = response.word_ends[done - 1] if done else 0
            if response.position - word_start <= AGENT_RATE_HZ * self.config.rewind_ms / 1000:
                response.position = word_start
        self._target = 1.0

    def stop(self) -> None:
        """Fade out within the next frame, then be silent; later chunks are refused."""
        self._adapt()
        if self._response is None or not self._response.heard or self._gain == 0.0:
            self._response = None
        else:
            self._target, self._stopping = 0.0, True
            self._response.finished = True

    def murmur(self, samples: Samples) -> None:
        """Play these samples [n], which belong to no response, while nothing else is; a response that becomes audible ends them."""
        self._murmur = samples

    @property
    def murmur_left(self) -> Samples:
        """What is still to be played of a murmur."""
        return self._murmur

    # -- playing ------------------------------------------------------------------------------------------------------------------

    def pull(self) -> Samples:
        """The next AGENT_FRAME samples (24 kHz) for the loudspeaker; zeros when there is nothing to say. Read-only when silent."""
        response = self._response
        self.playing, self.murmuring = None, False
        if response is not None and response.length and not response.heard:
            response.waited += 1
        if response is None or not response.released or (self._gain == 0.0 and self._target == 0.0):
            return self._pull_murmur()
        if not response.heard and not response.finished and response.waited <= min(self.pace.lead, self._most_lead):
            return self._pull_murmur()
        if response.position >= response.length:
            if response.finished:
                self._adapt()
            elif response.heard:
                self.underruns += 1
                self._dry += 1
            return self._pull_murmur()
        self.playing = response.epoch
        frame = self._copy(response)
        self._ramp(frame)
        if len(self._murmur):
            tail = self._murmur[: self._fade]
            frame[: len(tail)] += tail * np.linspace(1, 0, len(tail), dtype=np.float32)
            self._murmur = self._murmur[:0]
        if not response.heard:
            self._waited = response.waited - 1
        response.heard = max(response.heard, response.position)
        if self._stopping:
            self._response = None
        return frame

    def drained(self) -> int | None:
        """The epoch of a released response that has been played to its end, else None."""
        r = self._response
        return r.epoch if r and r.released and r.finished and r.position >= r.length and not self._stopping else None

    def buffered(self) -> int:
        """Agent samples that are ready and not yet played."""
        return self._response.length - self._response.position if self._response else 0

    def started(self) -> bool:
        """Some of the current response has been played."""
        return bool(self._response and self._response.heard)

    def texts(self, epoch: int) -> tuple[str, str]:
        """(heard, whole) text of response `epoch`; ("", "") when it is gone."""
        response = self._of(epoch)
        if response is None:
            return "", ""
        return "".join(response.words[: self.words_heard(epoch)]), "".join(response.words)

    def words_heard(self, epoch: int) -> int:
        """How many words of response `epoch` have been played; 0 when it is gone."""
        response = self._of(epoch)
        if response is None:
            return 0
        if response.finished and response.heard >= response.length:
            return len(response.words)
        return bisect_right(response.word_ends, response.heard)

    # -- parts --------------------------------------------------------------------------------------------------------------------

    def _of(self, epoch: int) -> _Response | None:
        return self._response if self._response and self._response.epoch == epoch else None

    def _adapt(self) -> None:
        """Learn from the response that is over, if it was played at all and was not learnt from before."""
        if self._waited is not None:
            self.pace.learn(self._waited, self._dry, self._most_lead)
        self._waited, self._dry = None, 0

    def _pull_murmur(self) -> Samples:
        if not len(self._murmur):
            return self._silence
        self.murmuring = True
        frame = np.zeros(AGENT_FRAME, np.float32)
        part = self._murmur[:AGENT_FRAME]
        frame[: len(part)] = part
        self._murmur = self._murmur[AGENT_FRAME:]
        return frame

    def _copy(self, response: _Response) -> Samples:
        frame = np.zeros(AGENT_FRAME, np.float32)
        filled = 0
        index = bisect_right(response.starts, response.position) - 1
        while filled < AGENT_FRAME and index < len(response.chunks):
            chunk = response.chunks[index]
            offset = response.position - response.starts[index]
            count = min(len(chunk) - offset, AGENT_FRAME - filled)
            frame[filled : filled + count] = chunk[offset : offset + count]
            filled += count
            response.position += count
            index += 1
        return frame

    def _ramp(self, frame: Samples) -> None:
        if self._gain == self._target:
            if self._gain != 1.0:
                frame *= self._gain
            return
        frame[: self._fade] *= np.linspace(self._gain, self._target, self._fade, dtype=np.float32)
        frame[self._fade :] *= self._target
        self._gain = self._target
