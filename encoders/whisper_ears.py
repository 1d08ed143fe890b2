"""Ears made of Whisper: a bounded window over the current turn, transcribed as often as the caller likes.

Notable: the state holds mel frames, not samples, in one buffer of 30 s, so three hours cost what one minute costs. A turn longer
than `freeze_after_s` is cut at its quietest spot: the text before the cut is frozen, only the audio after it is decoded again.
The cut is found in `transcribe`, on the snapshot alone, and takes effect in `settle`; a window that was overtaken by a new turn,
or by a newer window, settles nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from duplex.audio import Samples
from encoders import mel, whisper_checkpoint
from encoders.ears import SoundStates, Transcript
from encoders.greedy import GreedyConfig, decode
from encoders.mel import HOP_SAMPLES, MELS, Mel, MelState
from encoders.recent_frames import FRAME_RATE_HZ, MOST_KEPT_S, RecentFrames, blocks, quietest
from encoders.sound_heads import SoundHeads
from encoders.whisper import Whisper

STATES = 75
"""Encoder states (20 ms each) of the newest sound that are kept beside a transcript."""


@dataclass(frozen=True, slots=True)
class EarsConfig:
    """How much audio is kept and decoded at once."""

    freeze_after_s: float = 12.0
    """No decoding takes in more audio than this; what is older is frozen as text."""
    freeze_at_least_s: float = 4.0
    """The part that is frozen is at least so long, so that its text has some context."""
    keep_s: float = 24.0
    """Audio of the turn that was not settled yet is kept so long; older audio is lost. At most 29, as a second is taken in at a time."""
    end_silence_s: float = 0.5
    """Silence encoded after the window, so that a last word is heard to end."""
    greedy: GreedyConfig = field(default_factory=GreedyConfig)
    """When decoding stops."""
    heads: bool = True
    """Also tell, by what the layers made of the sound, whether the turn is over and who only listens, where this was taught."""

    def __post_init__(self) -> None:
        if not 0 < self.freeze_at_least_s < self.freeze_after_s <= self.keep_s <= MOST_KEPT_S:
            raise ValueError(f"keep 0 < freeze_at_least_s < freeze_after_s <= keep_s <= {MOST_KEPT_S}")
        if not 0 <= self.end_silence_s <= 2:
            raise ValueError("end_silence_s must be in [0, 2]")


@dataclass(slots=True)
class EarsState:
    """What one conversation's ears remember."""

    mel: MelState = field(default_factory=MelState)
    """The feature stream."""
    recent: RecentFrames = field(default_factory=RecentFrames)
    """The newest frames; the last of them is frame `mel.made - 1`."""
    turn: int = 0
    """Counts turns, so that a window of an earlier one is known."""
    start: int = 0
    """User sample from which on audio is still to be decoded."""
    settled: int = 0
    """`end` of the newest window settled in this turn."""
    text: str = ""
    """Frozen text of this turn."""
    draft: tuple[int, ...] = ()
    """Tokens of the newest transcript after the frozen text."""


@dataclass(frozen=True, slots=True)
class EarsWindow:
    """A snapshot of the current turn."""

    frames: Mel
    """[t, 80] log10 mel power, a copy."""
    start: int
    """User sample at which the first frame is centred."""
    end: int
    """User sample up to which audio is in it."""
    turn: int
    """Which turn it belongs to."""
    text: str
    """Text frozen before it."""
    draft: tuple[int, ...]
    """An earlier transcript of it, to start from."""


@dataclass(frozen=True, slots=True)
class WhisperTranscript(Transcript):
    """A transcript and what `settle` needs."""

    frozen_text: str = ""
    """The part of the text that is final."""
    frozen_until: int = 0
    """User sample from which on audio must be decoded again."""
    draft: tuple[int, ...] = ()
    """Tokens of the part that is not final."""


