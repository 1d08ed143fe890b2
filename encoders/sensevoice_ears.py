"""Ears made of SenseVoice: the turn so far is encoded again at each transcript, in a window that stays bounded.

Notable: SenseVoice is no streaming model (attention and memory look both ways), so nothing of an earlier pass is kept: queries in front,
positions from 1, one encoder pass over the window, which at 16.67 features per second is cheap. The state holds filter-bank frames in
one buffer of 30 s; stacking and normalising are left to `transcribe`, so a window gives exactly what its audio alone would give.
A turn longer than `freeze_after_s` is cut at its quietest spot: the text before the cut is frozen when `settle` comes. A window that was
overtaken by a new turn, or by a newer window, settles nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from duplex import fbank
from duplex.audio import Samples
from duplex.fbank import FbankState, Features
from encoders import sensevoice_checkpoint
from encoders.ears import Transcript
from encoders.recent_frames import FRAME_RATE_HZ, MOST_KEPT_S, RecentFrames, blocks, quietest
from encoders.sensevoice import LANGUAGE_QUERIES, QUERIES, collapse
from encoders.sensevoice_checkpoint import SenseVoiceParts
from encoders.sensevoice_frontend import FBANK, stack
from encoders.sensevoice_labels import LabelReader, RichLabels
from encoders.sensevoice_pieces import joined

HOP_SAMPLES = FBANK.hop_samples


@dataclass(frozen=True, slots=True)
class SenseVoiceEarsConfig:
    """What is asked of the model, and how much audio is kept and encoded at once."""

    language: str = "auto"
    """The language to expect: "auto", "zh", "en", "yue", "ja" or "ko"."""
    itn: bool = True
    """Write punctuation and numbers as a reader expects them."""
    freeze_after_s: float = 15.0
    """No encoder pass takes in more audio than this; what is older is frozen as text."""
    freeze_at_least_s: float = 5.0
    """The part that is frozen is at least so long, so that its text has some context."""
    keep_s: float = 24.0
    """Audio of the turn that was not settled yet is kept so long; older audio is lost. At most 29, as a second is taken in at a time."""

    def __post_init__(self) -> None:
        if self.language not in LANGUAGE_QUERIES:
            raise ValueError(f"language must be one of {', '.join(LANGUAGE_QUERIES)}, not {self.language!r}")
        if not 0.2 <= self.freeze_at_least_s < self.freeze_after_s <= self.keep_s <= MOST_KEPT_S:
            raise ValueError(f"keep 0.2 <= freeze_at_least_s < freeze_after_s <= keep_s <= {MOST_KEPT_S}")


@dataclass(slots=True)
class SenseVoiceEarsState:
    """What one conversation's ears remember."""

    fbank: FbankState = field(default_factory=FbankState)
    """The frame stream."""
    recent: RecentFrames = field(default_factory=RecentFrames)
    """The newest frames; the last of them is frame `fbank.made - 1`."""
    turn: int = 0
    """Counts turns, so that a window of an earlier one is known."""
    start: int = 0
    """User sample from which on audio is still to be encoded."""
    settled: int = 0
    """`end` of the newest window settled in this turn."""
    text: str = ""
    """Frozen text of this turn."""
    labels: RichLabels | None = None
    """Labels of the newest frozen text."""


@dataclass(frozen=True, slots=True)
class SenseVoiceWindow:
    """A snapshot of the current turn."""

    frames: Features
    """[t, 80] log mel power, a copy."""
    start: int
    """User sample at which the first frame begins."""
    end: int
    """User sample up to which audio is in it."""
    turn: int
    """Which turn it belongs to."""
    text: str
    """Text frozen before it."""
    labels: RichLabels | None
    """Labels of that text."""


