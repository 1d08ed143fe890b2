"""`--voice` and `--voice-text`: a few seconds of somebody's voice that the agent is to speak with, for profiles that can clone one."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from agent.voice_sample import VoiceSample
from apps.sound_files import open_sound
from duplex.errors import ConfigError, InputError

LONGEST_S = 120.0
"""More is refused unread; what is too long for a voice is told by its reader, which knows how much of it is speech."""


def add_voice_arguments(parser: argparse.ArgumentParser) -> None:
    """The two arguments."""
    parser.add_argument(
        "--voice",
        metavar="SAMPLE",
        type=Path,
        help="speak with the voice in this recording (3 to 30 s of one person, without noise)",
    )
    parser.add_argument("--voice-text", metavar="TEXT", help="the words in SAMPLE, exactly (default: the .txt file beside it)")


def voice_of(args: argparse.Namespace) -> VoiceSample | None:
    """The sample that the arguments name, at its own rate; None without one. Raises ConfigError and InputError."""
    path: Path | None = args.voice
    if path is None:
        if args.voice_text is not None:
            raise ConfigError("--voice-text says what is spoken in a sample; name the sample with --voice.")
        return None
    with open_sound(path) as sound:
        if sound.duration_s > LONGEST_S:
            raise InputError(f"{path} is {sound.duration_s:.0f} s long; cut out 3 to 30 s of one person speaking.")
        samples = np.concatenate([np.zeros(0, np.float32), *sound.whole()])
        return VoiceSample(samples, sound.rate_hz, _words(path, args.voice_text))


def _words(path: Path, text: str | None) -> str:
    if text is None:
        beside = path.with_suffix(".txt")
        try:
            text = beside.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"Give the words that are spoken in {path} with --voice-text, or in a text file {beside}.") from None
    if not text.strip():
        raise ConfigError(f"The words that are spoken in {path} are missing; give them, exactly, with --voice-text.")
    return text.strip()
