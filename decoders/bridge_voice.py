"""The bridge voice: the LLM's text, normalised, spoken clause by clause by VITS.

    tokens -> text_stream -> clauses -> normalize -> phonemes -> vits -> level, fades -> 24 kHz

A clause's durations and latents are planned at once (about 1/40 of its length), then sound is made in pieces, the first one small. Word
ends come from the planned durations. Each clause is trimmed to its words, faded at both edges and preceded by the pause that the
punctuation of the clause before it asks for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from decoders import text_stream
from decoders.clauses import ClauseConfig, ClauseSplitter, ClauseState
from decoders.normalize import Reader, Spoken, normalize
from decoders.phonemes import Lexicon, PhonemeIds, PhonemeTable, Phonemizer
from decoders.text_stream import Detokenize, TextStream
from decoders.tiny_voice import tiny_graphs, tiny_phonemes, tiny_table
from decoders.vits import HOP, VITS_RATE_HZ, Plan, Vits, VitsConfig
from decoders.voice import Speech, SpokenWord
from duplex.audio import AGENT_RATE_HZ, Samples

_PAUSES_MS = {"": 40, ",": 120, ";": 180, ":": 180, ".": 300, "!": 300, "?": 320}
_MOST_IDS = 900  # of one run of the voice, about 25 s of speech; longer clauses (digits, mostly) are spoken in parts


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """How text becomes speech."""

    clauses: ClauseConfig = field(default_factory=ClauseConfig)
    """Where the text is cut."""
    vits: VitsConfig = field(default_factory=VitsConfig)
    """How the voice samples."""
    first_chunk_frames: int = 16
    """Latent frames (11.6 ms each) of the first chunk of a clause; small, so that sound starts early."""
    chunk_frames: int = 48
    """Latent frames of later chunks; each costs 24 more that are rendered and dropped."""
    gain_db: float = 5.0
    """Brings the voice, which speaks at about -25 dBFS RMS, to -20."""
    fade_ms: float = 4.0
    """Fade at both edges of a clause."""
    lead_ms: float = 25.0
    """Sound kept before the first word; the voice plans up to 80 ms of silence there."""
    tail_ms: float = 80.0
    """Sound kept after the last phoneme, for it to die away."""
    pause_scale: float = 1.0
    """Factor on the pauses between clauses."""

    def __post_init__(self) -> None:
        if not 4 <= self.first_chunk_frames <= self.chunk_frames <= 1024:
            raise ValueError(
                f"chunks must satisfy 4 <= first_chunk_frames ({self.first_chunk_frames}) <= chunk_frames ({self.chunk_frames}) <= 1024"
            )
        if not -20.0 <= self.gain_db <= 20.0:
            raise ValueError(f"voice.gain_db must be in -20 to 20, not {self.gain_db}")
        for name in ("fade_ms", "lead_ms", "tail_ms"):
            if not 0.0 <= getattr(self, name) <= 500.0:
                raise ValueError(f"voice.{name} must be in 0 to 500, not {getattr(self, name)}")
        if not 0.0 <= self.pause_scale <= 4.0:
            raise ValueError(f"voice.pause_scale must be in 0 to 4, not {self.pause_scale}")


@dataclass(slots=True)
class BridgeState:
    """One response in the making."""

    rng: np.random.Generator
    tokens: TextStream = field(default_factory=TextStream)
    clause: ClauseState = field(default_factory=ClauseState)
    reader: Reader = field(default_factory=Reader)
    pause: int = 0
    """Agent samples of silence owed before the next clause."""


class BridgeVoice:
    """`decoders.voice.Voice` on a published VITS voice. Instances hold no state of a conversation and may be shared by threads."""

    def __init__(
        self,
        vits: Vits,
        table: PhonemeTable,
        phonemize: Phonemizer,
        detokenize: Detokenize,
        config: BridgeConfig | None = None,
    ) -> None:
        self.config = config or BridgeConfig()
        self.vits, self.table, self.phonemize, self.detokenize = vits, table, phonemize, detokenize
        self._splitter = ClauseSplitter(self.config.clauses)

    @classmethod
    def load(cls, split: Path, voice_config: Path, detokenize: Detokenize, config: BridgeConfig | None = None) -> BridgeVoice:
        """`split`: the folder written by `vits.split_vits`; `voice_config`: the voice's .onnx.json.

        Raises:
            WeightsError: a part is missing or damaged.
        """
        config = config or BridgeConfig()
        voice = cls(Vits.load(split, config.vits), PhonemeTable.load(voice_config), Lexicon(), detokenize, config)
        voice.warm()
        return voice

    @classmethod
    def tiny(cls, detokenize: Detokenize, config: BridgeConfig | None = None) -> BridgeVoice:
        """The same class with random weights of 60 kB and one phoneme a letter: no download, about 60 ms of noise a letter."""
        config = config or BridgeConfig()
        return cls(Vits(tiny_graphs(), config.vits), PhonemeTable(tiny_table()), tiny_phonemes, detokenize, config)

    def warm(self) -> None:
        """Speak a word unheard, so that the first response does not pay for first-time allocations."""
        for _ in self.say(self.open(), "Hello there."):
            pass

    def open(self, seed: int = 0) -> BridgeState:
        """A fresh state for one response; equal seeds and tokens give equal samples."""
        return BridgeState(np.random.default_rng(seed))

    def push(self, state: BridgeState, tokens: Sequence[int], hidden: NDArray[Any] | None = None) -> Iterator[Speech]:
        """Take LLM tokens; yield the sound of the clauses that they complete, chunk by chunk. `hidden` is not used by the bridge."""
        text = text_stream.push(state.tokens, tokens, self.detokenize)
        for clause in self._splitter.push(state.clause, text):
            yield from self._speak(state, clause)

    def finish(self, state: BridgeState) -> Iterator[Speech]:
        """The text has ended: yield the rest."""
        text = text_stream.finish(state.tokens, self.detokenize)
        for clause in [*self._splitter.push(state.clause, text), *self._splitter.finish(state.clause)]:
            yield from self._speak(state, clause)

    def say(self, state: BridgeState, text: str) -> Iterator[Speech]:
        """Speak a whole text, as `push` and `finish` would."""
        for clause in [*self._splitter.push(state.clause, text), *self._splitter.finish(state.clause)]:
            yield from self._speak(state, clause)

    def _speak(self, state: BridgeState, clause: str) -> Iterator[Speech]:
        """One clause: [pause] [words]; at least one chunk, which carries the text even if it is silent."""
        pieces = normalize(clause, state.reader)
        parts = self._parts(pieces)
        if not parts:
            yield Speech(np.zeros(0, np.float32), (SpokenWord(clause, 0),))
        for part, encoded in parts:
            plan = self.vits.plan(encoded.ids, state.rng)
            start, end = self._trim(plan, encoded)
            ends = _piece_ends(part, encoded, plan, start)
            yield from self._sound(state, plan, start, end, part, ends)
            mark = part[-1].mark
            state.pause = round(_PAUSES_MS[mark] * self.config.pause_scale * AGENT_RATE_HZ / 1000)

    def _parts(self, pieces: Sequence[Spoken]) -> list[tuple[list[Spoken], PhonemeIds]]:
        """Pieces with their phonemes, in runs of at most `_MOST_IDS` ids (or a single piece); none if nothing is said."""
        words = [word for piece in pieces for word in piece.words]
        if not words:
            return []
        spoken = self.phonemize(words)
        runs: list[list[Spoken]] = [[]]
        lengths, at, size = [[]], 0, 0  # type: list[list[str]], int, int
        for piece in pieces:
            own = spoken[at : at + len(piece.words)]
            at += len(piece.words)
            cost = sum(2 * len(word) + 2 for word in own)
            if size and size + cost > _MOST_IDS:
                runs.append([])
                lengths.append([])
                size = 0
            runs[-1].append(piece)
            lengths[-1] += own
            size += cost
        parts = []
        for run, ipa in zip(runs, lengths, strict=True):
            marks = [
                mark for piece in run for mark in [*([""] * (len(piece.words) - 1)), piece.mark][-len(piece.words) :] if piece.words
            ]
            parts.append((run, self.table.encode(ipa, marks)))
        return parts

    def _trim(self, plan: Plan, encoded: PhonemeIds) -> tuple[int, int]:
        """First and last sample (at VITS_RATE_HZ) of the clause that are kept."""
        frames = np.cumsum(plan.durations)
        first, last = int(frames[1]) * HOP, int(frames[encoded.word_ends[-1] - 1]) * HOP
        start = max(first - round(self.config.lead_ms * VITS_RATE_HZ / 1000), 0)
        end = min(last + round(self.config.tail_ms * VITS_RATE_HZ / 1000), int(frames[-1]) * HOP)
        return start, max(end, start + HOP)

    def _sound(
        self, state: BridgeState, plan: Plan, start: int, end: int, pieces: Sequence[Spoken], ends: Sequence[int]
    ) -> Iterator[Speech]:
        """Samples [start, end) of a plan in chunks at the agent's rate, with the pieces whose sound ends in each."""
        total = _agent(end - start)
        resample = soxr.ResampleStream(VITS_RATE_HZ, AGENT_RATE_HZ, 1, dtype="float32")
        pause, state.pause = state.pause, 0
        made, told, at = 0, 0, start
        frame, size = start // HOP, self.config.first_chunk_frames
        frames = math.ceil(end / HOP)
        while frame < frames:
            stop = min(frame + size, frames)
            if frames - stop < self.config.first_chunk_frames // 2:
                stop = frames
            sound = self.vits.render(plan.latents, frame, stop)[max(start - frame * HOP, 0) : end - frame * HOP]
            sound = _level(sound, self.config.gain_db)
            _fade(sound, at - start, end - start, round(self.config.fade_ms * VITS_RATE_HZ / 1000))
            at += len(sound)
            last = stop == frames
            samples = np.asarray(resample.resample_chunk(sound, last=last), np.float32).reshape(-1)
            if last:
                missing = total - made - len(samples)
                samples = np.pad(samples, (0, missing)) if missing > 0 else samples[: total - made]
            made += len(samples)
            done = len(pieces) if last else sum(1 for word_end in ends if word_end <= made)
            offset = made - len(samples) - pause
            words = tuple(
                SpokenWord(piece.source, min(max(word_end - offset, 0), len(samples) + pause))
                for piece, word_end in zip(pieces[told:done], ends[told:done], strict=True)
            )
            told = max(done, told)
            if pause:
                samples, pause = np.concatenate([np.zeros(pause, np.float32), samples]), 0
            yield Speech(np.clip(samples, -1.0, 1.0), words)
            frame, size = stop, self.config.chunk_frames


