"""Ears made of the input projector: each stretch of sound is taken in once, and what it says comes out as tokens and vectors for the LLM.

Notable: `transcribe` goes on from where the newest settled window ended, chunk by chunk of 320 ms; only the begun chunk at the window's
end, and the one before it, are looked at anew next time, with silence after them, so that a last word is heard to end. What was said
before is final: its vectors keep their keys, so the LLM's context that holds them is gone on from. The result does not depend on how often
or when the caller asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from duplex.audio import Samples
from duplex.checkpoint import read_tensors
from duplex.english import LISTENING_OPENERS
from duplex.errors import WeightsError
from encoders import mel, speech_projector
from encoders.ears import HeardVectors, Transcript
from encoders.fast_types import fast_in_bfloat16
from encoders.mel import HOP_SAMPLES, MELS, POWER_FLOOR, Mel, MelState
from encoders.recent_frames import FRAME_RATE_HZ, MOST_KEPT_S, RecentFrames, blocks
from encoders.speech_projector import ProjectorState, SpeechProjector, SpeechProjectorConfig, TokenHead, collapse
from encoders.speech_projector_layers import Lookback

WEIGHTS = Path(__file__).parent / "weights" / "projector.safetensors"
"""The shipped weights; the model card lies beside them."""

_keys = count(1)  # of all vectors ever heard here; next() is atomic


@dataclass(frozen=True, slots=True)
class ProjectorEarsConfig:
    """How sound is taken in."""

    keep_s: float = 24.0
    """Sound that was not settled yet is kept so long; older sound is lost."""
    end_silence_s: float = 0.32
    """Silence heard after a window's end, at least: what comes out is a chunk late."""
    snap: float = 0.0
    """How far a vector is moved from what was heard (0) to the embedding of its token (1)."""

    def __post_init__(self) -> None:
        if not 1 <= self.keep_s <= MOST_KEPT_S:
            raise ValueError(f"keep_s must be in [1, {MOST_KEPT_S}]")
        if not 0.32 <= self.end_silence_s <= 2:
            raise ValueError("end_silence_s must be in [0.32, 2]")
        if not 0 <= self.snap <= 1:
            raise ValueError("snap must be in [0, 1]")


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """What was made of a turn so far. Immutable: more sound gives a new one."""

    at: int
    """The next mel frame to take in."""
    stream: ProjectorState
    """Where the network is."""
    last: int = 0
    """Class of the newest frame out; 0 is the blank."""
    said: tuple[tuple[int, str, Tensor], ...] = ()
    """(key, piece of text, [D] vector) of each token so far."""
    listening: float | None = None
    """How likely the first token was a word by which listeners show that they listen; None before one or where no token is such."""


@dataclass(slots=True)
class ProjectorEarsState:
    """What one conversation's ears remember."""

    mel: MelState = field(default_factory=MelState)
    """The feature stream."""
    recent: RecentFrames = field(default_factory=RecentFrames)
    """The newest frames; the last of them is frame `mel.made - 1`."""
    turn: int = 0
    """Counts turns, so that a window of an earlier one is known."""
    settled: int = 0
    """`end` of the newest window settled in this turn."""
    taken: Taken | None = None
    """What was made of the turn; None before its first window was settled."""
    start: int = 0
    """Mel frame at which the turn begins."""


@dataclass(frozen=True, slots=True, eq=False)
class ProjectorWindow:
    """A snapshot: what was made of the turn, and the frames since."""

    frames: Mel
    """[t, 80] log10 mel power, a copy; the first is frame `at`."""
    at: int
    """Number of the first frame."""
    end: int
    """User sample up to which audio is in it."""
    turn: int
    """Which turn it belongs to."""
    taken: Taken | None
    """What was made of the turn before these frames."""


@dataclass(frozen=True, slots=True, eq=False)
class ProjectorTranscript(Transcript):
    """A transcript and what `settle` needs."""

    taken: Taken | None = None
    """What is final."""


