"""Repositories from the hubs, against local servers that play both: what arrives, what is refused, and how it goes on afterwards."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from agent import weight_cache, weight_hubs, weights
from agent.profiles import Profile
from agent.weight_list import HubRepository, Repository, RepositoryFile, WeightList, load_weight_list
from duplex.errors import ConfigError, WeightsError
from tests.agent.hub_server import Hubs, running

BIG = bytes(range(256)) * 9000  # 2.3 MB: several blocks
SHARDS = {"model-1-of-2.safetensors": BIG[::-1], "model-2-of-2.safetensors": b"second" * 1000}
INDEX = json.dumps({"weight_map": {f"layer{at}": name for at, name in enumerate([*SHARDS, *SHARDS])}}).encode()
FILES = {"config.json": b'{"size": 1}', "sub/vocab.txt": b"a b c", "index.json": INDEX, "weights.pt": BIG, **SHARDS}
LISTED = ("config.json", "sub/vocab.txt", "index.json", "weights.pt")
HF, MS = "maker/thing", "other/thing"


class Heard(weights.Quiet):
    """Keeps what a fetch says."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.begun: list[tuple[str, int]] = []

    def begin(self, label: str, total: int, unit: str = "bytes") -> None:
        self.begun.append((label, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hubs]:
    monkeypatch.setenv("DUOLOGUE_HOME", str(tmp_path / "home"))
    for name in ("DUOLOGUE_WEIGHTS_DIR", "HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with running() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.hf_url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", served.ms_url)
        served.hugging_face[HF] = {"README.md": b"not wanted", **FILES}
        served.model_scope[MS] = dict(FILES)
        yield served


def listed(*pinned: str, index: str = "index.json", revision: str = "rev1", files: tuple[str, ...] = LISTED) -> WeightList:
    """The list with one repository; the files named in `pinned` have size and hash in it."""
    entries = tuple(
        RepositoryFile(path, len(FILES[path]), hashlib.sha256(FILES[path]).hexdigest()) if path in pinned else RepositoryFile(path)
        for path in files
    )
    total = sum(map(len, FILES.values()))
    return WeightList(
        {},
        {},
        {"thing": Repository(total, "MIT", "maker", entries, HubRepository(HF, revision), HubRepository(MS, "master"), index)},
    )


def fetch(weight_list: WeightList, **options: bool) -> tuple[Path, Heard]:
    heard = Heard()
    profile = Profile("mine", "", "bridge", "bridge", weights=("thing",), file="mine.yaml")
    return weights.fetch(profile, heard, weights=weight_list, **options)["thing"], heard


def failure(weight_list: WeightList) -> str:
    with pytest.raises(WeightsError) as caught:
        fetch(weight_list)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of the official layout, without our stamps."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".verified")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


# --- what arrives


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


# --- one hub fails, the other has it


def test_wrong_bytes_are_told_and_the_other_hub_is_asked(hubs: Hubs) -> None:
    hubs.sent["hf/weights.pt"] = BIG[:-1] + b"!"
    folder, heard = fetch(listed())
    assert contents(folder) == FILES
    assert "thing/weights.pt: what Hugging Face sent has the wrong sha256; it was deleted." in heard.notes
    assert "thing/weights.pt: from ModelScope." in heard.notes


def test_wrong_bytes_of_a_small_file_are_noticed_by_gits_hash(hubs: Hubs) -> None:
    hubs.sent["hf/config.json"] = b'{"size": 2}'
    folder, heard = fetch(listed())
    assert contents(folder) == FILES
    assert "thing/config.json: what Hugging Face sent has the wrong hash; it was deleted." in heard.notes


def test_a_repository_that_one_hub_lacks_comes_from_the_other(hubs: Hubs) -> None:
    del hubs.hugging_face[HF]
    folder, heard = fetch(listed("weights.pt"))
    assert contents(folder) == FILES
    assert any("answered 404" in note for note in heard.notes)


def test_a_file_that_one_hub_lacks_comes_from_the_other(hubs: Hubs) -> None:
    del hubs.hugging_face[HF]["sub/vocab.txt"]
    folder, heard = fetch(listed())
    assert contents(folder) == FILES
    assert f"thing/sub/vocab.txt: Hugging Face has no sub/vocab.txt in {HF} at rev1." in heard.notes


def test_hubs_may_hold_different_small_files(hubs: Hubs) -> None:
    hubs.model_scope[MS]["config.json"] = b'{"size": 1, "from": "the other hub"}'
    hubs.cuts["config.json"] = [5, 0]
    assert (fetch(listed())[0] / "config.json").read_bytes() == hubs.model_scope[MS]["config.json"]


def test_neither_hub_has_it(hubs: Hubs) -> None:
    hubs.hugging_face.clear()
    hubs.model_scope.clear()
    text = failure(listed())
    assert text.count("answered 404") == 2
    assert "a folder 'thing'" in text
    assert "DUOLOGUE_WEIGHTS_DIR" in text


def test_no_network_is_one_sentence(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    assert "127.0.0.1:9 could not be reached" in failure(listed("weights.pt"))


def test_a_mirror_without_lists_still_gives_files_whose_hash_is_known(hubs: Hubs) -> None:
    hubs.refuse = {"/api/": 404}
    weight_list = listed("weights.pt", index="", files=("weights.pt",))
    assert contents(fetch(weight_list)[0]) == {"weights.pt": BIG}


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b'{"error": "no"}', b"[1]"])
def test_a_list_that_is_none_is_named(hubs: Hubs, body: bytes) -> None:
    hubs.lists["hf"] = body
    folder, heard = fetch(listed())
    assert contents(folder) == FILES
    assert any("Hugging Face's list of files" in note for note in heard.notes)
    assert hubs.downloads("config.json") == [""]


