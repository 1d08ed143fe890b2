"""The bridge voice: the LLM's text, normalised, spoken clause by clause by VITS.

    tokens -> text_stream -> clauses -> normalize -> phonemes -> vits -> level, fades -> 24 kHz

A clause's durations and latents are planned at once (about 1/40 of its length), then sound is made in pieces, the first one small.
Word ends come from the planned durations. Each clause is trimmed to its words, faded at both edges and preceded by the pause that
the punctuation of the clause before it asks for.
"""

from __future__ import annotations

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
from decoders.sound_shaping import fade_in, fade_out, level
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
    gain_db: float = 4.0
    """Brings the voice, which speaks at about -24 dBFS RMS, to -20."""
    fade_ms: float = 4.0
    """Fade at both edges of a clause."""
    lead_ms: float = 25.0
    """Sound kept before the first word; the voice plans up to 80 ms of silence there."""
    tail_ms: float = 30.0
    """Sound kept after the clause has died away."""
    silence_db: float = -50.0
    """RMS below which a clause's end counts as died away."""
    pause_scale: float = 1.0
    """Factor on the pauses between clauses."""

    def __post_init__(self) -> None:
        if not 4 <= self.first_chunk_frames <= self.chunk_frames <= 1024:
            sizes = f"first_chunk_frames ({self.first_chunk_frames}) <= chunk_frames ({self.chunk_frames})"
            raise ValueError(f"the voice's chunks must satisfy 4 <= {sizes} <= 1024")
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

    def open(self, seed: int = 0, speaker: Any = None) -> BridgeState:
        """A fresh state for one response; equal seeds and tokens give equal samples. This voice has one speaker."""
        if speaker is not None:
            raise ValueError("This profile's voice cannot be changed; choose a profile whose voice is cloned from a sample.")
        return BridgeState(np.random.default_rng(seed))

    def push(self, state: BridgeState, tokens: Sequence[int], hidden: NDArray[Any] | None = None) -> Iterator[Speech]:
        """Take LLM tokens; yield the sound of the clauses they complete, chunk by chunk. The bridge has no use for `hidden`."""
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
            yield from self._sound(state, plan, part, encoded)
            state.pause = round(_PAUSES_MS[part[-1].mark] * self.config.pause_scale * AGENT_RATE_HZ / 1000)

    def _parts(self, pieces: Sequence[Spoken]) -> list[tuple[list[Spoken], PhonemeIds]]:
        """Pieces with their phonemes, in runs of at most `_MOST_IDS` ids (or a single piece); none if nothing is said."""
        words = [word for piece in pieces for word in piece.words]
        if not words:
            return []
        spoken = iter(self.phonemize(words))
        runs: list[tuple[list[Spoken], list[str], list[str]]] = []  # pieces, IPA, marks
        size = 0
        for piece in pieces:
            own = [next(spoken) for _ in piece.words]
            cost = sum(2 * len(word) + 2 for word in own)
            if not runs or size + cost > _MOST_IDS:
                runs.append(([], [], []))
                size = 0
            run, ipa, marks = runs[-1]
            run.append(piece)
            ipa += own
            marks += [*([""] * (len(own) - 1)), piece.mark]
            size += cost
        return [(run, self.table.encode(ipa, marks)) for run, ipa, marks in runs]

    def _sound(self, state: BridgeState, plan: Plan, pieces: Sequence[Spoken], encoded: PhonemeIds) -> Iterator[Speech]:
        """A plan in chunks at the agent's rate, with the pieces whose sound ends in each."""
        config = self.config
        edges = np.cumsum(plan.durations)  # frames at which each id ends
        start = max(int(edges[1]) * HOP - round(config.lead_ms * VITS_RATE_HZ / 1000), 0)  # ids 0 and 1 are ^ and _
        spoken, frames = int(edges[encoded.word_ends[-1] - 1]), int(edges[-1])
        ends = _piece_ends(pieces, encoded, edges, start)
        fade = round(config.fade_ms * VITS_RATE_HZ / 1000)
        resample = soxr.ResampleStream(VITS_RATE_HZ, AGENT_RATE_HZ, 1, dtype="float32")
        pause, state.pause = state.pause, 0
        taken, made, told = 0, 0, 0  # samples at the voice's rate; at the agent's; pieces
        frame, size = start // HOP, config.first_chunk_frames
        while frame < frames:
            stop = min(frame + size, frames)
            last = stop >= spoken - 1  # the end, which is trimmed, comes in one chunk
            stop = frames if last else stop
            sound = level(self.vits.render(plan.latents, frame, stop)[max(start - frame * HOP, 0) :], config.gain_db)
            if last:
                sound = self._trim(sound, spoken * HOP - start - taken)
            fade_in(sound, taken, fade)
            if last:
                fade_out(sound, fade)
            taken += len(sound)
            samples = np.asarray(resample.resample_chunk(sound, last=last), np.float32).reshape(-1)
            if last:
                missing = _agent(taken) - made - len(samples)
                samples = np.pad(samples, (0, missing)) if missing > 0 else samples[: len(samples) + missing]
            done = len(pieces) if last else sum(1 for end in ends if end <= made + len(samples))
            places = [min(max(end - made, 0), len(samples)) + pause for end in ends[told:done]]
            words = tuple(SpokenWord(piece.source, place) for piece, place in zip(pieces[told:done], places, strict=True))
            made += len(samples)
            if pause:
                samples, pause = np.concatenate([np.zeros(pause, np.float32), samples]), 0
            yield Speech(np.clip(samples, -1.0, 1.0), words)
            told, frame, size = done, stop, config.chunk_frames

    def _trim(self, sound: Samples, least: int) -> Samples:
        """The end of a clause without its silence; at least `least` samples stay."""
        window = VITS_RATE_HZ // 200  # 5 ms
        power = np.square(sound[: len(sound) // window * window]).reshape(-1, window).mean(axis=1)
        loud = np.flatnonzero(power > 10 ** (self.config.silence_db / 10))
        heard = int(loud[-1] + 1) * window if len(loud) else 0
        return sound[: max(heard + round(self.config.tail_ms * VITS_RATE_HZ / 1000), least, 1)]


def _piece_ends(pieces: Sequence[Spoken], encoded: PhonemeIds, edges: NDArray[np.int64], start: int) -> list[int]:
    """Agent samples after `start` at which each piece has been said."""
    ends, word = [], 0
    for piece in pieces:
        word += len(piece.words)
        ends.append(_agent(int(edges[encoded.word_ends[word - 1] - 1]) * HOP - start))
    return ends


def _agent(samples: int) -> int:
    """A count of samples at the voice's rate, at the agent's."""
    return round(samples * AGENT_RATE_HZ / VITS_RATE_HZ)
