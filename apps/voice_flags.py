"""`--voice` and `--voice-text`: a few seconds of somebody's voice that the agent is to speak with, for profiles that can clone one.

`talk` and `file` take one voice; a server takes several by name, for its clients to choose among.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agent.voice_sample import VoiceSample
from apps.realtime_settings import OWN_VOICE
from apps.sound_files import open_sound
from duplex.errors import ConfigError, InputError

NAME = re.compile(rf"(?!{OWN_VOICE}$)[A-Za-z0-9_-]{{1,64}}")
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
    return _read(path, args.voice_text)


def add_named_voice_arguments(parser: argparse.ArgumentParser) -> None:
    """The two arguments, each for many voices."""
    parser.add_argument(
        "--voice",
        metavar="NAME=SAMPLE",
        action="append",
        default=[],
        help="a voice that clients may choose: of the person in this recording (3 to 30 s, without noise); may be given again",
    )
    parser.add_argument(
        "--voice-text",
        metavar="NAME=TEXT",
        action="append",
        default=[],
        help="the words in that voice's SAMPLE, exactly (default: the .txt file beside it)",
    )


def named_voices_of(args: argparse.Namespace) -> dict[str, VoiceSample]:
    """Name -> sample, as the arguments say. Raises ConfigError and InputError."""
    paths = _named(args.voice, "--voice", "me=me.wav")
    texts = _named(args.voice_text, "--voice-text", 'me="The words in the sample."')
    for name in paths:
        if not NAME.fullmatch(name):
            raise ConfigError(f"--voice {name[:80]}: a voice's name is 1 to 64 letters, digits, _ and -, but not {OWN_VOICE}.")
    for name in texts.keys() - paths.keys():
        raise ConfigError(f"--voice-text {name[:80]}: there is no voice of this name; give one with --voice {name[:80]}=SAMPLE.")
    return {name: _read(Path(path), texts.get(name)) for name, path in paths.items()}


def _named(words: Sequence[str], option: str, example: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not value:
            raise ConfigError(f"{option} {word[:80]}: write it with a name, for example {option} {example}.")
        if name in found:
            raise ConfigError(f"{option} {name[:80]} is given twice.")
        found[name] = value
    return found


def _read(path: Path, text: str | None) -> VoiceSample:
    with open_sound(path) as sound:
        if sound.duration_s > LONGEST_S:
            raise InputError(f"{path} is {sound.duration_s:.0f} s long; cut out 3 to 30 s of one person speaking.")
        samples = np.concatenate([np.zeros(0, np.float32), *sound.whole()])
        return VoiceSample(samples, sound.rate_hz, _words(path, text))


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
