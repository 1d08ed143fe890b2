"""`duologue web`: the Realtime server with a page to talk to in a browser (docs/web.md). Opens no browser by itself."""

from __future__ import annotations

import argparse
import asyncio
from urllib.parse import quote

from fastapi import FastAPI

from agent.build import session_config
from agent.host import Host
from apps import serve
from apps.realtime import AccessConfig, is_local
from apps.realtime_settings import OWN_VOICE
from apps.serve_app import DrainingServer, build_app
from apps.web_blocks import PageConfig, ProfileChoice, mount_page

DEFAULT_PORT = 7860


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `duologue web`: those of `serve`, with a port of its own."""
    serve.add_arguments(parser)
    parser.set_defaults(port=DEFAULT_PORT)
    for action in parser._actions:
        if action.dest == "port":
            action.help = f"port (default: {DEFAULT_PORT}; 0 takes a free one)"


def run(args: argparse.Namespace) -> int:
    """Entry point; 0 after SIGTERM, 130 after Ctrl-C. Raises ConfigError, WeightsError, DeviceError."""
    access = serve.access_from(args)
    host = serve.host_from(args)
    server = DrainingServer(
        web_app(host, access), access, args.port, args.drain_s, ssl_certfile=args.ssl_certfile, ssl_keyfile=args.ssl_keyfile
    )
    if not is_local(args.host) and not args.ssl_certfile:
        print("Browsers give a microphone to https:// pages only: without --ssl-certfile the page works on this machine alone.")
    key = f"#key={quote(access.api_key, safe='')}" if access.api_key is not None else ""
    asyncio.run(serve.announce(server, f"/{key}", "https" if args.ssl_certfile else "http"))
    return 0


def web_app(host: Host, access: AccessConfig) -> FastAPI:
    """The server's application with the page at `/`."""
    app = build_app(host, access)
    profiles = {
        name: ProfileChoice((OWN_VOICE, *one.voices), session_config(one.profile).response.system_prompt)
        for name, one in host.loaded.items()
    }
    return mount_page(app, PageConfig(profiles, asks_key=access.api_key is not None))
