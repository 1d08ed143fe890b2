"""One file on its way into the cache: offers in order -> `.part` -> hash -> its final name.

An offer that fails moves on to the next one; when none is left, one sentence says what each of them answered. Offers may differ in
what they expect (two hubs can hold different versions of a small file): what is left of one is no prefix of the other then, which
the hash finds out, and the file starts afresh.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from agent import weight_cache
from agent.weight_hubs import SourceFailed, name_of
from agent.weight_list import Artifact, Source
from agent.weight_sources import Fetcher
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


@dataclass(frozen=True)
class Offer:
    """A source, and what is expected from it."""

    source: Source
    artifact: Artifact


def download(
    path: Path, label: str, offers: Iterable[Offer | str], fetcher: Fetcher, progress: Progress, otherwise: str
) -> Artifact:
    """Brings one file to `path`, stamped as verified: the artifact of the offer that gave it, with its sha256.

    An offer that is text says why there is none. `otherwise` ends the error: what else the user can do. Raises WeightsError.
    """
    failures: list[str] = []
    begun = False
    for offer in offers:
        if isinstance(offer, str):
            failures.append(offer)
            progress.note(f"{label}: {offer}.")
            continue
        if not begun:
            progress.begin(label, offer.artifact.bytes)
            begun = True
        accepted = _try(path, label, offer, fetcher, progress, failures)
        if accepted is not None:
            progress.advance(accepted.bytes)
            return accepted
    raise WeightsError(
        f"{label} could not be fetched: {'; '.join(dict.fromkeys(failures))}. Check the network and run the same command "
        f"again (it goes on where it stopped), or {otherwise}."
    )


def _try(path: Path, label: str, offer: Offer, fetcher: Fetcher, progress: Progress, failures: list[str]) -> Artifact | None:
    """The file from one offer: the artifact as accepted, or None after adding to `failures`."""
    artifact, part = offer.artifact, weight_cache.part_path(path)
    if part.exists() and part.stat().st_size >= artifact.bytes and (accepted := _settle(path, artifact)):
        return accepted  # stopped just before it got its final name
    for attempt in ("resumed", "fresh"):
        resumed = attempt == "resumed" and part.exists()
        try:
            progress.note(f"{label}: from {name_of(offer.source)}.")
            fetcher.append(offer.source, artifact, part, progress.advance)
        except SourceFailed as failure:
            failures.append(str(failure))
            progress.note(f"{label}: {failure}.")
            return None
        if accepted := _settle(path, artifact):
            return accepted
        if not resumed:  # a resumed file may owe its wrong hash to the older half: once more from the start
            failures.append(f"what {name_of(offer.source)} sent has the wrong {'sha256' if artifact.sha256 else 'hash'}")
            progress.note(f"{label}: {failures[-1]}; it was deleted.")
            return None
    return None


def _settle(path: Path, artifact: Artifact) -> Artifact | None:
    """A part that should be complete: gives it its final name when the hash is right, deletes it otherwise."""
    part = weight_cache.part_path(path)
    if not weight_cache.matches(part, artifact):
        part.unlink()
        return None
    accepted = artifact if artifact.sha256 else replace(artifact, sha256=weight_cache.file_sha256(part))
    weight_cache.accept_part(path, accepted)
    return accepted
