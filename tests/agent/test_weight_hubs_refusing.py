"""A hub that fails, lies, or lets nobody in: the other one is asked, and what nobody has is told with what to do."""

from __future__ import annotations

import json

import pytest

from agent import weight_hubs
from tests.agent.hub_repository import (
    BIG,
    FILES,
    HF,
    MS,
    contents,
    failure,
    fetch,
    hubs_fixture,  # noqa: F401
    listed,
)
from tests.agent.hub_server import Hubs


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
