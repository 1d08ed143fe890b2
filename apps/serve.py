"""`duologue serve`: the agent as a server that speaks the OpenAI Realtime protocol (docs/realtime.md)."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from agent.host import Host
from agent.profiles import Profile, load_profile
from agent.speakers import can_clone, check_can_clone
from apps.interrupts import put_off
from apps.realtime import AccessConfig
from apps.serve_app import DrainingServer, build_app
from apps.voice_flags import add_named_voice_arguments, named_voices_of
from duplex.errors import ConfigError

DEFAULT_PORT = 8765


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `duologue serve`."""
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"port (default: {DEFAULT_PORT}; 0 takes a free one)")
    parser.add_argument("--api-key", help="key that clients must give; needed for any other address (or set DUOLOGUE_API_KEY)")
    parser.add_argument(
        "--origin", action="append", default=[], help="web origin that may connect; may be given again, * lets all in"
    )
    parser.add_argument("--max-sessions", type=int, default=2, help="conversations at once (default: 2)")
    parser.add_argument("--max-session-s", type=float, default=3600.0, help="longest conversation in seconds (default: 3600)")
    parser.add_argument("--max-message-bytes", type=int, default=1_048_576, help="longest message of a client (default: 1 MiB)")
    parser.add_argument("--drain-s", type=float, default=20.0, help="how long SIGTERM lets responses end (default: 20)")
    parser.add_argument("--ssl-certfile", help="certificate, for wss")
    parser.add_argument("--ssl-keyfile", help="its key")
    parser.add_argument(
        "--profile",
        default="edge",
        help="profile name or YAML file, or several with commas, for clients to choose among; the first is the usual one (default: edge)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of every profile")
    add_named_voice_arguments(parser)


def access_from(args: argparse.Namespace) -> AccessConfig:
    """Who may connect, as the command line says. Raises ConfigError."""
    key = args.api_key if args.api_key is not None else os.environ.get("DUOLOGUE_API_KEY")
    if not 0 <= args.port <= 65_535:
        raise ConfigError("--port is a number from 0 to 65535.")
    return AccessConfig(args.host, key, tuple(args.origin), args.max_session_s, args.max_message_bytes)


def host_from(args: argparse.Namespace) -> Host:
    """The loaded profiles and voices that the command line asks for.

    Raises ConfigError (the certificate's options among it), WeightsError, InputError for a sample that is no voice sample.
    """
    check_certificate(args)
    profiles = profiles_from(args)
    if args.max_sessions < 1:
        raise ConfigError("--max-sessions must be at least 1.")
    voices = named_voices_of(args)
    if voices and not any(map(can_clone, profiles)):
        check_can_clone(profiles[0])
    for profile in profiles:
        if voices and not can_clone(profile):
            print(f"The voice of the profile {profile.name} cannot be cloned; it keeps its own.")
    print(f"Loading the profile{'s' if len(profiles) > 1 else ''} {', '.join(one.name for one in profiles)} ...", flush=True)
    with put_off():
        return Host.load(profiles[0], args.max_sessions, profiles[1:], voices)


def profiles_from(args: argparse.Namespace) -> list[Profile]:
    """The profiles that the command line names, the usual one first. Raises ConfigError."""
    names = [name.strip() for name in args.profile.split(",")]
    profiles = [load_profile(name, args.set) for name in names if name]
    if not profiles:
        raise ConfigError("--profile names no profile.")
    for index, profile in enumerate(profiles):
        if profile.name in [one.name for one in profiles[:index]]:
            raise ConfigError(
                f"--profile {args.profile}: two profiles are called {profile.name}; leave one out, or rename its file."
            )
    return profiles


def check_certificate(args: argparse.Namespace) -> None:
    """Raises ConfigError for a certificate without its key, or a file that cannot be read."""
    if bool(args.ssl_certfile) != bool(args.ssl_keyfile):
        raise ConfigError("A certificate and its key go together: give both --ssl-certfile and --ssl-keyfile.")
    for option, file in (("--ssl-certfile", args.ssl_certfile), ("--ssl-keyfile", args.ssl_keyfile)):
        if file and not Path(file).is_file():
            raise ConfigError(f"{option}: there is no file {file}.")


def run(args: argparse.Namespace) -> int:
    """Entry point; 0 after SIGTERM, 130 after Ctrl-C. Raises ConfigError, WeightsError, DeviceError."""
    access = access_from(args)
    host = host_from(args)
    server = DrainingServer(
        build_app(host, access), access, args.port, args.drain_s, ssl_certfile=args.ssl_certfile, ssl_keyfile=args.ssl_keyfile
    )
    asyncio.run(announce(server, "/v1/realtime", "wss" if args.ssl_certfile else "ws"))
    return 0


async def announce(server: DrainingServer, path: str, scheme: str) -> None:
    """Serve, and print the address once it is open."""
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110  (uvicorn tells nobody)
            await asyncio.sleep(0.02)
        if server.started and server.servers:
            address, port = server.servers[0].sockets[0].getsockname()[:2]
            name = f"[{address}]" if ":" in address else address
            print(f"Listening on {scheme}://{name}:{port}{path}", flush=True)
        await serving
    finally:
        if not serving.done():
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
