"""Addresses and redirects of the hubs; the conversations with them are in test_weight_repositories.py."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

import pytest

from agent import weight_cache, weight_hubs
from agent.weight_list import Hub, Source


def test_addresses_are_the_hubs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, "")  # set but empty counts as not set
    hub = Hub("owner/name", "a folder/w.bin", "")
    assert weight_hubs.address(Source(hugging_face=hub)) == "https://huggingface.co/owner/name/resolve/main/a%20folder/w.bin"
    assert weight_hubs.address(Source(model_scope=hub)) == "https://modelscope.cn/models/owner/name/resolve/master/a%20folder/w.bin"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert weight_hubs.address(Source(hugging_face=hub)).startswith("https://mirror.example/owner/name/")


def redirected(origin: str, to: str) -> urllib.request.Request | None:
    request = urllib.request.Request(origin)
    weight_hubs._authorize(request)
    return weight_hubs._Redirects().redirect_request(request, io.BytesIO(), 302, "Found", Message(), to)  # type: ignore[arg-type]


def test_the_token_follows_a_redirect_within_the_endpoint_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    home = "https://huggingface.co"
    renamed = redirected(f"{home}/old/name/resolve/main/w", f"{home}/new/name/resolve/main/w")
    assert renamed is not None and renamed.get_header("Authorization") == "Bearer secret"
    for elsewhere in ("https://cdn.example/w", "https://huggingface.co.example/w", "https://huggingface.co:8443/w"):
        away = redirected(f"{home}/old/name/resolve/main/w", elsewhere)
        assert away is not None and away.get_header("Authorization") is None


def test_no_redirect_leads_to_an_unencrypted_address() -> None:
    with pytest.raises(urllib.error.URLError, match="unencrypted"):
        redirected("https://huggingface.co/x", "http://huggingface.co/x")


def test_gits_name_of_a_content_is_gits(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello\n")
    assert weight_cache.git_blob_sha1(tmp_path / "file") == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
