"""A server of one file that can fail in every way, and a list that names it; fixtures `cache` and `server`."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agent import weights
from agent.profiles import Profile
from agent.weight_list import (
    Artifact,
    Conversion,
    Source,
    WeightList,
)

DATA = bytes(range(256)) * 9000  # 2.3 MB: several blocks
SHA = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves DATA; can cut a body short, send other bytes, or forget how to resume."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = DATA
        self.cuts: list[int] = []  # for each coming request: send at most so many bytes
        self.resumes = True
        self.ranges: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/w.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if not self.path.endswith("w.bin"):
            self.send_error(404)
            return
        wanted = self.headers.get("Range", "") if self.server.resumes else ""
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = self.server.body[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else len(body)
        self.wfile.write(body[:cut])

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


class Heard(weights.Quiet):
    """Keeps what a fetch says."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[int] = []

    def advance(self, done: int) -> None:
        self.done.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(name="cache", autouse=True)
def cache_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUOLOGUE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DUOLOGUE_WEIGHTS_DIR", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture(name="server")
def server_fixture() -> Iterator[Server]:
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


def listed(*sources: Source, sha256: str = SHA, conversion: str = "") -> WeightList:
    artifact = Artifact("w.bin", len(DATA), sha256, "MIT", "nobody", sources)
    made = {"fast": Conversion("w", conversion, 1, 100)} if conversion else {}
    return WeightList({"w": artifact}, made)


def fetch(weight_list: WeightList, *names: str, **options: bool) -> tuple[dict[str, Path], Heard]:
    heard = Heard()
    profile = Profile("mine", "", "bridge", "bridge", weights=names or ("w",), file="mine.yaml")
    return weights.fetch(profile, heard, weights=weight_list, **options), heard


def dead_url() -> str:
    """An address where nobody listens."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        return f"http://127.0.0.1:{closed.server_address[1]}/w.bin"