class WhisperEars:
    """`encoders.ears.Ears` on a Whisper model. Holds no state of a conversation; `transcribe` may run in any thread."""

    def __init__(self, model: Whisper, config: EarsConfig | None = None, heads: SoundHeads | None = None) -> None:
        """heads: tell whether the turn is over, and who only listens; None where nothing was taught that."""
        self.model = model
        self.config = config or EarsConfig()
        self._heads = heads

    @classmethod
    def load(
        cls, checkpoint: Path, vocab: Path, config: EarsConfig | None = None, heads: Path | None = None, *, int8: bool = True
    ) -> WhisperEars:
        """From OpenAI's `tiny.en.pt` and `gpt2.tiktoken`, and `encoders.sound_heads`. Raises WeightsError."""
        config = config or EarsConfig()
        told = SoundHeads.load(heads) if heads is not None and config.heads else None
        return cls(whisper_checkpoint.load(checkpoint, vocab, int8=int8), config, told)

    @classmethod
    def tiny(cls, seed: int = 0, config: EarsConfig | None = None) -> WhisperEars:
        """Random weights, no download: hears nonsense, deterministically."""
        return cls(whisper_checkpoint.tiny(seed), config)

    @property
    def interim_s(self) -> float:
        return 0.6  # each time the whole window is heard anew

    def open(self) -> EarsState:
        """A fresh state for one conversation, about 1 MB, which does not grow."""
        return EarsState()

    def feed(self, state: EarsState, samples: Samples) -> None:
        """Take [n] user samples that follow what was fed before. NaN counts as 0, values beyond full scale are clipped."""
        for block in blocks(samples):
            state.recent.add(mel.feed(state.mel, block), self._keep_frames)

    def begin_turn(self, state: EarsState, start: int) -> None:
        """Forget audio before user sample `start` and the text of the turn before. `start` may reach back up to `keep_s`."""
        state.turn += 1
        state.start, state.settled = max(0, start), 0
        state.text, state.draft = "", ()

    def window(self, state: EarsState) -> EarsWindow:
        """A snapshot of the current turn up to the last sample fed; a copy of at most `keep_s` of frames."""
        made = state.mel.made
        first = max(state.start // HOP_SAMPLES, made - self._keep_frames)
        rows = max(0, made - first)
        body = state.recent.last(rows)
        owed = mel.tail(state.mel)
        frames = np.concatenate((body, owed[max(0, first - made) :]))
        return EarsWindow(frames, first * HOP_SAMPLES, state.mel.fed, state.turn, state.text, state.draft)

    def transcribe(self, window: EarsWindow) -> WhisperTranscript:
        """The transcript of a snapshot: an encoder pass per 12 s, a decoder pass over the draft, and one per new token."""
        frames, at, frozen, draft = window.frames, window.start, window.text, window.draft
        no_speech, listening, over, states = 1.0, None, None, None
        longest = round(self.config.freeze_after_s * FRAME_RATE_HZ)
        while len(frames) > longest:
            cut = quietest(frames[:longest], round(self.config.freeze_at_least_s * FRAME_RATE_HZ))
            head = decode(self.model, self._ended(frames[:cut]), draft, self.config.greedy)
            frozen += self.model.vocabulary.text(head.ids)
            draft = draft[len(head.ids) :]
            no_speech = min(no_speech, head.no_speech)
            frames, at = frames[cut:], at + cut * HOP_SAMPLES
        if len(frames):
            last = decode(self.model, self._ended(frames), draft, self.config.greedy)
            draft = last.ids
            no_speech = min(no_speech, last.no_speech)
            listening = None if frozen else last.listening
            states = self._newest(last.states, len(frames))
        text = (frozen + self.model.vocabulary.text(draft)).strip()
        if self._heads is not None and states is not None:
            over, listening = self._heads.tell(states)
        return WhisperTranscript(
            text,
            window.end,
            no_speech,
            listening=listening,
            over=over,
            states=states,
            frozen_text=frozen,
            frozen_until=at,
            draft=draft,
        )

    def settle(self, state: EarsState, window: EarsWindow, transcript: Transcript) -> None:
        """Keep the frozen text and the draft, unless a newer turn or window came first."""
        if window.turn != state.turn or window.end < state.settled or not isinstance(transcript, WhisperTranscript):
            return
        state.settled = window.end
        state.text, state.draft = transcript.frozen_text, transcript.draft
        state.start = max(state.start, transcript.frozen_until)

    @property
    def _keep_frames(self) -> int:
        return round(self.config.keep_s * FRAME_RATE_HZ)

    def _newest(self, states: SoundStates | None, frames: int) -> SoundStates | None:
        """The states of the newest sound of a window of so many frames, without the silence behind it."""
        if states is None or frames < 2:
            return None
        return SoundStates(states.frames[max(0, frames // 2 - STATES) : frames // 2], states.last)

    def _ended(self, frames: Mel) -> Mel:
        """The frames with the silence that ends them."""
        silence = np.full((round(self.config.end_silence_s * FRAME_RATE_HZ), MELS), np.log10(mel.POWER_FLOOR), np.float32)
        return np.concatenate((frames, silence))
