"""Model hubs over HTTP: where a file of a repository lies, and what the hub itself says of size and hash.

    Hugging Face   GET <endpoint>/api/models/<repo>/tree/<revision>?recursive=true     sha256 of large files, git's SHA-1 of small ones
                   GET <endpoint>/<repo>/resolve/<revision>/<path>                     redirects to a content server
    ModelScope     GET <endpoint>/api/v1/models/<repo>/repo/files?Revision=...         sha256 of every file
                   GET <endpoint>/models/<repo>/resolve/<revision>/<path>

HF_ENDPOINT and MODELSCOPE_ENDPOINT choose other servers (a mirror). HF_TOKEN goes to the endpoint itself and to nobody that it
redirects to. No redirect leads from https to an unencrypted address.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from agent.weight_list import Hub, Source

TIMEOUT_S = 5.0
"""Longest wait for a connection, and for the next bytes of one."""
LISTING_BYTES = 1 << 25
"""A list of files that is longer than this is none."""
LISTING_PAGES = 100
"""And one of more pages has no end (a page holds 1000 files)."""
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
"""What a connection can fail with; HTTPError, a URLError as well, is an answer and is caught before them."""


class SourceFailed(Exception):
    """This source did not work; the text says why, and the next one may."""


@dataclass(frozen=True)
class Declared:
    """What a hub says of one of its files."""

    bytes: int
    """Size in bytes."""
    sha256: str = ""
    """Hash of the content, or empty."""
    git_blob: str = ""
    """Git's SHA-1 of the content, or empty."""


def name_of(source: Source) -> str:
    """What to call a source in front of people."""
    if source.hugging_face is not None:
        return "Hugging Face"
    if source.model_scope is not None:
        return "ModelScope"
    if source.wheels is not None:
        return "the Python package index"
    if source.folder is not None:
        return f"the folder {source.folder}"
    return urllib.parse.urlsplit(source.url or "").hostname or "the address given"


def address(source: Source) -> str:
    """The URL of a source's file; empty for a source that has none."""
    if source.hugging_face is not None:
        return _resolve(hugging_face(), source.hugging_face, "main")
    if source.model_scope is not None:
        return _resolve(f"{model_scope()}/models", source.model_scope, "master")
    return source.url or ""


def hugging_face() -> str:
    """Base URL of Hugging Face, or of what stands in for it."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def model_scope() -> str:
    """Base URL of ModelScope, or of what stands in for it."""
    return os.environ.get("MODELSCOPE_ENDPOINT", "").rstrip("/") or "https://modelscope.cn"


def open_url(url: str, start: int = 0) -> http.client.HTTPResponse:
    """Opens an address, from byte `start` where the server can. Raises HTTPError, and NETWORK_ERRORS."""
    request = urllib.request.Request(url, headers={"User-Agent": "duologue", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    _authorize(request)
    response: http.client.HTTPResponse = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT_S)
    return response


def refusal(error: urllib.error.HTTPError, source: Source | None = None) -> str:
    """What a server's answer means, in words that say what to do where there is something to do."""
    url = error.filename or ""
    host = urllib.parse.urlsplit(url).netloc
    hub = source.hugging_face if source is not None else None
    if hub is not None and error.code in (401, 403) and _origin(url) == _origin(hugging_face()):
        terms = f"accept its terms at {hugging_face()}/{hub.repo}"
        if _token():
            return f"Hugging Face does not give {hub.repo} to the owner of HF_TOKEN ({error.code}): {terms}, or set another token"
        how = f"make a token at {hugging_face()}/settings/tokens and set HF_TOKEN to it"
        return f"Hugging Face gives {hub.repo} to known users only ({error.code}): {terms}, {how}"
    return f"{host} answered {error.code} {error.reason}".rstrip()


def unreachable(host: str, error: BaseException) -> str:
    """A connection that failed, in words."""
    return f"{host} could not be reached ({getattr(error, 'reason', None) or error or type(error).__name__})"


