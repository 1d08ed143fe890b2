"""The Gradio page of `duologue web`: settings as Gradio components, the conversation as one HTML block driven by our own ES modules.

Everything runs in the browser: no event calls Python, so a page costs the server nothing until it talks. The modules in `web_page/` and
Gradio's own assets are served from here; the page's content security policy forbids the browser to fetch anything else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ASSETS = Path(__file__).parent / "web_page"
ASSETS_PATH = "/web_page"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
"""Gradio's own page needs inline scripts and evaluation; nothing needs another host."""

EAGERNESS = (("Patient", "low"), ("Normal", "auto"), ("Quick", "high"))

_START = f"""
import("{ASSETS_PATH}/page.js").then(({{ start }}) => {{
  const key = new URLSearchParams(window.location.hash.slice(1)).get("key") ?? "";
  window.duologue = start(element, {{ key }});
  if (window.duologueSettings) window.duologue.configure(window.duologueSettings);
}});
"""
_CONFIGURE = """(profile, voice, instructions, eagerness, key) => {
  window.duologueSettings = { profile, voice, instructions, eagerness, key };
  window.duologue?.configure(window.duologueSettings);
}"""


_CHOOSE = """(choices) => (profile, voice, instructions) => {
  const { voices, instructions: prompt } = choices[profile];
  const own = !Object.values(choices).some((choice) => choice.instructions === instructions);
  const value = voices.includes(voice) ? voice : voices[0];
  const offered = { choices: voices.map((name) => [name, name]), value, visible: voices.length > 1 };
  return [{ __type__: "update", ...offered }, own ? instructions : prompt];
}"""
"""The voices of another profile, and its system prompt unless the user has written one."""


@dataclass(frozen=True)
class ProfileChoice:
    """One profile that the server has loaded."""

    voices: tuple[str, ...]
    """Its voices, its own first; asked for only when there are several."""
    instructions: str
    """The system prompt to begin with."""

    def __post_init__(self) -> None:
        if not self.voices:
            raise ValueError("a profile has at least one voice")


@dataclass(frozen=True)
class PageConfig:
    """What the page offers."""

    profiles: Mapping[str, ProfileChoice]
    """By name; the first is chosen."""
    asks_key: bool = False
    """Whether the server wants an access key."""

    def __post_init__(self) -> None:
        if not self.profiles:
            raise ValueError("the page needs at least one loaded profile")


def build_page(config: PageConfig) -> gr.Blocks:
    """The page by itself."""
    names, first = list(config.profiles), next(iter(config.profiles.values()))
    page: gr.Blocks
    with gr.Blocks(title="Duologue", analytics_enabled=False) as page:
        gr.HTML("<h1>Duologue</h1>", padding=False)
        gr.HTML(html_template=(ASSETS / "page.html").read_text(encoding="utf-8"), js_on_load=_START, apply_default_css=False)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            about: dict[str, Any] = {"info": "Whom you talk with from the next Talk on."} if len(names) > 1 else {}
            profile = gr.Dropdown(names, value=names[0], label="Profile", interactive=len(names) > 1, **about)
            voice = gr.Dropdown(list(first.voices), value=first.voices[0], label="Voice", visible=len(first.voices) > 1)
            instructions = gr.Textbox(
                first.instructions,
                label="System prompt",
                info="What the agent is told to be; it holds from its next answer on.",
                lines=3,
            )
            eagerness = gr.Radio(
                list(EAGERNESS),
                value="auto",
                label="Eagerness",
                info="How soon the agent takes your pause for the end of your turn.",
            )
            key = gr.Textbox("", label="Access key", type="password", visible=config.asks_key)
        settings = [profile, voice, instructions, eagerness, key]
        page.load(fn=None, inputs=settings, js=_CONFIGURE)
        choices = json.dumps({name: asdict(choice) for name, choice in config.profiles.items()})
        chosen = profile.change(
            fn=None, inputs=[profile, voice, instructions], outputs=[voice, instructions], js=f"({_CHOOSE})({choices})"
        )
        chosen.then(fn=None, inputs=settings, js=_CONFIGURE)
        for listen in (voice.change, eagerness.change, instructions.blur, key.change, key.blur):
            listen(fn=None, inputs=settings, js=_CONFIGURE)
    return page


def mount_page(app: FastAPI, config: PageConfig) -> FastAPI:
    """The page at `/` of a server whose other routes are already there. Returns the app to run."""
    app.mount(ASSETS_PATH, _Fresh(directory=ASSETS), name="web_page")
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        build_page(config),
        path="/",
        theme=_theme(),
        css_paths=[ASSETS / "page.css"],
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        max_file_size="1kb",  # nothing is uploaded here
    )
    mounted.add_middleware(_Headers)
    return mounted


def _theme() -> gr.themes.Base:
    """Fonts of the system, as Gradio's come from another host; quiet text that can still be read."""
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    quiet = {
        f"{name}{scheme}": color
        for name in ("body_text_color_subdued", "block_info_text_color", "block_label_text_color", "block_title_text_color")
        for scheme, color in (("", "#52525b"), ("_dark", "#a1a1aa"))
    }
    adjusted: gr.themes.Base = theme.set(**quiet)
    return adjusted


class _Fresh(StaticFiles):
    """Our own modules: the browser asks each time whether they changed, so that a page never mixes two versions."""

    def file_response(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "no-cache"
        return response


class _Headers:
    """Adds the security headers to each answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Permissions-Policy"] = "microphone=(self)"
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)
