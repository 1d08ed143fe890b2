"""The shipped test speech: questions, interruptions and backchannels by two synthetic voices (see samples/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import soundfile

from duplex.audio import USER_RATE_HZ, Samples

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance."""

    file: str
    voice: str
    text: str
    expect: tuple[str, ...] = ()
    """Words of which the answer must contain one."""

    def samples(self) -> Samples:
        """[n] user samples."""
        audio: Samples
        audio, rate = soundfile.read(SAMPLES / self.file, dtype="float32")
        assert rate == USER_RATE_HZ, "the shipped clips are at 16 kHz"
        return audio


@cache
def clips(kind: str) -> tuple[Clip, ...]:
    """`questions`, `interruptions`, `backchannels` or `long_questions`, voice by voice."""
    index = json.loads((SAMPLES / "index.json").read_text(encoding="utf-8"))
    return tuple(Clip(c["file"], c["voice"], c["text"], tuple(c.get("expect", ()))) for c in index[kind])
