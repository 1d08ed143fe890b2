"""What is said of a spoken reply: the words that Whisper hears, how it went wrong, how it sounds, and whose voice it is.

Notable: both sides of a word error rate are first read aloud (the agent's own normalisation: "3:45" becomes three words) and then brought
into the form of Whisper's English normaliser, so that figures count the same however they are written. Everything is judged at 16 kHz, at
one level, with the silence at both ends cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from agent import weights
from agent.parts import Parts
from agent.profiles import Profile
from apps.bench_cascade import transcribe_whole
from apps.bench_voice_mos import Dnsmos, Opinion
from apps.bench_voice_speaker import Embedding, VoiceEncoder
from apps.fetch import LineProgress
from decoders.normalize import Reader, normalize
from decoders.phonemes import Lexicon
from duplex.audio import USER_RATE_HZ, Samples
from duplex.resample import resample

LEVEL_DBFS = -23.0  # RMS at which every sound is judged
KEPT = USER_RATE_HZ // 10  # samples of silence kept at both ends
SILENT = 10 ** (-45 / 20)  # of full scale, at that level

MANY_ERRORS = 0.3  # of a reply's words
AT_AN_END = 3  # words
FEWEST = 2  # words: in a reply of three words, one misheard is no failure
SHORT, LONG = 0.6, 1.6  # of the teacher's duration


@dataclass(frozen=True, slots=True)
class Judged:
    """One sound, as the judges found it."""

    heard: str
    """What Whisper read, as it wrote it."""
    seconds: float
    """Without the silence at both ends."""
    embedding: tuple[float, ...]
    """Whose voice; () when there was no speech."""
    overall: float | None = None
    """DNSMOS; None when it was not asked."""
    signal: float | None = None
    background: float | None = None


class Judges:
    """The three networks. Threads may share them."""

    def __init__(self, parts: Parts) -> None:
        """parts: whose ears hear the words. Fetches the other two (18 MB) when they are not in the cache. Raises WeightsError."""
        wanted = Profile("judges", "", "bridge", "bridge", weights=("dnsmos", "resemblyzer"))
        with LineProgress() as progress:
            where = weights.fetch(wanted, progress)
        self._parts = parts
        self._mos = Dnsmos(where["dnsmos"])
        self._encoder = VoiceEncoder.load(where["resemblyzer"])

    def judge(self, sound: Samples, *, mos: bool = True) -> Judged:
        """[n] at 16 kHz, as `prepared` gives it."""
        heard = transcribe_whole(self._parts, sound)
        opinion = self.opinion(sound) if mos else None
        scores: dict[str, Any] = asdict(opinion) if opinion else {}
        return Judged(heard, len(sound) / USER_RATE_HZ, self.embedding(sound), **scores)

    def opinion(self, sound: Samples) -> Opinion | None:
        """None for silence."""
        return self._mos(np.clip(sound, -1.0, 1.0)) if len(sound) else None

    def embedding(self, sound: Samples) -> tuple[float, ...]:
        """() where there is no speech."""
        try:
            return tuple(float(value) for value in self._encoder.embed(sound))
        except ValueError:
            return ()


def prepared(sound: Samples, rate_hz: int) -> Samples:
    """[n] at any rate -> [m] at 16 kHz, at the judges' level, silence at both ends cut to 0.1 s; [0] for silence."""
    if not len(sound) or not np.any(sound):
        return np.zeros(0, np.float32)
    user = resample(sound, rate_hz, USER_RATE_HZ)
    user = user * np.float32(10 ** (LEVEL_DBFS / 20) / np.sqrt(np.mean(np.square(user, dtype=np.float64))))
    loud = np.flatnonzero(np.abs(user) > SILENT)
    return np.asarray(user[max(int(loud[0]) - KEPT, 0) : int(loud[-1]) + KEPT], np.float32)


def similarity(a: Sequence[float] | Embedding, b: Sequence[float] | Embedding) -> float:
    """Cosine of two embeddings, 1 for the same voice."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


@cache
def _normaliser() -> Any:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})  # type: ignore[no-untyped-call]


def plain(text: str) -> str:
    """Text as it is compared: read aloud, then in the form of Whisper's normaliser."""
    spoken = " ".join(word for piece in normalize(text, Reader()) for word in piece.words)
    return str(_normaliser()(spoken))


@cache
def _lexicon() -> Lexicon:
    return Lexicon()


def sounds(text: str) -> list[str]:
    """Text as it sounds: its phones by the voice's own lexicon, without stress and length."""
    words = [word for piece in normalize(text, Reader()) for word in piece.words]
    return [phone for ipa in _lexicon()(words) for phone in ipa if phone not in "ˈˌː"]


@dataclass(frozen=True, slots=True)
class Errors:
    """How what was heard differs from what was meant."""

    words: int
    """Words meant."""
    substituted: int
    inserted: int
    deleted: int
    added_at_end: int
    """Words heard after the last one meant."""
    missing_at_end: int
    """Words meant after the last one heard."""
    phones: int = 0
    """Phones meant."""
    wrong_phones: int = 0
    """Phones that differ when what was heard is read aloud: a rare name that the judge only spells in its own way has few."""

    @property
    def wrong(self) -> int:
        """All errors: the numerator of the word error rate."""
        return self.substituted + self.inserted + self.deleted


def errors(meant: str, heard: str) -> Errors:
    """Compare two texts, written in any way. A meant text without words has only insertions."""
    from jiwer import process_words

    reference, hypothesis = plain(meant), plain(heard)
    phones, other = sounds(meant), sounds(heard)
    if not reference or not phones:
        count = len(hypothesis.split())
        return Errors(0, 0, count, 0, count, 0, 0, len(other))
    found = process_words(reference, hypothesis)
    by_sound = process_words(" ".join(phones), " ".join(other))
    chunks = found.alignments[0]
    last = chunks[-1]
    added = last.hyp_end_idx - last.hyp_start_idx if last.type == "insert" else 0
    missing = last.ref_end_idx - last.ref_start_idx if last.type == "delete" else 0
    return Errors(
        len(reference.split()),
        found.substitutions,
        found.insertions,
        found.deletions,
        added,
        missing,
        len(phones),
        by_sound.substitutions + by_sound.insertions + by_sound.deletions,
    )


def failure(found: Errors, seconds: float, expected_s: float | None) -> str:
    """How a reply failed: "silent", "repeats", "stops early", "runs on", or "" when it did not.

    expected_s: how long the teacher takes for it, or None when that is not known.
    """
    many = max(MANY_ERRORS * found.words, FEWEST)
    if seconds == 0.0:
        return "silent" if found.words else ""
    if found.added_at_end >= AT_AN_END:
        return "runs on"
    if found.missing_at_end >= AT_AN_END:
        return "stops early"
    if found.inserted >= many:
        return "repeats"
    if found.deleted >= many:
        return "stops early"
    if expected_s is not None and seconds > LONG * expected_s + 0.3:
        return "runs on"
    if expected_s is not None and seconds < SHORT * expected_s - 0.3:
        return "stops early"
    return ""
