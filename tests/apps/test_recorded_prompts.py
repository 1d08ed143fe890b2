"""Recorded prompts: which are speech, which half is kept back, and what happens without the package or the program."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

from apps import recorded_prompts
from apps.recorded_prompts import installed, is_kept_back, listed, prompts

LIST = """; a comment: not a prompt
goodbye: Goodbye!
please: ...Please  wait ...
letters/a: a
silence/1: (1 second of silence)
beep: [this is a simple beep tone]
digits/7: seven
gone: Nobody recorded this.
broken: This cannot be read.
"""
READS = f"""#!{sys.executable}
import sys
data = open(sys.argv[sys.argv.index("-i") + 1], "rb").read()
sys.exit(1) if data == b"broken" else sys.stdout.buffer.write(data)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The package's two parts, and a program that reads them."""
    sounds, words = tmp_path / "sounds", tmp_path / "words.txt.gz"
    (sounds / "digits").mkdir(parents=True)
    words.write_bytes(gzip.compress(LIST.encode()))
    for name in ("goodbye", "please", "digits/7"):
        (sounds / f"{name}.g722").write_bytes(np.full(8000, 16384, "<i2").tobytes())
    (sounds / "broken.g722").write_bytes(b"broken")
    (tmp_path / "ffmpeg").write_text(READS)
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return sounds, words


def test_only_speech_is_listed(package: tuple[Path, Path]) -> None:
    names = dict(listed(package[1]))
    assert list(names) == ["goodbye", "please", "digits/7", "gone", "broken"] and names["please"] == "Please wait"


def test_each_prompt_that_can_be_read_is_in_one_half(package: tuple[Path, Path]) -> None:
    assert installed(*package)
    halves = [list(prompts(kept, *package)) for kept in (False, True)]
    assert sorted(text for half in halves for text, _ in half) == ["Goodbye!", "Please wait", "seven"]
    for kept, half in zip((False, True), halves, strict=True):
        for text, samples in half:
            assert is_kept_back(text) is kept and is_kept_back(text.upper() + " .") is kept
            assert samples.dtype == np.float32 and samples.shape == (8000,) and np.allclose(samples, 0.5)


def test_without_package_or_program_there_is_nothing(
    package: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(prompts(True, tmp_path / "none", package[1])) == []
    monkeypatch.setattr(recorded_prompts.shutil, "which", lambda name: None)
    assert not installed(*package) and list(prompts(False, *package)) == []
