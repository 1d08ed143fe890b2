"""Recorded human speech as people talk: what actors say in three old adventure games, where their packages are installed.

Debian's `flight-of-the-amazon-queen`, `beneath-a-steel-sky` and `drascula` hold eight hours in many voices at 11 kHz, a file for each line.
Their licences let anybody use and change them. The first and the third may be learnt from; the second is kept for judging. soundfile reads
the first, the program `ancient` unpacks the second (RNC), the third is plain 8-bit sound.

The layouts of the archives are those that ScummVM's source describes.
"""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from apps.recorded_scripts import dialogues
from duplex.audio import USER_RATE_HZ, Samples
from duplex.errors import InputError
from duplex.resample import resample
from duplex.scenario_texts import Set

GAMES = Path("/usr/share/scummvm")
QUEEN, SKY, DRASCULA = "flight-of-the-amazon-queen/queen.1c", "beneath-a-steel-sky/sky.dsk", "drascula/en"
RATE_HZ = 11025
PACKAGES = {
    "training": "flight-of-the-amazon-queen drascula",
    "bench": "beneath-a-steel-sky ancient",
}
"""What to install."""
_HEADER = 22
"""Bytes before each file of Beneath a Steel Sky."""
_SPEECH = range(50_000, 60_000)
"""Its numbers."""


@dataclass(frozen=True, slots=True)
class Line:
    """One recording."""

    name: str
    voice: str
    """Who says it, or one of few: a person in a dialogue, or the people of a scene."""
    samples: Samples
    """[n] user samples."""
    text: str = ""
    """The words, where the script tells them."""


def installed(which: Set, games: Path = GAMES) -> bool:
    """Whether its games, and the program that unpacks one of them, are here."""
    if which == "bench":
        return (games / SKY).is_file() and shutil.which("ancient") is not None
    return (games / QUEEN).is_file() and (games / DRASCULA).is_dir()


def need(which: Set, games: Path = GAMES) -> None:
    """Raises InputError where they are not."""
    if not installed(which, games):
        raise InputError(
            f"Recorded people speak in old games, which are not installed; on Debian or Ubuntu: apt install {PACKAGES[which]}"
        )


def lines(which: Set, games: Path = GAMES) -> Iterator[Line]:
    """Every line that can be read. Raises InputError for an archive of another layout, or none."""
    need(which, games)
    with _as_packaged(games):
        if which == "bench":
            yield from _sky((games / SKY).with_suffix(".dnr").read_bytes(), (games / SKY).read_bytes())
        else:
            yield from _queen((games / QUEEN).read_bytes())
            yield from _drascula(games / DRASCULA)


def scripted(games: Path = GAMES) -> Iterator[Line]:
    """Lines whose words are known exactly; nothing where the game is not installed. Raises InputError for an archive of another layout."""
    if (games / QUEEN).is_file():
        with _as_packaged(games):
            yield from (line for line in _queen((games / QUEEN).read_bytes()) if line.text)


@contextmanager
def _as_packaged(games: Path) -> Iterator[None]:
    try:
        yield
    except (struct.error, UnicodeDecodeError, OSError) as error:
        raise InputError(f"The games in {games} cannot be read ({error}); install the packages of Debian 12.") from error


def _queen(data: bytes) -> Iterator[Line]:
    """A table of names, places and sizes, big-endian; then MP3s. A line comes in parts, whose numbers end their names."""
    (count,) = struct.unpack_from(">H", data, 13)
    parts, written = dict[str, list[tuple[str, int, int]]](), list[bytes]()
    for index in range(count):
        name, _, start, size = struct.unpack_from(">12sBII", data, 15 + 21 * index)
        file, _, kind = name.rstrip(b"\0").decode("ascii").partition(".")
        if kind == "SB":
            parts.setdefault(file[:-1], []).append((file[-1], start, size))
        elif kind == "DOG":
            written.append(data[start : start + size])
    texts = dialogues(written)
    for name, said in sorted(parts.items()):
        try:
            read = [soundfile.read(io.BytesIO(data[start : start + size]), dtype="float32") for _, start, size in sorted(said)]
        except soundfile.LibsndfileError:
            continue
        joe = name.endswith("J") or name.startswith("JOE")
        who = name[: 2 if name.endswith(("J", "P")) else 5 if joe else 4]
        sound = np.concatenate([resample(samples, rate, USER_RATE_HZ) for samples, rate in read])
        yield Line(f"queen-{name}", f"queen-{'joe-' * joe}{who}", sound, texts.get(name, ""))


def _sky(index: bytes, data: bytes) -> Iterator[Line]:
    """Entries of number, place and size, little-endian; a header and packed sound at each place."""
    (count,) = struct.unpack_from("<I", index)
    with tempfile.TemporaryDirectory() as folder:
        packed, plain = Path(folder) / "packed", Path(folder) / "plain"
        for entry in range(count):
            (number,) = struct.unpack_from("<H", index, 4 + 8 * entry)
            place, size = (int.from_bytes(index[at : at + 3], "little") for at in (6 + 8 * entry, 9 + 8 * entry))
            if number not in _SPEECH:
                continue
            start = (place & 0x7FFFFF) << (4 if place >> 23 else 0)
            sound = data[start + _HEADER : start + (size & 0x3FFFFF)]
            packed.write_bytes(sound)
            if sound.startswith(b"RNC") and _unpacked(packed, plain):  # the others are no speech
                yield Line(f"sky-{number}", f"sky-{number // 100}", _plain(plain.read_bytes()))


def _unpacked(packed: Path, plain: Path) -> bool:
    return subprocess.run(["ancient", "decompress", str(packed), str(plain)], capture_output=True, check=False).returncode == 0


def _drascula(folder: Path) -> Iterator[Line]:
    """A file for each line; its first letters tell who speaks: without any, the hero, who is taken for several by hundreds."""
    for file in sorted(folder.glob("*.ALS")):
        who = file.stem.rstrip("0123456789") or f"hero-{int(file.stem) // 100}"
        yield Line(f"drascula-{file.stem}", f"drascula-{who}", _plain(file.read_bytes()))


def _plain(sound: bytes) -> Samples:
    samples = (np.frombuffer(sound, np.uint8).astype(np.float32) - 128) / np.float32(128)
    return resample(samples, RATE_HZ, USER_RATE_HZ)