@dataclass(frozen=True, slots=True)
class SenseVoiceTranscript(Transcript):
    """A transcript with its labels, and what `settle` needs."""

    labels: RichLabels = field(default_factory=RichLabels)
    """Language, emotion and sound event of the newest stretch with words, or of all there is when nothing has words."""
    frozen_text: str = ""
    """The part of the text that is final."""
    frozen_labels: RichLabels | None = None
    """Labels of the newest stretch of it."""
    frozen_until: int = 0
    """User sample from which on audio must be encoded again."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """What one encoder pass gave."""

    text: str
    labels: RichLabels
    no_speech: float


class SenseVoiceEars:
    """`encoders.ears.Ears` on SenseVoice. Holds no state of a conversation; `transcribe` may run in any thread."""

    def __init__(self, parts: SenseVoiceParts, config: SenseVoiceEarsConfig | None = None) -> None:
        self.parts = parts
        self.config = config or SenseVoiceEarsConfig()
        self._read_labels = LabelReader(parts.pieces)

    @classmethod
    def load(
        cls,
        folder: Path,
        config: SenseVoiceEarsConfig | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> SenseVoiceEars:
        """From the official SenseVoiceSmall folder. Raises WeightsError."""
        return cls(sensevoice_checkpoint.load(folder, device, dtype), config)

    @classmethod
    def tiny(cls, seed: int = 0, config: SenseVoiceEarsConfig | None = None) -> SenseVoiceEars:
        """Random weights, no download: hears nonsense, deterministically."""
        return cls(sensevoice_checkpoint.tiny(seed), config)

    @classmethod
    def full_size(cls, config: SenseVoiceEarsConfig | None = None, *, device: torch.device | str = "cpu") -> SenseVoiceEars:
        """SenseVoiceSmall's shapes with random weights, for measuring."""
        return cls(sensevoice_checkpoint.full_size(0, device), config)

    @property
    def interim_s(self) -> float:
        return 0.6  # each time the whole window is heard anew

    def open(self) -> SenseVoiceEarsState:
        """A fresh state for one conversation, about 1 MB, which does not grow."""
        return SenseVoiceEarsState()

    def feed(self, state: SenseVoiceEarsState, samples: Samples) -> None:
        """Take [n] user samples that follow what was fed before. NaN counts as 0, values beyond full scale are clipped."""
        for block in blocks(samples):
            state.recent.add(fbank.feed(state.fbank, block, FBANK), self._keep_frames)

    def begin_turn(self, state: SenseVoiceEarsState, start: int) -> None:
        """Forget audio before user sample `start` and the text of the turn before. `start` may reach back up to `keep_s`."""
        state.turn += 1
        state.start, state.settled = max(0, start), 0
        state.text, state.labels = "", None

    def window(self, state: SenseVoiceEarsState) -> SenseVoiceWindow:
        """A snapshot of the current turn up to the last sample fed; a copy of at most `keep_s` of frames."""
        made = state.fbank.made
        first = max(state.start // HOP_SAMPLES, made - self._keep_frames)
        rows = max(0, made - first)
        frames = state.recent.last(rows).copy()
        return SenseVoiceWindow(frames, first * HOP_SAMPLES, state.fbank.fed, state.turn, state.text, state.labels)

    @torch.inference_mode()
    def transcribe(self, window: SenseVoiceWindow) -> SenseVoiceTranscript:
        """The transcript of a snapshot: one encoder pass per 15 s."""
        cuts = self._cuts(window.frames)
        heard = [self._hear(window.frames[begin:end]) for begin, end in zip((0, *cuts), (*cuts, len(window.frames)), strict=True)]
        frozen, frozen_labels = window.text, window.labels
        for part in heard[:-1]:
            frozen = joined(frozen, part.text)
            frozen_labels = part.labels if part.text else frozen_labels
        last = heard[-1]
        return SenseVoiceTranscript(
            joined(frozen, last.text),
            window.end,
            min(part.no_speech for part in heard),
            last.labels if last.text or frozen_labels is None else frozen_labels,
            frozen_text=frozen,
            frozen_labels=frozen_labels,
            frozen_until=window.start + (cuts[-1] * HOP_SAMPLES if cuts else 0),
        )

    def settle(self, state: SenseVoiceEarsState, window: SenseVoiceWindow, transcript: Transcript) -> None:
        """Keep the frozen text and its labels, unless a newer turn or window came first."""
        if window.turn != state.turn or window.end < state.settled or not isinstance(transcript, SenseVoiceTranscript):
            return
        state.settled = window.end
        state.text, state.labels = transcript.frozen_text, transcript.frozen_labels
        state.start = max(state.start, transcript.frozen_until)

    @torch.inference_mode()
    def states(self, window: SenseVoiceWindow) -> Tensor:
        """A snapshot's sound as [k, D] encoder states, 16.67 per second, without the label positions: what an input projector reads."""
        return self._encode(window.frames)[QUERIES:]

    @property
    def _keep_frames(self) -> int:
        return round(self.config.keep_s * FRAME_RATE_HZ)

    def _cuts(self, frames: Features) -> list[int]:
        """Where to cut [t, 80] frames so that no part is longer than `freeze_after_s`."""
        longest, at_least = (round(s * FRAME_RATE_HZ) for s in (self.config.freeze_after_s, self.config.freeze_at_least_s))
        cuts: list[int] = []
        at = 0
        while len(frames) - at > longest:
            at += quietest(frames[at : at + longest], at_least)
            cuts.append(at)
        return cuts

    def _encode(self, frames: Features) -> Tensor:
        """[t, 80] frames -> [k + 4, D], the label positions first."""
        weight = self.parts.network.embed.weight
        features = torch.from_numpy(self.parts.cmvn(stack(frames))).to(weight.device, weight.dtype)  # [k, 560]
        encoded: Tensor = self.parts.network(features[None], language=self.config.language, itn=self.config.itn)[0]
        return encoded

    def _hear(self, frames: Features) -> _Heard:
        """One encoder pass over [t, 80] frames, read greedily. Text without a letter or digit counts as none."""
        if not len(frames):
            return _Heard("", RichLabels(), 1.0)
        logits = self.parts.network.ctc(self._encode(frames))  # [k + 4, V]
        labels, no_speech = self._read_labels(logits[:QUERIES])
        ids = collapse(logits[QUERIES:].argmax(dim=-1)).tolist()
        text = self.parts.pieces.text(ids).strip()
        return _Heard(text if any(letter.isalnum() for letter in text) else "", labels, no_speech)
