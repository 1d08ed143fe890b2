"""`duologue fetch` from outside: what it prints, and that it says what to do when there is nothing to fetch from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apps import cli, fetch

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUOLOGUE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_tiny_profile_needs_nothing(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert cli.main(["fetch", "tiny"]) == 0
    assert "Weights of 'tiny' are ready: 0 MB" in capsys.readouterr().out
    assert not cache.exists()


def test_an_unknown_profile_is_a_configuration_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fetch", "egde"]) == 2
    assert "choose one of edge" in capsys.readouterr().err


@pytest.mark.parametrize(("profile", "price"), [("edge", "qwen-gguf"), ("minmo-7b", "qwen2.5-7b-instruct")])
def test_without_any_source_it_says_what_to_do(tmp_path: Path, profile: str, price: str) -> None:
    """Hubs at an address where nobody listens, an index that is an empty folder."""
    nobody = "http://127.0.0.1:9"
    (tmp_path / "empty").mkdir()
    environment = {
        **os.environ,
        "HF_ENDPOINT": nobody,
        "MODELSCOPE_ENDPOINT": nobody,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "empty"),
        "PIP_CONFIG_FILE": os.devnull,
        "no_proxy": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "apps", "fetch", profile],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert "could not be fetched" in done.stderr
    assert "DUOLOGUE_WEIGHTS_DIR" in done.stderr
    assert price in done.stdout.split(": from ")[0]  # what it costs is said first


def test_the_price_names_sizes_and_licences(capsys: pytest.CaptureFixture[str]) -> None:
    fetch._print_price("minmo-7b")
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("'minmo-7b' needs 19.26 GB more in ")
    assert [line.split(":")[0].split() for line in lines[:3]] == [
        ["15.24", "GB", "qwen2.5-7b-instruct"],
        ["3.09", "GB", "cosyvoice2-0.5b"],
        ["937", "MB", "sensevoice-small"],
    ]
    assert "FunASR Model License v1.1" in lines[2]
    fetch._print_price("tiny")
    assert capsys.readouterr().out == ""


def test_a_folder_of_the_user_is_named_as_the_place(cache: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine"
    assert fetch._places([]) == str(cache)
    assert fetch._places([cache / "weights" / "a", own / "b", own / "c"]) == f"{cache} and {own}"
    assert fetch._places([own / "b"]) == str(own)


def test_plain_lines_come_at_tenths(capsys: pytest.CaptureFixture[str]) -> None:
    progress = fetch.LineProgress()
    progress.begin("w.bin", 1_000_000)
    for done in range(0, 1_000_001, 10_000):
        progress.advance(done)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "  w.bin: 100 % (1 of 1 MB)"


def test_the_bar_shows_notes_and_names() -> None:
    from rich.console import Console

    console = Console(record=True, force_terminal=True, width=100)
    with fetch.BarProgress(console) as progress:
        progress.begin("w.bin", 1_000_000)
        progress.note("w.bin: from [somewhere].")
        progress.advance(1_000_000)
    text = console.export_text()
    assert "w.bin: from [somewhere]." in text
    assert "1/1 MB" in text
