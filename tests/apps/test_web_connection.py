"""The page in a real Chromium when there is no microphone, no place, no server, or no connection any more: it says so, and comes back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra web: pip install 'duologue[web]'")

from fastapi import FastAPI

from apps.web_blocks import mount_page
from tests.apps.browser import browser_page, write_microphone
from tests.apps.scripted_realtime import ScriptedRealtime, free_port, running
from tests.apps.web_stage import PAGE, page_served, talk, tone

pytestmark = pytest.mark.browser


@pytest.fixture
def server() -> Iterator[tuple[ScriptedRealtime, str]]:
    with page_served() as served:
        yield served


def test_a_server_that_is_full_is_told(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    scripted, url = server
    scripted.refuse_with = 1013
    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 0.1), 24000)) as (page, _):
        talk(page, url)
        page.wait_for_function("document.querySelector('.problem').textContent.includes('All places')")
        assert page.get_by_role("button", name="Talk").is_enabled()
        assert len(scripted.queries) == 1, "a page does not hammer on a full server"
        scripted.refuse_with = None
        page.get_by_role("button", name="Talk").click()
        scripted.wait_for(lambda: scripted.of("session.update"))
        assert page.get_by_role("alert").first.is_hidden()


def test_a_lost_connection_comes_back_with_its_token(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    scripted, url = server
    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 0.1), 24000)) as (page, _):
        talk(page, url, scripted)
        scripted.keep_session = True
        scripted.close(1011)
        scripted.wait_for(lambda: len(scripted.queries) == 2)
        assert scripted.queries[1]["resume"] == "token_1"
        page.wait_for_function("document.querySelector('.status').textContent === 'Listening.'")
        assert "new conversation" not in page.get_by_role("log").inner_text()
        scripted.keep_session = False
        scripted.close(1012)
        scripted.wait_for(lambda: len(scripted.queries) == 3)
        page.wait_for_function("document.querySelector('.transcript').textContent.includes('A new conversation begins')")
        scripted.close(1008)
        page.wait_for_selector(".problem:not([hidden])")
        assert page.get_by_role("button", name="Talk").is_enabled()


def test_a_server_that_is_gone_and_comes_back(tmp_path: Path) -> None:
    scripted, port = ScriptedRealtime(), free_port()

    def app() -> FastAPI:
        app = FastAPI()
        scripted.install(app)
        return mount_page(app, PAGE)

    with browser_page(write_microphone(tmp_path / "mic.wav", tone(440, 0.1), 24000)) as (page, _):
        with running(app(), port) as url:
            talk(page, url, scripted)
        page.wait_for_function("document.querySelector('.status').textContent.includes('trying to come back')")
        with running(app(), port):
            scripted.wait_for(lambda: len(scripted.queries) == 2)
            page.wait_for_function("document.querySelector('.status').textContent === 'Listening.'")
            page.get_by_role("button", name="Stop", exact=True).click()
        page.get_by_role("button", name="Talk").click()
        page.wait_for_function("document.querySelector('.problem').textContent.includes('does not answer')")


def test_a_refused_or_missing_microphone_is_explained(server: tuple[ScriptedRealtime, str], tmp_path: Path) -> None:
    scripted, url = server
    with browser_page(tmp_path / "none.wav", allow_microphone=False, permissions=[]) as (page, _):
        page.goto(url)
        page.evaluate(
            "() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', window.refusal)); }"
        )
        for refusal, words in {
            "NotAllowedError": "Allow it",
            "NotFoundError": "Plug one in",
            "NotReadableError": "Close that program",
        }.items():
            page.evaluate("(name) => { window.refusal = name; }", refusal)
            page.get_by_role("button", name="Talk").click()
            page.wait_for_function("(words) => document.querySelector('.problem').textContent.includes(words)", arg=words)
            assert page.get_by_role("button", name="Talk").is_enabled()
        assert scripted.queries == [], "no session is opened without a microphone"


def test_a_browser_that_denies_the_microphone(server: tuple[ScriptedRealtime, str]) -> None:
    """The browser's own refusal, not one we made up."""
    _, url = server
    with browser_page(None, allow_microphone=False, arguments=("--deny-permission-prompts",)) as (page, _):
        talk(page, url)
        page.wait_for_selector(".problem:not([hidden])")
        assert re.search("Allow it|There is no microphone", page.get_by_role("alert").first.inner_text())


def test_an_insecure_page_says_what_to_do(server: tuple[ScriptedRealtime, str]) -> None:
    _, url = server
    with browser_page(None, arguments=("--host-resolver-rules=MAP duologue.test 127.0.0.1",)) as (page, _):
        page.unroute("**/*")
        page.goto(url.replace("127.0.0.1", "duologue.test"))
        page.wait_for_selector(".problem:not([hidden])")
        assert "--ssl-certfile" in page.get_by_role("alert").first.inner_text()