class ProjectorEars:
    """`encoders.ears.Ears` on a speech projector. Holds no state of a conversation; `transcribe` may run in any thread."""

    def __init__(
        self, net: SpeechProjector, head: TokenHead, pieces: Sequence[str], config: ProjectorEarsConfig | None = None
    ) -> None:
        """pieces: [V] the text of each token in use."""
        self.net, self.head, self.pieces = net.requires_grad_(False).eval(), head.requires_grad_(False).eval(), pieces
        self.config = config or ProjectorEarsConfig()
        self._light = False
        self._openers = torch.tensor(
            [i for i, piece in enumerate(pieces) if piece.strip().lower() in LISTENING_OPENERS], dtype=torch.long
        )

    @classmethod
    def load(
        cls,
        whisper: Path,
        embed: Callable[[Sequence[int]], Tensor],
        decode: Callable[[Sequence[int]], str],
        config: ProjectorEarsConfig | None = None,
        weights: Path = WEIGHTS,
    ) -> ProjectorEars:
        """From OpenAI's `tiny.en.pt` (its encoder), the LLM's embeddings and decoder, and what was trained here.

        embed: ids -> [n, D]. decode: ids -> text. Raises WeightsError.
        """
        own = read_tensors(weights)
        net, vocabulary, rest = speech_projector.restore(weights, own, read_tensors(whisper))
        ids = vocabulary.tolist()
        head = TokenHead(embed(ids), code=net.config.code)
        if head.table.shape[1] != net.config.llm_width:
            raise WeightsError(f"{weights} was taught for an LLM of width {net.config.llm_width}, not {head.table.shape[1]}.")
        head.load_state_dict(rest)
        ears = cls(net, head, [decode([token]) for token in ids], config)
        if fast_in_bfloat16(net.out.weight.device):
            ears.compute_in_bfloat16()
        return ears

    @classmethod
    def tiny(
        cls,
        embed: Callable[[Sequence[int]], Tensor],
        decode: Callable[[Sequence[int]], str],
        seed: int = 0,
        config: ProjectorEarsConfig | None = None,
    ) -> ProjectorEars:
        """Random weights over the first printable bytes of a vocabulary of bytes: hears nonsense, deterministically."""
        ids = list(range(ord("a"), ord("z") + 1))
        table = embed(ids)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = SpeechProjectorConfig(32, 2, 1, 1, 1, 32, 3, table.shape[1], 4, left=2)
            net, head = SpeechProjector(sizes), TokenHead(table, code=sizes.code)
            net.out.weight.data.mul_(6.0)  # the sound should matter
        return cls(net, head, [decode([token]) for token in ids], config)

    def compute_in_bfloat16(self) -> None:
        """Compute products in bfloat16, as the weights were taught; norms and sums stay in float32."""
        self._light = True
        self.head.table, self.head.codes.data = self.head.table.bfloat16(), self.head.codes.data.bfloat16()
        for part in self.net.modules():
            if isinstance(part, (nn.Linear, nn.Conv1d, Lookback)):
                part.weight.data = part.weight.data.bfloat16()

    @property
    def interim_s(self) -> float:
        return 0.32  # a chunk

    def open(self) -> ProjectorEarsState:
        """A fresh state for one conversation, about 1 MB and 0.5 MB for a turn."""
        return ProjectorEarsState()

    def feed(self, state: ProjectorEarsState, samples: Samples) -> None:
        """Take [n] user samples that follow what was fed before. NaN counts as 0, values beyond full scale are clipped."""
        for block in blocks(samples):
            state.recent.add(mel.feed(state.mel, block), self._keep_frames)

    def begin_turn(self, state: ProjectorEarsState, start: int) -> None:
        """Forget audio before user sample `start` and the text of the turn before. `start` may reach back up to `keep_s`."""
        state.turn += 1
        state.start, state.settled, state.taken = max(0, start) // HOP_SAMPLES, 0, None

    def window(self, state: ProjectorEarsState) -> ProjectorWindow:
        """A snapshot of what was not settled yet, up to the last sample fed; a copy of at most `keep_s` of frames."""
        made = state.mel.made
        wanted = state.taken.at if state.taken is not None else state.start
        first = max(wanted, made - min(self._keep_frames, state.recent.filled))
        rows = max(0, made - first)
        owed = mel.tail(state.mel)
        frames = np.concatenate((state.recent.last(rows), owed[max(0, first - made) :])) if rows else owed[max(0, first - made) :]
        return ProjectorWindow(frames.copy(), first, state.mel.fed, state.turn, state.taken)

    @torch.inference_mode()
    def transcribe(self, window: ProjectorWindow) -> ProjectorTranscript:
        """The transcript of a snapshot: one pass over what is new, its whole chunks for good and the rest with silence behind it."""
        size = self.net.config.mel_frames
        taken = window.taken or Taken(window.at, self.net.open())
        if taken.at < window.at:  # sound was lost: go on after it
            taken = replace(taken, at=window.at, last=0)
        ended, known = taken, len(window.frames)
        if known or taken.stream.chunks:
            whole = known // size
            total = -(-(known + round(self.config.end_silence_s * FRAME_RATE_HZ)) // size) * size
            frames = np.full((total, MELS), np.log10(POWER_FLOOR), np.float32)
            frames[:known] = window.frames
            taken, ended = self._take(taken, frames, whole)
        said = ended.said
        text = "".join(piece for _, piece, _ in said).strip()
        vectors = (
            np.stack([vector.numpy() for _, _, vector in said]) if said else np.empty((0, self.net.config.llm_width), np.float32)
        )
        speech = HeardVectors(tuple(key for key, _, _ in said), tuple(piece for _, piece, _ in said), vectors) if text else None
        no_speech = 0.0 if text else 1.0
        return ProjectorTranscript(text, window.end, no_speech, speech=speech, listening=ended.listening, taken=taken)

    def settle(self, state: ProjectorEarsState, window: ProjectorWindow, transcript: Transcript) -> None:
        """Keep what is final, unless a newer turn or window came first."""
        if window.turn != state.turn or window.end < state.settled or not isinstance(transcript, ProjectorTranscript):
            return
        state.settled, state.taken = window.end, transcript.taken

    def _take(self, taken: Taken, frames: Mel, whole: int) -> tuple[Taken, Taken]:
        """Take in chunks [t, 80] -> what is made of so many of them, and of all."""
        out, size = self.net.config.out_frames, self.net.config.mel_frames
        with torch.autocast("cpu", torch.bfloat16, enabled=self._light):
            vectors, _, stream = self.net(torch.from_numpy(frames)[None], taken.stream, whole)
            scores = self.head(vectors)[0]
        settled = ended = taken
        for chunk, place in enumerate(range(0, len(scores), out)):
            ended = self._read(ended, scores[place : place + out], vectors[0, place : place + out])
            if chunk + 1 == whole:
                settled = replace(ended, at=taken.at + whole * size, stream=stream)
        return settled, ended

    def _read(self, taken: Taken, scores: Tensor, vectors: Tensor) -> Taken:
        """One chunk's frames out."""
        tokens, frames, last = collapse(scores, taken.last)
        made = self.head.embeddings(torch.lerp(self.head.meant(vectors[frames]), self.head.table[tokens].float(), self.config.snap))
        new = tuple((-next(_keys), self.pieces[token], vector) for token, vector in zip(tokens, made, strict=True))
        listening = taken.listening
        if new and not taken.said and len(self._openers):
            listening = float(scores[frames[0]].softmax(0)[1 + self._openers].sum())
        return replace(taken, last=last, said=taken.said + new, listening=listening)

    @property
    def _keep_frames(self) -> int:
        return round(self.config.keep_s * FRAME_RATE_HZ)
