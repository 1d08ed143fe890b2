"""Repositories of a publisher: the official folder layout, from the user's own folder or file by file from a hub into the cache.

The user's folder `DUOLOGUE_WEIGHTS_DIR/<name>` comes first and is used where it lies: nothing is copied. Otherwise each file comes
from the first hub that has it. What weights.yaml gives no hash for is verified against the hub's own, and pinned in a receipt at
that moment: when the hub later offers something else under that name, it is said and not taken.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agent import weight_cache
from agent.weight_download import Offer, Progress, download
from agent.weight_hubs import Declared, SourceFailed, name_of
from agent.weight_list import Artifact, Repository, Source, is_inside
from agent.weight_sources import Fetcher
from duplex.errors import WeightsError


@dataclass(frozen=True)
class Pin:
    """What a hub declared of a file when it was first fetched here."""

    bytes: int
    sha256: str
    git_blob: str
    hub: str
    """The hub that declared it."""
    repo: str
    revision: str


def locate_repository(name: str, repository: Repository) -> Path | None:
    """The folder with everything in it, verified and untouched since; None when there is none yet. No network, a few stats."""
    folder = given_folder(name)
    if folder is not None and _is_accepted(name, repository, folder):
        return folder
    root, receipt = cache_folder(name), _receipt(name, repository)

    def is_there(path: str) -> bool:
        artifact = _expected(repository, path, receipt)
        return artifact is not None and weight_cache.is_verified(root / path, artifact)

    # The listed files first: the index is among them, and is read only when it is what was verified.
    whole = all(is_there(file.path) for file in repository.files) and all(is_there(path) for path in _paths(repository, root))
    return root if whole else None


def cache_folder(name: str) -> Path:
    """Where a repository lies in the cache."""
    return weight_cache.home() / "weights" / name


def given_folder(name: str) -> Path | None:
    """The user's own copy of a repository, if there is a folder of that name in DUOLOGUE_WEIGHTS_DIR."""
    chosen = os.environ.get("DUOLOGUE_WEIGHTS_DIR")
    folder = Path(chosen).expanduser().absolute() / name if chosen else None
    return folder if folder is not None and folder.is_dir() else None


def seems_given(name: str, repository: Repository) -> bool:
    """Whether the user's folder has every file, by name."""
    folder = given_folder(name)
    try:
        paths = _paths(repository, folder) if folder is not None else []
    except WeightsError:
        return False
    return folder is not None and bool(paths) and all((folder / path).is_file() for path in paths)


def bytes_missing(name: str, repository: Repository) -> int:
    """About how many bytes a fetch from a hub would bring."""
    root = cache_folder(name)
    there = sum(file.stat().st_size for file in root.rglob("*") if file.is_file() and file.suffix != ".verified")
    return max(0, repository.bytes - there)


# --- the user's own folder


def accept_given_folder(name: str, repository: Repository, progress: Progress, verify: bool) -> bool:
    """Checks the user's folder, if there is one: True when it is whole and its known hashes are right, so that it can be used."""
    folder = given_folder(name)
    if folder is None:
        return False
    if not verify and _is_accepted(name, repository, folder):
        return True
    paths = _paths(repository, folder)
    missing = [path for path in paths if not (folder / path).is_file()]
    if missing or not paths:
        progress.note(f"{name}: the folder {folder} lacks {', '.join(missing[:4]) or 'its index'}; it is used for what it has.")
        return False
    known = {file.path: file for file in repository.files}
    files: dict[str, list[object]] = {}
    taken = []
    for path in paths:
        file, sha256 = known.get(path), ""
        if file is not None and file.sha256 is not None:
            progress.note(f"Checking {path} in {folder}.")
            sha256 = weight_cache.file_sha256(folder / path)
            if sha256 != file.sha256:
                progress.note(f"{name}: {folder / path} is not the file that is expected (wrong sha256); the folder is not used.")
                return False
        else:
            taken.append(path)
        files[path] = [*_status(folder / path), sha256]
    if taken:
        progress.note(f"{name}: taken from {folder} as they are, no hash of them being known here: {', '.join(taken)}.")
    _record_path(name).parent.mkdir(parents=True, exist_ok=True)
    weight_cache.write_atomically(_record_path(name), json.dumps({"folder": str(folder), "files": files}, indent=1))
    return True