def test_a_list_without_an_end_is_given_up(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_hubs, "LISTING_PAGES", 3)
    hubs.page = 1
    folder, heard = fetch(listed())
    assert contents(folder) == FILES
    assert "thing/config.json: Hugging Face's list of files has no end." in heard.notes


def test_a_hub_that_vouches_for_nothing_is_not_believed(hubs: Hubs) -> None:
    hubs.hugging_face.clear()
    files = [{"Type": "blob", "Path": "config.json", "Size": 11, "Sha256": ""}]
    hubs.lists["ms"] = json.dumps({"Code": 200, "Data": {"Files": files}}).encode()
    assert "ModelScope declares no hash of config.json, so it could not be verified" in failure(listed())


# --- who may have it


@pytest.mark.parametrize("where", ["/hf/api/", "/resolve/rev1/"])
def test_a_gated_repository_says_what_to_do(hubs: Hubs, where: str) -> None:
    hubs.model_scope.clear()
    hubs.refuse = {where: 401}
    text = failure(listed("weights.pt", "config.json"))
    assert f"accept its terms at {hubs.hf_url}/{HF}, make a token at {hubs.hf_url}/settings/tokens and set HF_TOKEN" in text


def test_a_token_without_access_says_what_to_do(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    hubs.model_scope.clear()
    hubs.token = "the right one"
    monkeypatch.setenv("HF_TOKEN", "another")
    text = failure(listed())
    assert f"Hugging Face does not give {HF} to the owner of HF_TOKEN (403)" in text
    assert "another" not in text.replace("set another token", "")


def test_the_token_goes_to_the_endpoint_and_nowhere_else(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    hubs.token = "secret"
    monkeypatch.setenv("HF_TOKEN", " secret\n")
    hubs.sent["hf/weights.pt"] = b"wrong"
    assert contents(fetch(listed())[0]) == FILES
    assert {authorization for server, _, _, authorization in hubs.requests if server == "content"} == {""}
    for server, path, _, authorization in hubs.requests:
        if server == "endpoint":
            assert authorization == ("Bearer secret" if path.startswith("/hf/") else "")


# --- what changes at the hub


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


# --- the index


@pytest.mark.parametrize("names", [["../evil.safetensors"], ["/etc/evil.safetensors"], ["run.py"], ["a\\b.safetensors"], [3]])
def test_an_index_that_names_anything_else_is_refused(hubs: Hubs, names: list[object]) -> None:
    hubs.hugging_face[HF]["index.json"] = json.dumps({"weight_map": dict(enumerate(names))}).encode()
    with pytest.raises(WeightsError, match="index"):
        fetch(listed())


def test_an_index_that_is_none_is_named(hubs: Hubs) -> None:
    hubs.hugging_face[HF]["index.json"] = b"[]"
    with pytest.raises(WeightsError, match=r"index\.json is no index of safetensors files"):
        fetch(listed())


# --- the user's own folder


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


# --- the disk, and the price


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


# --- the list itself


def test_the_shipped_repositories_are_whole() -> None:
    repositories = load_weight_list().repositories
    assert set(repositories) == {"sensevoice-small", "qwen2.5-7b-instruct", "cosyvoice2-0.5b"}
    for repository in repositories.values():
        known = sum(file.bytes or 0 for file in repository.files)
        assert known <= repository.bytes <= known + 100_000  # the rest are small texts
        assert repository.hugging_face is not None and repository.model_scope is not None


def test_wrong_repositories_are_refused(tmp_path: Path) -> None:
    good = {
        "bytes": 3,
        "licence": "MIT",
        "publisher": "x",
        "files": [{"path": "a.pt"}],
        "hugging_face": {"repo": "x/y", "revision": "main"},
    }
    for change, message in (
        ({"files": []}, "at least one path"),
        ({"files": [{"path": "a"}, {"path": "a"}]}, "none twice"),
        ({"files": [{"path": "../a"}]}, "plain path below"),
        ({"files": [{"path": "a", "bytes": 3}]}, "give both bytes and sha256, or neither"),
        ({"files": [{"path": "a", "bytes": 3, "sha256": "12"}]}, "64 lower-case hexadecimal digits"),
        ({"hugging_face": None}, "needs hugging_face, model_scope or both"),
        ({"hugging_face": {"repo": "x", "revision": "main"}}, "owner/name"),
        ({"hugging_face": {"repo": "x/y", "revision": ""}}, "revision must name"),
        ({"index": "b.json"}, "must be one of the files"),
        ({"bytes": 0}, "bytes must be positive"),
    ):
        path = tmp_path / "weights.yaml"
        path.write_text(json.dumps({"artifacts": {}, "repositories": {"r": {**good, **change}}}))
        with pytest.raises(ConfigError, match=message):
            load_weight_list(path)
    path.write_text(json.dumps({"artifacts": {}, "repositories": {"r/../s": good}}))
    with pytest.raises(ConfigError, match="plain word"):
        load_weight_list(path)
