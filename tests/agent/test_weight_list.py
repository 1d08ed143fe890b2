"""The list of weights: the shipped one is whole, and a wrong one is refused with a word about what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.weight_list import (
    load_weight_list,
)
from duplex.errors import ConfigError
from tests.agent.weight_server import SHA, cache_fixture  # noqa: F401


def test_the_shipped_list_is_whole() -> None:
    weight_list = load_weight_list()
    assert {"qwen-gguf", "whisper-tiny-en", "vits-joe", "vits-joe-config", "silero-vad"} <= set(weight_list.artifacts)
    assert all(artifact.licence and artifact.publisher and artifact.sources for artifact in weight_list.artifacts.values())


def test_wrong_lists_are_refused(tmp_path: Path) -> None:
    good = {"file": "w.bin", "bytes": 3, "sha256": SHA, "licence": "MIT", "publisher": "x", "sources": [{"url": "http://x/w"}]}
    for change, message in (
        ({"sha256": "12"}, "64 lower-case hexadecimal digits"),
        ({"file": "../w.bin"}, "plain file name"),
        ({"sources": [{"url": "x", "folder": "y"}]}, "exactly one of"),
        ({"sources": [{"wheels": [{"package": "a", "member": "m", "bytes": 3, "wheel_bytes": 3}]}]}, "pinned"),
        ({"sources": [{"wheels": [{"package": "a==1", "member": "m", "bytes": 2, "wheel_bytes": 3}]}]}, "do not add up"),
    ):
        path = tmp_path / "weights.yaml"
        path.write_text(json.dumps({"artifacts": {"w": {**good, **change}}}))
        with pytest.raises(ConfigError, match=message):
            load_weight_list(path)
    with pytest.raises(ConfigError, match="did you mean qwen-int8"):
        load_weight_list().split(["qwen-int9"])


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