def _piece_ends(pieces: Sequence[Spoken], encoded: PhonemeIds, plan: Plan, start: int) -> list[int]:
    """Agent samples after `start` at which each piece has been said."""
    frames = np.cumsum(plan.durations)
    ends, word, at = [], 0, 0
    for piece in pieces:
        word += len(piece.words)
        if word:
            at = _agent(int(frames[encoded.word_ends[word - 1] - 1]) * HOP - start)
        ends.append(at)
    return ends


def _agent(samples: int) -> int:
    """A count of samples at the voice's rate, at the agent's."""
    return round(samples * AGENT_RATE_HZ / VITS_RATE_HZ)


def _level(sound: Samples, gain_db: float) -> Samples:
    """Gain, with everything above 0.7 bent so that it stays below 1."""
    loud: Samples = sound * np.float32(10 ** (gain_db / 20))
    over = np.abs(loud) - np.float32(0.7)
    return np.where(over > 0, np.sign(loud) * (0.7 + 0.28 * np.tanh(over / 0.28)), loud).astype(np.float32)


def _fade(sound: Samples, at: int, total: int, length: int) -> None:
    """Fade, in place, the samples [at, at + n) of a clause of `total` samples."""
    if length:
        place = np.arange(at, at + len(sound), dtype=np.float32)
        edge = np.clip(np.minimum(place + 1, total - place) / length, 0.0, 1.0)
        sound *= 0.5 - 0.5 * np.cos(np.float32(np.pi) * edge)
