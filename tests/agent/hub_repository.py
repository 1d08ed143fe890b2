"""One repository on two local servers that play the hubs, and a list that names it; fixture `hubs`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import weights
from agent.profiles import Profile
from agent.weight_list import (
    HubRepository,
    Repository,
    RepositoryFile,
    WeightList,
)
from duplex.errors import WeightsError
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


@pytest.fixture(name="hubs")
def hubs_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hubs]:
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
