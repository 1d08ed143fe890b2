"""Downloading over HTTP: every way it can go wrong on a real socket and a real (or really full) disk, and how it goes on."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from agent import weight_cache, weight_hubs
from agent.weight_list import (
    Hub,
    Source,
)
from duplex.errors import WeightsError
from tests.agent.weight_server import DATA, Server, cache_fixture, dead_url, fetch, listed, server_fixture  # noqa: F401


def test_http_brings_the_bytes_and_the_second_run_needs_no_network(server: Server) -> None:
    weight_list = listed(Source(url=server.url))
    paths, heard = fetch(weight_list)
    assert paths["w"].read_bytes() == DATA
    assert heard.done[-1] == len(DATA)
    again, heard = fetch(listed(Source(url=dead_url())))
    assert again == paths
    assert (heard.notes, heard.done, len(server.ranges)) == ([], [], 1)


def test_a_truncated_body_is_resumed(server: Server) -> None:
    server.cuts = [1_500_000]
    paths, _ = fetch(listed(Source(url=server.url)))
    assert paths["w"].read_bytes() == DATA
    assert server.ranges == ["", "bytes=1500000-"]


def test_an_interrupted_fetch_goes_on_in_the_next_run(server: Server, cache: Path) -> None:
    server.cuts = [700_000, 0]
    with pytest.raises(WeightsError, match="goes on where it stopped"):
        fetch(listed(Source(url=server.url)))
    assert (cache / "weights/w/w.bin.part").stat().st_size == 700_000
    paths, _ = fetch(listed(Source(url=server.url)))
    assert paths["w"].read_bytes() == DATA
    assert server.ranges[-1] == "bytes=700000-"


def test_a_server_that_cannot_resume_starts_again(server: Server) -> None:
    server.resumes, server.cuts = False, [900_000]
    assert fetch(listed(Source(url=server.url)))[0]["w"].read_bytes() == DATA


def test_a_damaged_part_is_thrown_away_and_fetched_once_more(server: Server, cache: Path) -> None:
    part = cache / "weights/w/w.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"other bytes" * 100)
    assert fetch(listed(Source(url=server.url)))[0]["w"].read_bytes() == DATA
    assert not part.exists()


def test_a_complete_part_only_needs_its_name(cache: Path) -> None:
    part = cache / "weights/w/w.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA)
    assert fetch(listed(Source(url=dead_url())))[0]["w"].read_bytes() == DATA


def test_a_wrong_hash_is_one_sentence_and_leaves_nothing(server: Server, cache: Path) -> None:
    server.body = DATA[:-1] + b"!"
    with pytest.raises(WeightsError, match="wrong sha256") as caught:
        fetch(listed(Source(url=server.url)))
    assert "DUOLOGUE_WEIGHTS_DIR" in str(caught.value)
    assert [path for path in (cache / "weights").rglob("*") if path.is_file()] == []


def test_a_source_with_wrong_bytes_moves_on_to_the_next(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"not it")
    paths, heard = fetch(listed(Source(folder=str(tmp_path)), Source(url=server.url)))
    assert paths["w"].read_bytes() == DATA
    assert any("wrong sha256" in note for note in heard.notes)


def test_an_endless_body_is_not_stored(server: Server) -> None:
    server.body = DATA + bytes(1_000_000)
    assert fetch(listed(Source(url=server.url)))[0]["w"].stat().st_size == len(DATA)


def test_no_network_is_one_sentence(cache: Path) -> None:
    with pytest.raises(WeightsError, match="could not be reached") as caught:
        fetch(listed(Source(url=dead_url())))
    assert "Check the network and run the same command again" in str(caught.value)
    assert not (cache / "staging").exists()


def test_a_missing_page_is_named(server: Server) -> None:
    with pytest.raises(WeightsError, match="answered 404"):
        fetch(listed(Source(url=server.url + ".old")))


def test_hub_addresses(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    base = server.url.removesuffix("/w.bin")
    monkeypatch.setenv("HF_ENDPOINT", base)
    hub = Hub("owner/name", "deep/w.bin", "v1.0.0")
    assert weight_hubs.address(Source(hugging_face=hub)) == f"{base}/owner/name/resolve/v1.0.0/deep/w.bin"
    assert fetch(listed(Source(hugging_face=hub)))[0]["w"].read_bytes() == DATA


def test_a_disk_that_fills_up_is_one_sentence_and_the_next_run_goes_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = weight_cache.write_block, [0]

    def full(file: BinaryIO, block: bytes) -> None:
        if written[0] >= 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        written[0] += 1
        real(file, block)

    monkeypatch.setattr(weight_cache, "write_block", full)
    with pytest.raises(WeightsError, match="is full") as caught:
        fetch(listed(Source(url=server.url)))
    assert caught.value.exit_code == 4
    monkeypatch.setattr(weight_cache, "write_block", real)
    assert fetch(listed(Source(url=server.url)))[0]["w"].read_bytes() == DATA
    assert server.ranges[-1] == f"bytes={weight_cache.BLOCK_BYTES}-"


def test_too_little_space_is_said_before_anything_is_fetched(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(WeightsError, match="GB are free"):
        fetch(listed(Source(url=server.url)))
    assert server.ranges == []


def test_a_cache_that_cannot_be_made_is_one_sentence(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DUOLOGUE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(WeightsError, match="cannot be written"):
        fetch(listed(Source(url=server.url)))
