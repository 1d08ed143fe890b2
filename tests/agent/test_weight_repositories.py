"""Repositories from the hubs: what arrives, what changes there, what the user has, and how it goes on after a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from agent import weight_cache, weights
from agent.profiles import Profile
from duplex.errors import WeightsError
from tests.agent.hub_repository import (
    BIG,
    FILES,
    HF,
    MS,
    SHARDS,
    contents,
    failure,
    fetch,
    hubs_fixture,  # noqa: F401
    listed,
)
from tests.agent.hub_server import Hubs


def test_the_official_layout_arrives_and_the_second_run_asks_nobody(hubs: Hubs, tmp_path: Path) -> None:
    folder, heard = fetch(listed("weights.pt"))
    assert folder == tmp_path / "home" / "weights" / "thing"
    assert contents(folder) == FILES
    assert ("thing/weights.pt", len(BIG)) in heard.begun
    assert "thing/config.json: verified against the hub's own hash." in heard.notes
    assert "thing/weights.pt: verified against the hub's own hash." not in heard.notes  # its hash was known before
    asked = len(hubs.requests)
    assert fetch(listed("weights.pt"))[0] == folder
    assert len(hubs.requests) == asked


def test_one_list_serves_all_files(hubs: Hubs) -> None:
    fetch(listed())
    assert [path for server, path, _, _ in hubs.requests if "/tree/" in path or "/repo/files" in path] == [
        f"/hf/api/models/{HF}/tree/rev1"
    ]


def test_a_list_of_many_pages_is_read_to_its_end(hubs: Hubs) -> None:
    hubs.page = 2
    hubs.model_scope.clear()
    assert contents(fetch(listed())[0]) == FILES


def test_a_file_cut_in_the_middle_is_resumed_behind_the_redirect(hubs: Hubs) -> None:
    hubs.cuts["weights.pt"] = [1_500_000]
    assert contents(fetch(listed())[0]) == FILES
    assert hubs.downloads("weights.pt") == ["", "bytes=1500000-"]


def test_what_one_run_brought_the_next_goes_on_from(hubs: Hubs) -> None:
    hubs.cuts["weights.pt"] = [1_200_000, 0, 0]
    text = failure(listed())
    assert "thing/weights.pt could not be fetched" in text
    assert "goes on where it stopped" in text
    before = len(hubs.downloads("config.json"))
    assert contents(fetch(listed())[0]) == FILES
    assert hubs.downloads("weights.pt")[-1] == "bytes=1200000-"
    assert len(hubs.downloads("config.json")) == before


def test_another_file_than_the_listed_one_is_not_even_downloaded(hubs: Hubs) -> None:
    hubs.hugging_face[HF]["weights.pt"] = BIG + b"newer"
    folder, heard = fetch(listed("weights.pt"))
    assert contents(folder) == FILES
    assert "thing/weights.pt: Hugging Face has another weights.pt than the one that weights.yaml names." in heard.notes
    assert not any(
        path.startswith("/hf/") and path.endswith("weights.pt") for server, path, _, _ in hubs.requests if server == "content"
    )


@pytest.mark.parametrize("path", ["config.json", "weights.pt", "model-1-of-2.safetensors"])
def test_a_file_that_changed_since_its_first_fetch_is_told_and_refused(hubs: Hubs, path: str, tmp_path: Path) -> None:
    folder, _ = fetch(listed())
    (folder / path).unlink()
    for repository in (hubs.hugging_face[HF], hubs.model_scope[MS]):
        repository[path] = FILES[path][:-2] + b"}}"
    text = failure(listed())
    receipt = tmp_path / "home" / "weights" / "thing.receipt"
    assert f"Hugging Face has another {path} than the one first fetched here (delete {receipt} to take the new one)" in text
    assert not (folder / path).exists()
    receipt.unlink()
    assert (fetch(listed())[0] / path).read_bytes() == FILES[path][:-2] + b"}}"


def test_the_old_file_still_comes_from_the_hub_that_kept_it(hubs: Hubs) -> None:
    folder, _ = fetch(listed())
    (folder / "config.json").unlink()
    hubs.hugging_face[HF]["config.json"] = b'{"size": 3}'
    folder, heard = fetch(listed())
    assert contents(folder) == FILES
    assert "thing/config.json: from ModelScope." in heard.notes


def test_a_new_revision_in_the_list_is_fetched_without_asking_the_old_receipt(hubs: Hubs) -> None:
    weight_list = listed()
    fetch(weight_list)
    hubs.model_scope.clear()
    moved = listed(revision="rev2")
    assert "could not be fetched" in failure(moved)  # rev2 does not exist: the old files do not pass for it


def test_a_lost_receipt_costs_a_look_but_no_download(hubs: Hubs, tmp_path: Path) -> None:
    fetch(listed())
    downloads = [request for request in hubs.requests if request[0] == "content"]
    (tmp_path / "home" / "weights" / "thing.receipt").unlink()
    assert contents(fetch(listed())[0]) == FILES
    assert [request for request in hubs.requests if request[0] == "content"] == downloads


def test_verify_finds_and_mends_a_damaged_file(hubs: Hubs) -> None:
    folder, _ = fetch(listed())
    status = (folder / "weights.pt").stat()
    (folder / "weights.pt").write_bytes(BIG[:-1] + b"!")
    os.utime(folder / "weights.pt", ns=(status.st_atime_ns, status.st_mtime_ns))
    fetch(listed())
    assert contents(folder) != FILES
    _, heard = fetch(listed(), verify=True)
    assert contents(folder) == FILES
    assert "thing/weights.pt in the cache is damaged; fetching it again." in heard.notes


def test_a_damaged_index_in_the_cache_is_mended(hubs: Hubs) -> None:
    folder, _ = fetch(listed())
    (folder / "index.json").write_bytes(b"{")
    assert [item.name for item in weights.missing(Profile("mine", "", "bridge", "bridge", weights=("thing",)), listed())] == [
        "thing"
    ]
    assert contents(fetch(listed())[0]) == FILES
    assert hubs.downloads("index.json") == ["", ""]


@pytest.mark.parametrize("names", [["../evil.safetensors"], ["/etc/evil.safetensors"], ["run.py"], ["a\\b.safetensors"], [3]])
def test_an_index_that_names_anything_else_is_refused(hubs: Hubs, names: list[object]) -> None:
    hubs.hugging_face[HF]["index.json"] = json.dumps({"weight_map": dict(enumerate(names))}).encode()
    with pytest.raises(WeightsError, match="index"):
        fetch(listed())


def test_an_index_that_is_none_is_named(hubs: Hubs) -> None:
    hubs.hugging_face[HF]["index.json"] = b"[]"
    with pytest.raises(WeightsError, match=r"index\.json is no index of safetensors files"):
        fetch(listed())


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the official files, where DUOLOGUE_WEIGHTS_DIR points."""
    folder = tmp_path / "mine" / "thing"
    for path, data in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    monkeypatch.setenv("DUOLOGUE_WEIGHTS_DIR", str(folder.parent))
    return folder


