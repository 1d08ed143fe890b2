"""Ears made of the input projector: each stretch of sound is taken in once; words come out, and vectors for the LLM.

Notable: `transcribe` goes on from where the newest settled window ended, chunk by chunk of 320 ms; only the begun chunk at the window's
end, and the one before it, are looked at anew next time, with silence after them, so that a last word is heard to end. A word keeps its
keys for as long as nothing before it is heard otherwise, so the LLM's context that holds them is gone on from. The result does not depend
on how often or when the caller asks.

Where several words may have been said, the LLM itself judges which (`encoders.rescoring`), if it is given as a judge.

What the LLM is given for a word is its own embedding of it; with `snap` below 1, mixed with those of the words that may have been said in
its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from duplex.audio import Samples
from duplex.checkpoint import read_tensors
from duplex.english import LISTENING_OPENERS
from encoders import mel, speech_projector
from encoders.ears import HeardVectors, SoundStates, Transcript
from encoders.fast_types import fast_in_bfloat16
from encoders.mel import HOP_SAMPLES, MELS, POWER_FLOOR, Mel, MelState
from encoders.recent_frames import FRAME_RATE_HZ, MOST_KEPT_S, RecentFrames, blocks
from encoders.rescoring import Judge, choose
from encoders.sound_heads import SoundHeads
from encoders.speech_projector import ProjectorState, SpeechProjector, SpeechProjectorConfig
from encoders.speech_projector_layers import Lookback
from encoders.word_lattice import Said, spelt
from encoders.word_lexicon import Lexicon
from encoders.word_ngrams import FIRST, WordNgrams
from encoders.word_search import SearchState, WordSearch, WordSearchConfig

WEIGHTS = Path(__file__).parent / "weights" / "projector.safetensors"
"""The shipped weights; the model card lies beside them."""

STATES = 40
"""States (40 ms each) of the newest sound that are kept beside a transcript."""

_KEYS = 64
"""Keys for the vectors of one word."""


@dataclass(frozen=True, slots=True)
class ProjectorEarsConfig:
    """How sound is taken in."""

    keep_s: float = 24.0
    """Sound that was not settled yet is kept so long; older sound is lost."""
    end_silence_s: float = 0.32
    """Silence heard after a window's end, at least: what comes out is a chunk late."""
    snap: float = 1.0
    """How far a vector is moved from what may have been said (0) to the embedding of the likeliest word (1)."""
    heads: bool = True
    """Also tell, by what the layers made of the sound, whether the turn is over and who only listens, where this was taught."""
    judge_weight: float = 0.5
    """Of the LLM's judgement of what may have been said beside the search's scores; 0 asks it for none."""
    search: WordSearchConfig = field(default_factory=WordSearchConfig)
    """How words are looked for."""

    def __post_init__(self) -> None:
        if not 1 <= self.keep_s <= MOST_KEPT_S:
            raise ValueError(f"keep_s must be in [1, {MOST_KEPT_S}]")
        if not 0.32 <= self.end_silence_s <= 2:
            raise ValueError("end_silence_s must be in [0.32, 2]")
        if not 0 <= self.snap <= 1:
            raise ValueError("snap must be in [0, 1]")
        if self.judge_weight < 0:
            raise ValueError("judge_weight must not be below 0")


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """What was made of a turn so far. Immutable: more sound gives a new one."""

    at: int
    """The next mel frame to take in."""
    stream: ProjectorState
    """Where the network is."""
    search: SearchState
    """Where the search for words is."""
    states: NDArray[np.float32]
    """[n, W] what the newest phones were read from."""


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
        self,
        net: SpeechProjector,
        lexicon: Lexicon,
        ngrams: WordNgrams,
        encode: Callable[[str], Sequence[int]],
        embed: Callable[[Sequence[int]], Tensor],
        config: ProjectorEarsConfig | None = None,
        judge: Judge | None = None,
        heads: SoundHeads | None = None,
    ) -> None:
        """encode: text -> the LLM's tokens. embed: tokens -> [n, D] its embeddings. judge: who tells what may have been said. heads: tell
        whether the turn is over, and who only listens; None where nothing was taught that.
        """
        self.net, self.config = net.requires_grad_(False).eval(), config or ProjectorEarsConfig()
        self.search = WordSearch(lexicon, ngrams, self.config.search)
        self._encode, self._embed = lru_cache(4096)(encode), embed
        self._judge = judge if self.config.judge_weight > 0 else None
        self._heads = heads
        self._rows = lru_cache(4096)(self._embedded)
        self._light = False
        self._openers = [i for i, word in enumerate(lexicon.words) if word.lower() in LISTENING_OPENERS]

    @classmethod
    def load(
        cls,
        whisper: Path,
        encode: Callable[[str], Sequence[int]],
        embed: Callable[[Sequence[int]], Tensor],
        config: ProjectorEarsConfig | None = None,
        judge: Judge | None = None,
        heads: Path | None = None,
        weights: Path = WEIGHTS,
    ) -> ProjectorEars:
        """From OpenAI's `tiny.en.pt` (its encoder), the LLM's tokens and embeddings, and what was trained here. Raises WeightsError."""
        net, lexicon, ngrams = speech_projector.restore(weights, read_tensors(weights), read_tensors(whisper))
        net.fold()
        config = config or ProjectorEarsConfig()
        told = SoundHeads.load(heads) if heads is not None and config.heads else None
        ears = cls(net, lexicon, ngrams, encode, embed, config, judge, told)
        if fast_in_bfloat16(net.phone.weight.device):
            ears.compute_in_bfloat16()
        return ears

    @classmethod
    def tiny(
        cls,
        encode: Callable[[str], Sequence[int]],
        embed: Callable[[Sequence[int]], Tensor],
        seed: int = 0,
        config: ProjectorEarsConfig | None = None,
        judge: Judge | None = None,
    ) -> ProjectorEars:
        """Random weights, and each letter a word: hears nonsense, deterministically."""
        words = ("",) * FIRST + tuple("abcdefghijklmnopqrstuvwxyz")
        letters = np.arange(FIRST, len(words))
        lexicon = Lexicon(words, letters, tuple((one,) for one in range(len(letters))), np.zeros(len(letters)))
        ngrams = WordNgrams.count(([one] for one in letters.tolist()), len(words))
        torch.manual_seed(seed)
        net = SpeechProjector(SpeechProjectorConfig(32, 2, 1, 2, 64, 3, 8, 2, 12, len(letters), 2))
        net.phone.weight.data *= 8.0
        return cls(net, lexicon, ngrams, encode, embed, config, judge)

    def compute_in_bfloat16(self) -> None:
        """Compute products in bfloat16, as the weights were taught; norms and sums stay in float32."""
        self._light = True
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
        taken = window.taken or Taken(window.at, self.net.open(), self.search.open(), self._nothing)
        if taken.at < window.at:  # sound was lost: go on after it
            taken = replace(taken, at=window.at)
        ended, known = taken, len(window.frames)
        if known or taken.stream.chunks:
            whole = known // size
            total = -(-(known + round(self.config.end_silence_s * FRAME_RATE_HZ)) // size) * size
            frames = np.full((total, MELS), np.log10(POWER_FLOOR), np.float32)
            frames[:known] = window.frames
            taken, ended = self._take(taken, frames, whole)
        states = SoundStates(ended.states) if len(ended.states) else None
        over, listening = self._told(states, ended.search)
        paths = self.search.paths(ended.search)
        if not paths:
            return ProjectorTranscript("", window.end, 1.0, listening=listening, over=over, states=states, taken=taken)
        said = paths[0][1]
        if self._judge is not None and len(paths) > 1:
            said = choose(paths, self.config.judge_weight, self.search.lexicon, self._encode, self._judge)
        speech = self._heard(said)
        text = "".join(speech.pieces)
        return ProjectorTranscript(text, window.end, speech=speech, listening=listening, over=over, states=states, taken=taken)

    def settle(self, state: ProjectorEarsState, window: ProjectorWindow, transcript: Transcript) -> None:
        """Keep what is final, unless a newer turn or window came first."""
        if window.turn != state.turn or window.end < state.settled or not isinstance(transcript, ProjectorTranscript):
            return
        state.settled, state.taken = window.end, transcript.taken

    def _take(self, taken: Taken, frames: Mel, whole: int) -> tuple[Taken, Taken]:
        """Take in chunks [t, 80] -> what is made of so many of them, and of all."""
        size, sounds = self.net.config.mel_frames, self.net.config.sounds
        with torch.autocast("cpu", torch.bfloat16, enabled=self._light):
            heard, stream = self.net.sound(torch.from_numpy(frames)[None], taken.stream, whole)
            phones = self.net.phone(heard)
        odds, new = phones[0].float().log_softmax(1).numpy(), heard[0].float().numpy()
        settled = self.search.step(taken.search, odds[: whole * sounds]) if whole else taken.search
        ended = self.search.step(settled, odds[whole * sounds :])
        states = np.concatenate((taken.states, new[: whole * sounds]))[-STATES:]
        newest = np.concatenate((states, new[whole * sounds :]))[-STATES:]
        return Taken(taken.at + whole * size, stream, settled, states), Taken(taken.at, stream, ended, newest)

    @property
    def _nothing(self) -> NDArray[np.float32]:
        return np.zeros((0, self.net.config.width), np.float32)

    def _told(self, states: SoundStates | None, search: SearchState) -> tuple[float | None, float | None]:
        """Log odds that the turn is over, and how likely it only shows that somebody listens."""
        return self._heads.tell(states) if self._heads is not None and states is not None else (None, self._listening(search))

    def _heard(self, said: Sequence[Said]) -> HeardVectors:
        """Words, and the marks between and after them."""
        keys, pieces, vectors = list[int](), list[str](), list[NDArray[np.float32]]()
        for word, text, mark in spelt(said, self.search.lexicon):
            rows = self._rows(text) if mark else self._mixed(word, text)
            first = word.key * _KEYS + (_KEYS // 2 if mark else 0)
            keys += [-(first + index) for index in range(len(rows))]
            pieces += [*[""] * (len(rows) - 1), text]
            vectors.append(rows)
        return HeardVectors(tuple(keys), tuple(pieces), np.concatenate(vectors))

    def _embedded(self, text: str) -> NDArray[np.float32]:
        """[n, D] the LLM's embeddings of a word or mark."""
        found: NDArray[np.float32] = self._embed(list(self._encode(text))[: _KEYS // 2]).float().numpy()
        return found

    def _mixed(self, word: Said, text: str) -> NDArray[np.float32]:
        """[n, D] the same, with the words that may have been said in its place, as far as these have as many tokens."""
        own = self._rows(text)
        alike = [
            (share, rows)
            for other, share in word.others
            if len(rows := self._rows(_like(text, self.search.lexicon.words[other]))) == len(own)
        ]
        rest = (1 - self.config.snap) * sum(share for share, _ in alike)
        mixed: NDArray[np.float32] = (1 - rest) * own
        for share, rows in alike:
            mixed = mixed + (1 - self.config.snap) * share * rows
        return mixed.astype(np.float32)

    def _listening(self, search: SearchState) -> float | None:
        """How likely the first word shows listening."""
        if not self._openers:
            return None
        odds = self.search.first_words(search)
        return sum(odds.get(word, 0.0) for word in self._openers)

    @property
    def _keep_frames(self) -> int:
        return round(self.config.keep_s * FRAME_RATE_HZ)


def _like(text: str, word: str) -> str:
    """A word with a space in front and a capital where the text has them."""
    space = " " if text.startswith(" ") else ""
    return space + (word[:1].upper() + word[1:] if text.strip()[:1].isupper() else word)
