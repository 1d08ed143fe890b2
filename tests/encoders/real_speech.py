"""Recorded and synthetic speech with its words, for ears that run on real weights."""

from pathlib import Path

import jiwer
import numpy as np
import soundfile

SPEECH = Path(__file__).parent / "speech"
WORDS = {
    "jfk": "and so my fellow americans ask not what your country can do for you ask what you can do for your country",
    "capital_slt": "what is the capital of france",
    "brazil_rms": "what language do people speak in brazil",
}


def recorded(name: str) -> np.ndarray:
    """[n] at 16 kHz."""
    audio, rate = soundfile.read(SPEECH / f"{name}.flac", dtype="float32")
    assert rate == 16_000
    return audio


def plain(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum() or c == " ")


def wrong_words(name: str, text: str) -> int:
    """How many words of a recording were misheard."""
    counts = jiwer.process_words(WORDS[name], plain(text))
    return counts.substitutions + counts.deletions + counts.insertions
