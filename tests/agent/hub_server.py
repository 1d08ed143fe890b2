"""Two servers that play the model hubs: lists of files, addresses that redirect to a content server, Range, and everything that fails.

`Hubs` holds repositories as plain bytes and can cut, falsify, refuse and count. The content server is a second one on another port, so
that what must not leave the endpoint can be seen not to.
"""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from agent.weight_cache import BLOCK_BYTES


def is_large(path: str) -> bool:
    """Whether Hugging Face keeps the file as LFS, with a sha256; of the others it only gives git's name."""
    return not path.endswith((".json", ".yaml", ".txt"))


class Hubs(ThreadingHTTPServer):
    """Both hubs and the content server's state."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Endpoint)
        self.content = ThreadingHTTPServer(("127.0.0.1", 0), Content)
        self.content.daemon_threads = True
        self.content.hubs = self  # type: ignore[attr-defined]
        self.hugging_face: dict[str, dict[str, bytes]] = {}
        self.model_scope: dict[str, dict[str, bytes]] = {}
        self.sent: dict[str, bytes] = {}
        """What the content server sends under a path instead of what the list declares."""
        self.cuts: dict[str, list[int]] = {}
        """For each coming download of a path: send at most so many bytes."""
        self.refuse: dict[str, int] = {}
        """Status for every request whose path contains a key."""
        self.token = ""
        """When set, Hugging Face wants it."""
        self.page = 1000
        """Entries on one page of Hugging Face's list."""
        self.lists: dict[str, bytes] = {}
        """Bodies sent instead of a hub's list, by "hf" or "ms"."""
        self.requests: list[tuple[str, str, str, str]] = []
        """(server, path, Range, Authorization) in order."""

    @property
    def hf_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hf"

    @property
    def ms_url(self) -> str:
        return f"http://localhost:{self.server_address[1]}/ms"  # another name: what fails at one hub is not the other's fault

    @property
    def content_url(self) -> str:
        return f"http://127.0.0.1:{self.content.server_address[1]}"

    def downloads(self, path: str) -> list[str]:
        """Ranges of the downloads of a file, in order."""
        return [wanted for server, asked, wanted, _ in self.requests if server == "content" and asked.endswith("/" + path)]


class Endpoint(BaseHTTPRequestHandler):
    """Lists and redirects. Paths as the hubs have them, below /hf and /ms."""

    server: Hubs

    def do_GET(self) -> None:
        hubs, parts = self.server, urllib.parse.urlsplit(self.path)
        path, query = urllib.parse.unquote(parts.path), dict(urllib.parse.parse_qsl(parts.query))
        authorization = self.headers.get("Authorization", "")
        hubs.requests.append(("endpoint", path, self.headers.get("Range", ""), authorization))
        status = next((code for key, code in hubs.refuse.items() if key in path), 0)
        if status:
            self.send_error(status)
        elif path.startswith("/hf/") and hubs.token and authorization != f"Bearer {hubs.token}":
            self.send_error(403 if authorization else 401)
        elif path.startswith("/hf/api/models/"):
            repo, _, revision = path.removeprefix("/hf/api/models/").partition("/tree/")
            self.send_hf_list(repo, revision, int(query.get("cursor", "0"))) if revision == "rev1" else self.send_error(404)
        elif path.startswith("/ms/api/v1/models/"):
            self.send_ms_list(path.removeprefix("/ms/api/v1/models/").removesuffix("/repo/files"))
        elif "/resolve/" in path:
            hub, repo, file = self.resolved(path)
            if file in (hubs.hugging_face if hub == "hf" else hubs.model_scope).get(repo, {}):
                self.send_response(302)
                self.send_header("Location", f"{hubs.content_url}/{hub}/{repo}/{urllib.parse.quote(file)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.send_error(404)
        else:
            self.send_error(404)

    def resolved(self, path: str) -> tuple[str, str, str]:
        hub, _, rest = path.removeprefix("/").partition("/")
        repo, _, file = rest.removeprefix("models/").partition("/resolve/")
        return hub, repo, file.partition("/")[2]

    def send_hf_list(self, repo: str, revision: str, start: int) -> None:
        hubs = self.server
        if repo not in hubs.hugging_face:
            self.send_error(404)
            return
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "folder", "oid": "0" * 40, "size": 0}]
        for path, data in hubs.hugging_face[repo].items():
            blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
            if is_large(path):
                entry |= {"oid": "1" * 40, "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 135}}
            entries.append(entry)
        following = start + hubs.page
        link = ""
        if following < len(entries):  # as a mirror passes it on: pointing to the original
            link = f'<https://hub.example/api/models/{repo}/tree/{revision}?recursive=true&cursor={following}>; rel="next"'
        self.send_body(hubs.lists.get("hf", json.dumps(entries[start:following]).encode()), link)

    def send_ms_list(self, repo: str) -> None:
        hubs = self.server
        if repo not in hubs.model_scope:
            self.send_error(404)
            return
        files: list[dict[str, Any]] = [{"Type": "tree", "Path": "folder", "Size": 0, "Sha256": ""}]
        for path, data in hubs.model_scope[repo].items():
            files.append({"Type": "blob", "Path": path, "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()})
        self.send_body(hubs.lists.get("ms", json.dumps({"Code": 200, "Success": True, "Data": {"Files": files}}).encode()))

    def send_body(self, body: bytes, link: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if link:
            self.send_header("Link", link)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


class Content(BaseHTTPRequestHandler):
    """The server that the hubs redirect to."""

    def do_GET(self) -> None:
        hubs: Hubs = self.server.hubs  # type: ignore[attr-defined]
        path = urllib.parse.unquote(self.path)
        wanted = self.headers.get("Range", "")
        hubs.requests.append(("content", path, wanted, self.headers.get("Authorization", "")))
        hub, owner, name, file = path.removeprefix("/").split("/", 3)
        stored = (hubs.hugging_face if hub == "hf" else hubs.model_scope)[f"{owner}/{name}"][file]
        data = hubs.sent.get(f"{hub}/{file}", stored)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = data[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cuts = hubs.cuts.get(file, [])
        limit = cuts.pop(0) if cuts else len(body)
        for at in range(0, min(limit, len(body)), BLOCK_BYTES):
            self.wfile.write(body[at : min(limit, at + BLOCK_BYTES)])

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@contextmanager
def running() -> Iterator[Hubs]:
    """Both servers, until the block ends."""
    hubs = Hubs()
    servers = (hubs, hubs.content)
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hubs
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
