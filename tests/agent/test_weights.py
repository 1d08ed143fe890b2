"""Weights that were fetched: found again, checked again, and converted once."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from agent import weights
from agent.profiles import Profile
from agent.weight_list import (
    Conversion,
    Source,
    WeightList,
)
from duplex.errors import WeightsError
from tests.agent.weight_server import DATA, Server, cache_fixture, dead_url, fetch, listed, server_fixture  # noqa: F401


def test_a_file_changed_after_its_check_is_noticed(server: Server) -> None:
    weight_list = listed(Source(url=server.url))
    path = fetch(weight_list)[0]["w"]
    path.write_bytes(DATA[:1000])
    profile = Profile("mine", "", "bridge", "bridge", weights=("w",))
    with pytest.raises(WeightsError, match="run: duologue fetch mine"):
        weights.locate(profile, weight_list)
    assert fetch(weight_list)[0]["w"].read_bytes() == DATA


def test_verify_finds_what_a_glance_cannot(server: Server) -> None:
    weight_list = listed(Source(url=server.url))
    path = fetch(weight_list)[0]["w"]
    stamp = path.stat()
    path.write_bytes(DATA[:-1] + b"!")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    fetch(weight_list)
    assert path.read_bytes() != DATA
    _, heard = fetch(weight_list, verify=True)
    assert path.read_bytes() == DATA
    assert any("damaged" in note for note in heard.notes)


def test_missing_weights_say_what_to_run() -> None:
    with pytest.raises(WeightsError, match=r"are not on this machine yet .*; run: duologue fetch edge"):
        weights.locate("edge")


def test_two_fetches_at_once_download_once(server: Server) -> None:
    weight_list, results = listed(Source(url=server.url)), []
    threads = [threading.Thread(target=lambda: results.append(fetch(weight_list)[0]["w"].read_bytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [DATA] * 3
    assert len(server.ranges) == 1


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A converter in a module of its own: writes the size of its source; fails while `broken` exists."""
    (tmp_path / "du_test_converter.py").write_text(
        "import pathlib\n"
        "def convert(source, out, progress=None):\n"
        "    out.mkdir()\n"
        "    progress(1, 2)\n"
        "    (out / 'size').write_text(str(source.stat().st_size))\n"
        f"    if pathlib.Path({str(tmp_path / 'broken')!r}).exists(): raise RuntimeError('half done')\n"
        f"    with open({str(tmp_path / 'calls')!r}, 'a') as calls: calls.write('x')\n"
    )
    monkeypatch.delitem(sys.modules, "du_test_converter", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "du_test_converter:convert"


def test_a_conversion_is_made_once_and_again_for_a_new_version(server: Server, converter: str, tmp_path: Path) -> None:
    weight_list = listed(Source(url=server.url), conversion=converter)
    paths, heard = fetch(weight_list, "fast")
    assert (paths["fast"] / "size").read_text() == str(len(DATA))
    assert set(paths) == {"fast", "w"}
    assert 50 in heard.done
    fetch(weight_list, "fast")
    assert (tmp_path / "calls").read_text() == "x"
    newer = WeightList(weight_list.artifacts, {"fast": Conversion("w", converter, 2, 100)})
    with pytest.raises(WeightsError, match="duologue fetch"):
        weights.locate(Profile("mine", "", "bridge", "bridge", weights=("fast",)), newer)
    fetch(newer, "fast")
    assert (tmp_path / "calls").read_text() == "xx"


def test_a_conversion_that_fails_leaves_nothing(server: Server, converter: str, tmp_path: Path, cache: Path) -> None:
    weight_list = listed(Source(url=server.url), conversion=converter)
    (tmp_path / "broken").touch()
    with pytest.raises(RuntimeError, match="half done"):
        fetch(weight_list, "fast")
    assert list((cache / "converted").iterdir()) == []
    (tmp_path / "broken").unlink()
    assert fetch(weight_list, "fast")[0]["fast"].is_dir()


def test_a_truncated_conversion_is_made_again(server: Server, converter: str) -> None:
    weight_list = listed(Source(url=server.url), conversion=converter)
    folder = fetch(weight_list, "fast")[0]["fast"]
    (folder / "size").write_text("")
    assert (fetch(weight_list, "fast")[0]["fast"] / "size").read_text() == str(len(DATA))
    (folder / "size").write_text("0" * len(str(len(DATA))))  # right size, wrong bytes: only --verify looks that closely
    fetch(weight_list, "fast", verify=True)
    assert (folder / "size").read_text() == str(len(DATA))


def test_slim_keeps_the_conversion_only(server: Server, converter: str) -> None:
    weight_list = listed(Source(url=server.url), conversion=converter)
    paths, _ = fetch(weight_list, "fast", slim=True)
    assert set(paths) == {"fast"}
    assert fetch(listed(Source(url=dead_url()), conversion=converter), "fast")[0] == paths