def list_files(source: Source) -> dict[str, Declared]:
    """Every file of the repository that a source's hub entry names, by path. Raises SourceFailed, HTTPError and NETWORK_ERRORS."""
    if source.hugging_face is not None:
        return dict(_hugging_face_files(source.hugging_face))
    if source.model_scope is not None:
        return dict(_model_scope_files(source.model_scope))
    raise AssertionError("only a hub has a list of files")


def _hugging_face_files(hub: Hub) -> Iterator[tuple[str, Declared]]:
    base = f"{hugging_face()}/api/models/{hub.repo}/tree/{urllib.parse.quote(hub.revision or 'main', safe='')}"
    query = "recursive=true"
    for _ in range(LISTING_PAGES):
        with open_url(f"{base}?{query}") as response:
            entries, link = _read_json(response, "Hugging Face"), response.headers.get("Link", "")
        for entry in _mappings(entries, "Hugging Face"):
            lfs = entry.get("lfs")
            if entry.get("type") == "file" and isinstance(lfs, dict):
                yield _declared(entry.get("path"), lfs.get("size"), sha256=lfs.get("oid"))
            elif entry.get("type") == "file":
                yield _declared(entry.get("path"), entry.get("size"), git_blob=entry.get("oid"))
        # Only the cursor of the next page is taken: a mirror passes on links that point to the original.
        following = re.search(r'<([^>]*)>;\s*rel="next"', link)
        if following is None:
            return
        query = urllib.parse.urlsplit(following[1]).query
    raise SourceFailed("Hugging Face's list of files has no end")


def _model_scope_files(hub: Hub) -> Iterator[tuple[str, Declared]]:
    query = urllib.parse.urlencode({"Revision": hub.revision or "master", "Recursive": "true"})
    with open_url(f"{model_scope()}/api/v1/models/{hub.repo}/repo/files?{query}") as response:
        answer = _read_json(response, "ModelScope")
    data = answer.get("Data") if isinstance(answer, dict) else None
    if not isinstance(data, dict) or not answer.get("Success", True):
        raise SourceFailed(f"ModelScope has no list of files of {hub.repo}")
    for entry in _mappings(data.get("Files"), "ModelScope"):
        if entry.get("Type") != "tree":
            yield _declared(entry.get("Path"), entry.get("Size"), sha256=entry.get("Sha256"))


def _declared(path: object, size: object, sha256: object = "", git_blob: object = "") -> tuple[str, Declared]:
    """An entry of a list; what is no hash is dropped, so that the file counts as one that the hub does not vouch for."""
    long = sha256 if isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) else ""
    short = git_blob if isinstance(git_blob, str) and re.fullmatch("[0-9a-f]{40}", git_blob) else ""
    return str(path), Declared(size if isinstance(size, int) else 0, long, short)


def _read_json(response: IO[bytes], hub: str) -> Any:
    try:
        return json.loads(response.read(LISTING_BYTES))
    except ValueError as error:
        raise SourceFailed(f"{hub}'s list of files cannot be read (is a login page or a proxy in between?)") from error


def _mappings(entries: object, hub: str) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SourceFailed(f"{hub}'s list of files is of an unknown form")
    return entries


def _resolve(base: str, hub: Hub, branch: str) -> str:
    return f"{base}/{hub.repo}/resolve/{hub.revision or branch}/{urllib.parse.quote(hub.path)}"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """urllib's rule, but never down to an unencrypted address, and with the token for the endpoint alone."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError("it redirects to an unencrypted address")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            _authorize(request)
        return request


def _authorize(request: urllib.request.Request) -> None:
    """Adds the token when the request goes to the endpoint; urllib does not carry this header over to a redirect."""
    if _token() and _origin(request.full_url) == _origin(hugging_face()):
        request.add_unredirected_header("Authorization", f"Bearer {_token()}")


def _token() -> str:
    return os.environ.get("HF_TOKEN", "").strip()


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc
