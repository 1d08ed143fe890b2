"""Recorded human speech with its exact words: the prompts of the telephone exchange Asterisk, said by one woman, where they are installed.

Debian's `asterisk-core-sounds-en-g722` and `asterisk-core-sounds-en` (CC BY-SA 3.0) hold 24 minutes at 16 kHz; `ffmpeg` reads them. Half of
the texts may be learnt from, the other half is kept for judging; which is which depends on the words alone, so no sentence is in both.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from duplex.audio import USER_RATE_HZ, Samples

SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
WORDS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
NO_WORDS = ("letters/", "phonetic/", "silence/")
"""Folders of what is no word."""


def installed(sounds: Path = SOUNDS, words: Path = WORDS) -> bool:
    """Whether the prompts and the program that reads them are here."""
    return sounds.is_dir() and words.is_file() and shutil.which("ffmpeg") is not None


def prompts(kept_back: bool, sounds: Path = SOUNDS, words: Path = WORDS) -> Iterator[tuple[str, Samples]]:
    """What each says, and [n] user samples of it. Nothing where they are not installed; what ffmpeg cannot read is left out."""
    if not installed(sounds, words):
        return
    for name, text in listed(words):
        file = sounds / f"{name}.g722"
        if is_kept_back(text) == kept_back and file.is_file():
            samples = _read(file)
            if samples is not None:
                yield text, samples


def listed(words: Path) -> Iterator[tuple[str, str]]:
    """Names and words of the prompts that are speech."""
    for line in gzip.decompress(words.read_bytes()).decode("utf-8", errors="replace").splitlines():
        name, colon, said = line.partition(":")
        text = re.sub(r"\s+", " ", said.replace("...", " ")).strip()
        if colon and not line.startswith((";", *NO_WORDS)) and re.search(r"[A-Za-z]", text) and not re.search(r"[\[\]()<>]", text):
            yield name.strip(), text


def is_kept_back(text: str) -> bool:
    """Whether these words are for judging only, in whatever case and with whatever marks they are written."""
    return zlib.crc32("".join(c for c in text.lower() if c.isalnum()).encode()) % 2 == 0


def _read(file: Path) -> Samples | None:
    command = ["ffmpeg", "-v", "quiet", "-f", "g722", "-i", str(file), "-f", "s16le", "-ar", str(USER_RATE_HZ), "-ac", "1", "-"]
    try:
        raw = subprocess.run(command, check=True, capture_output=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return np.frombuffer(raw, np.int16).astype(np.float32) / np.float32(32768) if len(raw) > USER_RATE_HZ // 5 else None
