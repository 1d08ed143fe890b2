"""The cache folder: where weights lie, how they get their final name, and how the second run knows that they are good.

    <home>/weights/<artifact>/<file>            verified bytes
    <home>/weights/<artifact>/<file>.verified   size, mtime and sha256 at the time of the check
    <home>/weights/<artifact>/<file>.part       an interrupted download; always a prefix, so any source can go on from it
    <home>/weights/<repository>/...             the official layout, each file with its .verified beside it
    <home>/weights/<repository>.receipt         what a hub declared of files whose hash is not known here, pinned at first use
    <home>/weights/<repository>.given           what was checked of the user's own folder, which is used where it lies
    <home>/converted/<name>/                    what a converter made, with stamp.json (version, sizes, hashes) inside
    <home>/fetch.lock                           held while fetching

<home> is DUOLOGUE_HOME, else the platform's cache folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import platformdirs

from agent.weight_list import Artifact, Conversion
from duplex.errors import WeightsError

BLOCK_BYTES = 1 << 20


def home() -> Path:
    """The cache folder; it need not exist."""
    chosen = os.environ.get("DUOLOGUE_HOME")
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("duologue"))


def artifact_path(name: str, artifact: Artifact) -> Path:
    """Final place of an artifact."""
    return home() / "weights" / name / artifact.file


def conversion_path(name: str) -> Path:
    """Final place of a converted folder."""
    return home() / "converted" / name


def part_path(path: Path) -> Path:
    """Where the bytes of `path` gather until they are complete."""
    return path.with_name(path.name + ".part")


def file_sha256(path: Path, advance: Callable[[int], None] = lambda done: None) -> str:
    """Hash of a file, read in blocks; `advance` hears the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            advance(done)
    return digest.hexdigest()


def git_blob_sha1(path: Path) -> str:
    """The name that git gives to a file's content: SHA-1 of "blob <size>", a zero byte, and the bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def matches(path: Path, artifact: Artifact) -> bool:
    """Whether the content of `path` is the artifact's; reads the whole file. OSError when it cannot be read."""
    if path.stat().st_size != artifact.bytes:
        return False
    if artifact.git_blob and git_blob_sha1(path) != artifact.git_blob:
        return False
    return not artifact.sha256 or file_sha256(path) == artifact.sha256


def is_verified(path: Path, artifact: Artifact) -> bool:
    """Whether the file is there and untouched since its hash was checked. Costs two stats and a tiny read."""
    try:
        status = path.stat()
        stamp = json.loads(_stamp_path(path).read_text())
    except (OSError, ValueError):
        return False
    return bool(stamp == _stamp(status, artifact) and status.st_size == artifact.bytes)


def verify(path: Path, artifact: Artifact) -> bool:
    """Reads the whole file and compares; stamps it when it is right."""
    try:
        if not matches(path, artifact):
            return False
    except OSError:
        return False
    write_atomically(_stamp_path(path), json.dumps(_stamp(path.stat(), artifact)))
    return True


def accept_part(path: Path, artifact: Artifact) -> None:
    """Gives a complete, verified `.part` its final name, durably."""
    part = part_path(path)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    write_atomically(_stamp_path(path), json.dumps(_stamp(path.stat(), artifact)))


def is_converted(name: str, conversion: Conversion, source: Artifact, *, verify: bool = False) -> bool:
    """Whether the converted folder is there, whole, and made by this version from this source; `verify` also hashes its files."""
    folder = conversion_path(name)
    try:
        stamp = json.loads((folder / "stamp.json").read_text())
        if stamp["made"] != _made(conversion, source):
            return False
        for file, (size, sha256) in stamp["files"].items():
            if (folder / file).stat().st_size != size or (verify and file_sha256(folder / file) != sha256):
                return False
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no stamp, or not one that we wrote
        return False
    return True


def accept_conversion(name: str, draft: Path, conversion: Conversion, source: Artifact) -> None:
    """Stamps a finished folder and gives it its final name."""
    final = conversion_path(name)
    found = sorted(path for path in draft.rglob("*") if path.is_file())
    files = {str(path.relative_to(draft)): [path.stat().st_size, file_sha256(path)] for path in found}
    write_atomically(draft / "stamp.json", json.dumps({"made": _made(conversion, source), "files": files}, indent=1))
    if final.exists():
        shutil.rmtree(final)
    os.replace(draft, final)


def write_atomically(path: Path, text: str) -> None:
    """A small text file that is either the old one or the new one, never half."""
    draft = path.with_name(path.name + ".draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def write_block(file: BinaryIO, block: bytes) -> None:
    """The one place where downloaded bytes meet the disk."""
    file.write(block)


@contextmanager
def lock(waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the cache for one fetch at a time; calls `waiting` once when another process has it."""
    import filelock

    with disk_errors():
        home().mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(home() / "fetch.lock")
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            waiting()
            held.acquire()
    try:
        yield
    finally:
        held.release()


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns what a disk can refuse into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(
                f"The disk that holds {home()} is full; free some space there, or set DUOLOGUE_HOME to a folder on another disk, "
                "and run the same command again: it goes on where it stopped."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise WeightsError(
                f"The cache folder {home()} cannot be written ({error.strerror}); set DUOLOGUE_HOME to one that can."
            ) from error
        raise


def require_space(needed_bytes: int) -> None:
    """Raises WeightsError when the cache's disk has less free space than that."""
    free = shutil.disk_usage(home()).free
    if free < needed_bytes:
        raise WeightsError(
            f"Fetching needs {needed_bytes / 1e9:.1f} GB in {home()}, but only {free / 1e9:.1f} GB are free there; free some space, "
            "or set DUOLOGUE_HOME to a folder on another disk."
        )


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _stamp(status: os.stat_result, artifact: Artifact) -> dict[str, object]:
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": artifact.sha256}


def _made(conversion: Conversion, source: Artifact) -> dict[str, object]:
    return {"converter": conversion.converter, "version": conversion.version, "source_sha256": source.sha256}
