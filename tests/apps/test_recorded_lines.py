"""Lines of old games: which archives are read, who speaks, and what happens to what cannot be read."""

from __future__ import annotations

import io
import struct
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from apps import recorded_lines
from apps.recorded_lines import DRASCULA, QUEEN, RATE_HZ, SKY, installed, lines, scripted
from apps.recorded_scripts import dialogues
from duplex.audio import USER_RATE_HZ
from duplex.errors import InputError
from duplex.scenario_texts import Set
from tests.conftest import in_ci

TONE = (0.5 * np.sin(np.arange(RATE_HZ) * 0.2)).astype(np.float32)  # 1 s
PLAIN = np.round(TONE * 128 + 128).astype(np.uint8).tobytes()
UNPACKS = f"""#!{sys.executable}
import sys
data = open(sys.argv[2], "rb").read()
sys.exit(1) if data == b"RNCbroken" else open(sys.argv[3], "wb").write(data[3:])
"""


def _queen(files: dict[str, bytes]) -> bytes:
    table, body, start = b"", b"", 15 + 21 * len(files)
    for name, data in files.items():
        table += struct.pack(">12sBII", name.encode(), 1, start + len(body), len(data))
        body += data
    return b"QTBLCEM10\0\0\0\1" + struct.pack(">H", len(files)) + table + body


def dialogue(number: int, hero: dict[int, str], others: dict[int, str]) -> bytes:
    """One of the game's."""

    def strings(said: dict[int, str]) -> bytes:
        made = b""
        for string, text in said.items():
            made += struct.pack(">HHB", 0, string, len(text)) + text.encode()
            made += b"\0" * (-len(made) % 4)
        return made

    head = struct.pack(">HHH", 5, 1, number) + bytes(16)
    return bytes(20) + head + struct.pack(">HI", 28 + len(strings(hero)), 0) + strings(hero) + strings(others)


def _sky(files: dict[int, tuple[bytes, bool]]) -> tuple[bytes, bytes]:
    """Number -> (what lies there, whether its place is counted in sixteens)."""
    index, body = struct.pack("<I", len(files)), b""
    for number, (data, coarse) in files.items():
        body += b"\0" * (-len(body) % 16)
        place = (len(body) // 16) | 1 << 23 if coarse else len(body)
        index += struct.pack("<H", number) + place.to_bytes(3, "little") + (22 + len(data)).to_bytes(3, "little")
        body += b"\x81" * 22 + data
    return index, body


@pytest.fixture
def games(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small archives of the same layouts, and a program that unpacks."""
    folder = tmp_path / "games"
    mp3 = io.BytesIO()
    soundfile.write(mp3, TONE, RATE_HZ, format="MP3")
    speech = ("020001J1.SB", "020001P1.SB", "020001P2.SB", "JOE06871.SB", "C99A_151.SB")
    written = dialogue(2, {1: "*FRNo, not that!*02"}, {1: "It is.*01*03Or was it?*16"})
    files = {name: mp3.getvalue() for name in speech} | {"030001P1.SB": b"no sound", "AND1.DOG": written}
    (folder / QUEEN).parent.mkdir(parents=True)
    (folder / QUEEN).write_bytes(_queen(files))
    index, body = _sky(
        {
            50007: (b"RNC" + PLAIN, False),
            50123: (b"RNC" + PLAIN, True),
            50200: (PLAIN, False),
            60000: (b"RNC" + PLAIN, False),
            59999: (b"RNCbroken", False),
        }
    )
    (folder / SKY).parent.mkdir()
    (folder / SKY).write_bytes(body)
    (folder / SKY).with_suffix(".dnr").write_bytes(index)
    (folder / DRASCULA).mkdir(parents=True)
    for name in ("12.ALS", "207.ALS", "VB3.ALS", "FREL.BIN"):
        (folder / DRASCULA / name).write_bytes(PLAIN)
    (tmp_path / "ancient").write_text(UNPACKS)
    (tmp_path / "ancient").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return folder


def test_who_speaks(games: Path) -> None:
    found = {line.name: line.voice for line in lines("training", games)}
    assert found == {
        "queen-020001J": "queen-joe-02",
        "queen-020001P": "queen-02",
        "queen-JOE0687": "queen-joe-JOE06",
        "queen-C99A_15": "queen-C99A",
        "drascula-12": "drascula-hero-0",
        "drascula-207": "drascula-hero-2",
        "drascula-VB3": "drascula-VB",
    }
    assert {line.name: line.voice for line in lines("bench", games)} == {"sky-50007": "sky-500", "sky-50123": "sky-501"}


def test_the_script_tells_the_words(games: Path, tmp_path: Path) -> None:
    assert {line.name: line.text for line in scripted(games)} == {
        "queen-020001J": "No, not that!",
        "queen-020001P": "It is. Or was it?",
    }
    assert list(scripted(tmp_path)) == []


@given(st.binary(max_size=300))
def test_what_is_no_dialogue_holds_no_words_or_some(data: bytes) -> None:
    for name, text in dialogues([data]).items():
        assert len(name) == 7 and text == text.strip() != ""


@given(
    st.dictionaries(st.integers(1, 0xFFFF), st.text("abc de'.?!", min_size=3, max_size=80).filter(str.strip), max_size=5),
    st.integers(1, 99),
)
def test_every_string_of_a_dialogue_is_read(said: dict[int, str], number: int) -> None:
    found = dialogues([dialogue(number, said, said)])
    assert found == {f"{number:02d}{n:04X}{who}": " ".join(text.split()) for n, text in said.items() for who in "JP"}


def test_every_archive_holds_the_same_sound(games: Path) -> None:
    sets: tuple[Set, ...] = ("training", "bench")
    for which in sets:
        for line in lines(which, games):
            twice = 1 + (line.name == "queen-020001P")  # in two parts
            middle = line.samples[USER_RATE_HZ // 4 : USER_RATE_HZ // 2]
            assert line.samples.dtype == np.float32 and len(line.samples) >= twice * USER_RATE_HZ
            assert np.sqrt(np.mean(np.square(middle))) == pytest.approx(0.5 / np.sqrt(2), rel=0.05), line.name


def test_what_is_not_installed_is_named(games: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert installed("training", games) and installed("bench", games)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert not installed("bench", games) and installed("training", games)
    with pytest.raises(InputError, match="apt install beneath-a-steel-sky ancient"):
        next(lines("bench", games))
    with pytest.raises(InputError, match="apt install flight-of-the-amazon-queen drascula"):
        next(lines("training", tmp_path))


def test_an_archive_of_another_layout_is_refused(games: Path) -> None:
    (games / QUEEN).write_bytes((games / QUEEN).read_bytes()[:40])
    with pytest.raises(InputError, match="cannot be read"):
        list(lines("training", games))


@pytest.mark.parametrize("which", ["training", "bench"])
def test_the_packages_are_read(which: Set) -> None:
    if not installed(which):
        refuse = pytest.fail if in_ci() else pytest.skip
        refuse(f"not installed: {recorded_lines.PACKAGES[which]}")
    some = list(islice(lines(which), 20, 60))
    if which == "training":
        assert sum(bool(line.text) for line in lines(which)) > 1500, "the script has the words of every talk"
    assert len(some) == 40 and all(
        0.1 < len(line.samples) / USER_RATE_HZ < 60 and np.abs(line.samples).max() > 0.05 for line in some
    )