def test_the_users_folder_is_used_where_it_lies(hubs: Hubs, given: Path, tmp_path: Path) -> None:
    folder, heard = fetch(listed("weights.pt"))
    assert folder == given
    assert hubs.requests == []
    assert not (tmp_path / "home" / "weights" / "thing").exists()
    assert any("as they are, no hash of them being known here: config.json, sub/vocab.txt" in note for note in heard.notes)
    _, heard = fetch(listed("weights.pt"))
    assert heard.notes == []


def test_a_change_in_the_users_folder_is_noticed(hubs: Hubs, given: Path) -> None:
    fetch(listed("weights.pt"))
    (given / "weights.pt").write_bytes(BIG + b"!")
    with pytest.raises(WeightsError, match="run: duologue fetch mine"):
        weights.locate(Profile("mine", "", "bridge", "bridge", weights=("thing",)), listed("weights.pt"))
    folder, heard = fetch(listed("weights.pt"))
    assert any("is not the file that is expected (wrong sha256)" in note for note in heard.notes)
    assert folder != given
    assert contents(folder) == FILES


def test_what_the_users_folder_lacks_comes_from_the_hub(hubs: Hubs, given: Path) -> None:
    (given / "model-2-of-2.safetensors").unlink()
    folder, heard = fetch(listed("weights.pt"))
    assert contents(folder) == FILES
    assert folder != given
    assert hubs.downloads("model-2-of-2.safetensors") == [""]
    assert hubs.downloads("weights.pt") == []
    assert any(f"the folder {given} lacks model-2-of-2.safetensors" in note for note in heard.notes)


def test_a_disk_that_fills_up_is_one_sentence_and_the_next_run_goes_on(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = weight_cache.write_block, [weight_cache.BLOCK_BYTES + 5000]

    def full(file: BinaryIO, block: bytes) -> None:
        if room[0] < len(block):
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= len(block)
        real(file, block)

    monkeypatch.setattr(weight_cache, "write_block", full)
    with pytest.raises(WeightsError, match="is full"):
        fetch(listed())
    monkeypatch.setattr(weight_cache, "write_block", real)
    assert contents(fetch(listed())[0]) == FILES
    assert hubs.downloads("weights.pt") == ["", f"bytes={weight_cache.BLOCK_BYTES}-"]


def test_too_little_space_is_said_before_anyone_is_asked(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(WeightsError, match="GB are free"):
        fetch(listed())
    assert hubs.requests == []


def test_the_price_is_known_before_and_falls_with_what_is_there(hubs: Hubs) -> None:
    profile, weight_list = Profile("mine", "", "bridge", "bridge", weights=("thing",)), listed()
    (whole,) = weights.missing(profile, weight_list)
    assert (whole.name, whole.bytes, whole.licence) == ("thing", sum(map(len, FILES.values())), "MIT")
    hubs.cuts["weights.pt"] = [1_000_000, 0, 0]
    failure(weight_list)
    (rest,) = weights.missing(profile, weight_list)
    assert rest.bytes == len(BIG) - 1_000_000 + sum(map(len, SHARDS.values()))
    fetch(weight_list)
    assert weights.missing(profile, weight_list) == []
