"""Who speaks the held-out texts: the teacher, the bridge voice, and each part of the own voice on its own.

Notable: a row is a name, a way to speak, and a fingerprint of all that its sound depends on (weight files and sources), so that a later
run judges again only what changed. Everything a row draws by chance is seeded by the run's seed and the text.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

import decoders.bridge_voice
import decoders.clauses
import decoders.normalize
import decoders.numbers_en
import decoders.phonemes
import decoders.reading
import decoders.readings
import decoders.spelling
import decoders.vits
import decoders.word_window
from agent.parts import Thinker
from apps.bench_voice_texts import HeldOut
from decoders.bridge_voice import BridgeVoice
from decoders.phonemes import BEGIN, END, PAD, Lexicon, PhonemeTable, Phonemizer
from decoders.reading import TextReader
from decoders.vits import VITS_RATE_HZ, Vits
from duplex.audio import AGENT_RATE_HZ, Samples

READS = (
    decoders.normalize,
    decoders.numbers_en,
    decoders.phonemes,
    decoders.readings,
    decoders.spelling,
)
"""What turns text into phones for every voice."""


@dataclass(frozen=True, slots=True)
class Row:
    """One voice of the table."""

    name: str
    speak: Callable[[HeldOut, int], Samples]
    """(text, seed) -> [n] at `rate_hz`."""
    rate_hz: int
    fingerprint: str
    """Changes when the sound may."""


def fingerprint(sources: Iterable[ModuleType | Path], *more: object) -> str:
    """Of the content of files, and of settings."""
    digest = hashlib.sha256(repr(more).encode())
    for source in sources:
        path = source if isinstance(source, Path) else Path(str(source.__file__))
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def text_seed(text: HeldOut, seed: int) -> int:
    """A seed of its own for each text, the same whichever other texts are spoken."""
    return (seed << 32) ^ zlib.crc32(text.text.encode())


class Teacher:
    """The VITS voice as it taught: the reply is read as the own voice reads it, each sentence is planned at once."""

    def __init__(self, vits: Vits, table: PhonemeTable, phonemize: Phonemizer, thinker: Thinker) -> None:
        """thinker: whose tokens a text is read in."""
        self.vits, self._table, self._encode = vits, table, thinker.encode
        self._reader = TextReader(phonemize, table, thinker.decode)

    @classmethod
    def load(cls, where: Mapping[str, Path], thinker: Thinker) -> Teacher:
        """From what `weights.locate` found. Raises WeightsError."""
        return cls(Vits.load(where["vits-joe-split"]), PhonemeTable.load(where["vits-joe-config"]), Lexicon(), thinker)

    def latents(self, text: str, seed: int) -> NDArray[np.float32]:
        """[192, T]; T = 0 for a text that makes no sound."""
        made = [latents for latents, _ in self.sentences(text, seed)]
        return np.concatenate(made, axis=1) if made else np.zeros((192, 0), np.float32)

    def sentences(self, text: str, seed: int) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Latents [192, T] and frames of each phone [p] (its pad among them), sentence by sentence."""
        rng = np.random.default_rng(seed)
        made = []
        for phones in self.phones(text):
            plan = self.vits.plan(self.padded(phones), rng)
            own = plan.durations[0::2].copy()  # phones at even places, the pad after each at odd ones
            own[:-1] += plan.durations[1::2]
            made.append((plan.latents, own))
        return made

    def phones(self, text: str) -> list[list[int]]:
        """Phones of each sentence, `^` and `$` among them, without pads."""
        begin, end = self._table.ids[BEGIN][0], self._table.ids[END][0]
        sentences: list[list[int]] = []
        for phone in self._reader.read(self._encode(text)).phones.tolist():
            if phone == begin:
                sentences.append([])
            sentences[-1].append(phone)
        assert all(sentence[-1] == end for sentence in sentences)
        return sentences

    def padded(self, phones: list[int]) -> list[int]:
        """^ _ p _ p _ ... _ $, as the voice was trained."""
        pad = self._table.ids[PAD][0]
        return [value for phone in phones for value in (phone, pad)][:-1]

    def render(self, latents: NDArray[np.float32]) -> Samples:
        """Latents [192, T] -> sound at 22.05 kHz, in one pass."""
        return self.vits.render(latents, 0, latents.shape[1]) if latents.shape[1] else np.zeros(0, np.float32)


def teacher_row(teacher: Teacher, where: Mapping[str, Path]) -> Row:
    """The teacher, which has the whole reply before it begins."""

    def speak(text: HeldOut, seed: int) -> Samples:
        return teacher.render(teacher.latents(text.text, text_seed(text, seed)))

    sources = (*READS, decoders.reading, decoders.word_window, decoders.vits)
    print_of = fingerprint([*sources, where["vits-joe-split"]], "teacher")
    return Row("teacher", speak, VITS_RATE_HZ, print_of)


def bridge_row(voice: BridgeVoice, where: Mapping[str, Path]) -> Row:
    """The bridge voice as the session has it, clause by clause."""

    def speak(text: HeldOut, seed: int) -> Samples:
        chunks = [chunk.samples for chunk in voice.say(voice.open(text_seed(text, seed)), text.text)]
        return np.concatenate([np.zeros(0, np.float32), *chunks])

    sources = (*READS, decoders.clauses, decoders.bridge_voice, decoders.vits)
    return Row("bridge voice", speak, AGENT_RATE_HZ, fingerprint([*sources, where["vits-joe-split"]], "bridge"))