def _is_accepted(name: str, repository: Repository, folder: Path) -> bool:
    try:
        record = json.loads(_record_path(name).read_text(encoding="utf-8"))
        if record["folder"] != str(folder) or set(record["files"]) != set(_paths(repository, folder)):
            return False
        known = {file.path: file.sha256 for file in repository.files}
        for path, (size, mtime_ns, sha256) in record["files"].items():
            if [size, mtime_ns] != _status(folder / path) or (known.get(path) or sha256) != sha256:
                return False
    except (OSError, ValueError, LookupError, TypeError, AttributeError, WeightsError):  # nothing accepted yet, or not so any more
        return False
    return True


def _status(path: Path) -> list[object]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _record_path(name: str) -> Path:
    return weight_cache.home() / "weights" / f"{name}.given"


# --- from the hubs


def fetch_repository(name: str, repository: Repository, fetcher: Fetcher, progress: Progress, verify: bool) -> None:
    """Brings every file into the cache. Raises WeightsError."""
    root = cache_folder(name)
    for file in repository.files:
        _bring(name, repository, file.path, fetcher, progress, verify)
    for path in _paths(repository, root):
        if path not in {file.path for file in repository.files}:
            _bring(name, repository, path, fetcher, progress, verify)


def _bring(name: str, repository: Repository, path: str, fetcher: Fetcher, progress: Progress, verify: bool) -> None:
    target, label = cache_folder(name) / path, f"{name}/{path}"
    pinned = _expected(repository, path, _receipt(name, repository))
    if pinned is not None:
        if not verify and weight_cache.is_verified(target, pinned):
            return
        if target.exists():
            progress.note(f"Checking {label}.")
            if weight_cache.verify(target, pinned):
                return
            progress.note(f"{label} in the cache is damaged; fetching it again.")
            target.unlink()
    elif target.exists():  # without a receipt it is only bytes that may turn out to be the right ones
        os.replace(target, weight_cache.part_path(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    otherwise = f"put the official files into a folder '{name}' and set DUOLOGUE_WEIGHTS_DIR to the folder that holds it"
    offers = _offers(name, repository, path, pinned, fetcher)
    accepted = download(target, label, offers, fetcher, progress, otherwise)
    if pinned is None:
        _pin(name, path, accepted)
        progress.note(f"{label}: verified against the hub's own hash.")


def _offers(name: str, repository: Repository, path: str, pinned: Artifact | None, fetcher: Fetcher) -> Iterator[Offer | str]:
    """The user's folder and the hubs, each with what is to be expected from it; text where there is nothing to be had."""
    given = given_folder(name)
    local = Source(folder=str(given)) if given is not None and (given / path).is_file() else None
    if pinned is not None and local is not None:
        yield Offer(local, pinned)
    for source in repository.sources(path):
        hub = name_of(source)
        try:
            declared = fetcher.listing(_whole(source)).get(path)
        except SourceFailed as failure:
            if pinned is None:
                yield str(failure)
            else:
                yield Offer(source, pinned)  # a mirror may have files but no lists
            continue
        if declared is None:
            yield f"{hub} has no {path} in {_hub(source)[0]} at {_hub(source)[1]}"
        elif pinned is not None and not _agree(declared, pinned):
            if _is_listed(repository, path):
                yield f"{hub} has another {path} than the one that weights.yaml names"
            else:
                yield f"{hub} has another {path} than the one first fetched here (delete {_receipt_path(name)} to take the new one)"
        elif pinned is not None:
            yield Offer(source, pinned)
        elif declared.bytes <= 0 or not (declared.sha256 or declared.git_blob):
            yield f"{hub} declares no hash of {path}, so it could not be verified"
        else:
            git_blob = "" if declared.sha256 else declared.git_blob
            expected = Artifact(
                path, declared.bytes, declared.sha256, repository.licence, repository.publisher, (source,), git_blob
            )
            if local is not None:
                yield Offer(local, expected)
            yield Offer(source, expected)


def _whole(source: Source) -> Source:
    """The source without its path: the repository, whose list serves all of its files."""
    if source.hugging_face is not None:
        return Source(hugging_face=replace(source.hugging_face, path=""))
    assert source.model_scope is not None
    return Source(model_scope=replace(source.model_scope, path=""))


def _hub(source: Source) -> tuple[str, str]:
    """(repo, revision) of a source that is a hub."""
    hub = source.hugging_face or source.model_scope
    assert hub is not None
    return hub.repo, hub.revision


def _agree(declared: Declared, pinned: Artifact) -> bool:
    if declared.bytes != pinned.bytes:
        return False
    if declared.sha256:
        return declared.sha256 == pinned.sha256
    return not (declared.git_blob and pinned.git_blob) or declared.git_blob == pinned.git_blob


# --- what belongs to a repository, and what is known of it


def _paths(repository: Repository, root: Path) -> list[str]:
    """Every file of it: the listed ones, then those that its index in `root` names. Empty while the index is missing."""
    paths = [file.path for file in repository.files]
    if not repository.index:
        return paths
    index = root / repository.index
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is no index of safetensors files; delete it and fetch again.") from error
    if not all(isinstance(path, str) and is_inside(path) and re.fullmatch(r".+\.safetensors", path) for path in names):
        raise WeightsError(f"{index} names files that are no safetensors files beside it; delete it and fetch again.")
    return [*paths, *(path for path in names if path not in paths)]


def _expected(repository: Repository, path: str, receipt: dict[str, Pin]) -> Artifact | None:
    """One file as it should be; None when no hash of it is known yet."""
    for file in repository.files:
        if file.path == path and file.sha256 is not None and file.bytes is not None:
            return Artifact(path, file.bytes, file.sha256, repository.licence, repository.publisher, ())
    pin = receipt.get(path)
    if pin is None:
        return None
    return Artifact(path, pin.bytes, pin.sha256, repository.licence, repository.publisher, (), pin.git_blob)


def _is_listed(repository: Repository, path: str) -> bool:
    return any(file.path == path and file.sha256 is not None for file in repository.files)


def _receipt(name: str, repository: Repository) -> dict[str, Pin]:
    """The pins by path; those of a repository or revision that weights.yaml has left behind do not count any more."""
    current = {(name_of(source), *_hub(source)) for source in repository.sources("")}
    try:
        pins = {str(path): Pin(**pin) for path, pin in _read_receipt(name).items()}
    except TypeError:
        return {}
    return {
        path: pin
        for path, pin in pins.items()
        if (pin.hub, pin.repo, pin.revision) in current
        and isinstance(pin.bytes, int)
        and re.fullmatch("[0-9a-f]{64}", str(pin.sha256))
    }


def _read_receipt(name: str) -> dict[str, Any]:
    try:
        stored = json.loads(_receipt_path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _pin(name: str, path: str, accepted: Artifact) -> None:
    (source,) = accepted.sources  # the hub whose word was taken, whoever had the bytes
    pin = Pin(accepted.bytes, accepted.sha256, accepted.git_blob, name_of(source), *_hub(source))
    weight_cache.write_atomically(_receipt_path(name), json.dumps(_read_receipt(name) | {path: asdict(pin)}, indent=1))


def _receipt_path(name: str) -> Path:
    return weight_cache.home() / "weights" / f"{name}.receipt"
