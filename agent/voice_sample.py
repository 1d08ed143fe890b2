"""Whose voice a cloning decoder has: a few seconds of sound and the words in it, from the user or shipped, read once and kept.

What the sample becomes (codes, mel, speaker vector) depends on the sample and on two networks alone, so it is kept in the cache under a
name made of both, and the networks, half a gigabyte, are not even loaded the second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

import decoders
from agent import weight_cache
from decoders.voice_prompt import SpeakerEncoder, SpeechTokenizer, VoicePrompt, cached_voice_prompt, make_voice_prompt, voice_key

SHIPPED = Path(decoders.__file__).parent / "samples" / "joe.flac"
"""The decoder's own voice; its words lie beside it."""


@dataclass(frozen=True, eq=False)
class VoiceSample:
    """A few seconds of one voice."""

    samples: NDArray[np.floating[Any]]
    """[n] or [n, channels] in [-1, 1]."""
    rate_hz: int
    text: str
    """The words in it, exactly."""


def shipped_sample() -> VoiceSample:
    """The decoder's own voice."""
    samples, rate_hz = soundfile.read(SHIPPED, dtype="float32")
    return VoiceSample(samples, rate_hz, SHIPPED.with_suffix(".txt").read_text(encoding="utf-8"))


def read_sample(sample: VoiceSample, tokenizer: SpeechTokenizer, speaker_encoder: SpeakerEncoder) -> VoicePrompt:
    """What the sample becomes. Raises InputError, in one sentence, when it is no voice sample."""
    return make_voice_prompt(sample.samples, sample.rate_hz, sample.text, tokenizer, speaker_encoder)


def kept_sample(
    sample: VoiceSample, files: tuple[Path, Path], load: Callable[[Path, Path], tuple[SpeechTokenizer, SpeakerEncoder]]
) -> VoicePrompt:
    """`read_sample` with the networks in `files`, which are loaded by `load` only when this sample was not read before.

    Raises InputError for what is no voice sample, WeightsError from `load`.
    """
    weights = "; ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files if file.exists())
    key = voice_key(sample.samples, sample.rate_hz, sample.text, weights)
    return cached_voice_prompt(weight_cache.home() / "voices", key, lambda: read_sample(sample, *load(*files)))
