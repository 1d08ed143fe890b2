"""`duologue mqtt`: the agent as the dialogue manager, the ears and the voice of a voice assistant whose parts talk Hermes over MQTT.

Options are named as all Rhasspy services name them. Broker, sites and conversations are put together here; what they do is in the files
named `mqtt_...` and `hermes...`, and for users in docs/mqtt.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from agent.build import build_parts
from agent.host import Host
from agent.profiles import load_profile
from apps import hermes
from apps.interrupts import put_off
from apps.mqtt_conversation import ConversationConfig, OpenSession
from apps.mqtt_dialogue import Dialogue
from apps.mqtt_link import BrokerConfig, Link
from apps.mqtt_playback import PlaybackConfig
from duplex.errors import ConfigError

log = logging.getLogger("duologue.mqtt")

PASSWORD_VARIABLE = "DUOLOGUE_MQTT_PASSWORD"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `duologue mqtt`."""
    broker, talk, voice = BrokerConfig(), ConversationConfig(), PlaybackConfig()
    parser.add_argument("--host", default=broker.host, help="the broker (default: %(default)s)")
    parser.add_argument("--port", type=int, help="its port (default: 1883, with --tls 8883)")
    parser.add_argument("--username", help="user name at the broker")
    parser.add_argument("--password", help=f"its password; better in the environment as {PASSWORD_VARIABLE}")
    parser.add_argument("--tls", action="store_true", help="encrypt the connection")
    parser.add_argument("--tls-ca-certs", metavar="PEM", help="authorities to believe (default: the system's)")
    parser.add_argument("--tls-certfile", metavar="PEM", help="our own certificate, where the broker wants one")
    parser.add_argument("--tls-keyfile", metavar="PEM", help="its key")
    parser.add_argument(
        "--tls-cert-reqs", default="CERT_REQUIRED", choices=("CERT_REQUIRED", "CERT_NONE"), help="CERT_NONE: try out"
    )
    parser.add_argument("--site-id", action="append", default=[], metavar="SITE", help="serve this site only (repeatable)")
    parser.add_argument("--max-sessions", type=int, default=4, help="conversations at the same time (default: %(default)s)")
    parser.add_argument("--streaming", action="store_true", help="send playBytesStreaming instead of playBytes")
    parser.add_argument("--chunk-ms", type=int, help="length of a piece of voice (default: 300, with --streaming 100)")
    parser.add_argument(
        "--lead-ms", type=int, default=voice.lead_ms, help="how early the next piece is sent (default: %(default)s)"
    )
    parser.add_argument("--play-rate", type=int, default=voice.rate_hz, metavar="HZ", help="its sample rate (default: %(default)s)")
    parser.add_argument("--half-duplex", action="store_true", help="for satellites that do not cancel the agent's echo")
    seconds: dict[str, Any] = {"type": float, "metavar": "S"}
    parser.add_argument("--quiet", **seconds, default=talk.quiet_s, help="silence that ends a conversation (default: %(default)g)")
    parser.add_argument("--starved", **seconds, default=talk.starved_s, help="time without audio that does (default: %(default)g)")
    parser.add_argument("--longest", **seconds, default=talk.longest_s, help="longest conversation (default: %(default)g)")
    parser.add_argument("--levels", action="store_true", help="publish levels as events, too")
    parser.add_argument("--debug", action="store_true", help="say what comes and goes")
    parser.add_argument("--profile", default="edge", help="profile name or YAML file (default: edge)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a profile key")
    parser.add_argument("--system", help="what to tell the LLM it is")


def run(args: argparse.Namespace) -> int:
    """Entry point; 130 after Ctrl-C, 0 after SIGTERM. Raises ConfigError, WeightsError."""
    if args.debug:
        logging.getLogger("duologue").setLevel(logging.DEBUG)
    broker, talk, sites = broker_config(args), conversation_config(args), site_ids(args)
    link = Link(broker, hermes.topics(sites))
    profile = load_profile(args.profile, args.set)
    print(f"Loading the profile {profile.name} ...", flush=True)
    with put_off():
        parts = build_parts(profile)
    where = f"the sites {', '.join(sites)}" if sites else "all sites"
    print(f"Serving {where} at the broker {broker.address}. Ctrl-C ends.", flush=True)
    factory = asyncio.SelectorEventLoop if sys.platform == "win32" else None  # the MQTT library needs add_reader
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_host(args, Host(profile, parts, max_sessions=args.max_sessions), link, talk, sites))


async def _host(args: argparse.Namespace, host: Host, link: Link, talk: ConversationConfig, sites: tuple[str, ...]) -> int:
    async with host:
        code = await serve(link, partial(host.session, system_prompt=args.system), talk, sites, host.max_sessions)
    if host.deadline_misses:
        log.warning(
            "This machine was too late %d times: the profile is too large for it, or too many talk at once.", host.deadline_misses
        )
    return code


async def serve(
    link: Link, open_session: OpenSession, talk: ConversationConfig | None = None, sites: tuple[str, ...] = (), sessions: int = 4
) -> int:
    """Serve until SIGINT (130) or SIGTERM (0); says goodbye to the broker. Raises ConfigError when the broker will not have us.

    Cancelling does the same without the exit code.
    """
    with _stop_wishes() as wish:
        async with Dialogue(open_session, link.send, talk, sites, sessions) as dialogue:

            def changed(connected: bool) -> None:
                if connected:
                    print(f"Connected to the broker {link.config.address}.", flush=True)
                dialogue.changed(connected)

            serving = asyncio.create_task(link.run(dialogue.take, changed), name="mqtt-link")
            try:
                ends: set[asyncio.Future[Any]] = {serving, wish}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    serving.result()
            finally:
                await dialogue.close()
                if link.connected:
                    link.send(hermes.status(False))
                    await link.flush()
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
        return wish.result() if wish.done() else 0


def broker_config(args: argparse.Namespace) -> BrokerConfig:
    """Where the broker is. Raises ConfigError."""
    return BrokerConfig(
        host=args.host,
        port=args.port,
        username=args.username,
        password=args.password if args.password is not None else os.environ.get(PASSWORD_VARIABLE),
        tls=args.tls,
        tls_ca_certs=args.tls_ca_certs,
        tls_certfile=args.tls_certfile,
        tls_keyfile=args.tls_keyfile,
        tls_check=args.tls_cert_reqs == "CERT_REQUIRED",
    )


def conversation_config(args: argparse.Namespace) -> ConversationConfig:
    """How conversations are held. Raises ConfigError."""
    chunk_ms = args.chunk_ms if args.chunk_ms is not None else (100 if args.streaming else PlaybackConfig.chunk_ms)
    if args.max_sessions < 1:
        raise ConfigError("--max-sessions must be at least 1.")
    return ConversationConfig(
        quiet_s=args.quiet,
        starved_s=args.starved,
        longest_s=args.longest,
        half_duplex=args.half_duplex,
        levels=args.levels,
        playback=PlaybackConfig(chunk_ms, args.lead_ms, args.streaming, args.play_rate),
    )


def site_ids(args: argparse.Namespace) -> tuple[str, ...]:
    """The sites to serve; none for all. Raises ConfigError."""
    for site in args.site_id:
        if not hermes.is_name(site):
            raise ConfigError(f"--site-id {site!r}: a site's name is 1 to {hermes.MOST_NAME} printable characters without / + #.")
    return tuple(dict.fromkeys(args.site_id))


@contextlib.contextmanager
def _stop_wishes() -> Iterator[asyncio.Future[int]]:
    """A future that holds the exit code once somebody wants the program to stop."""
    loop = asyncio.get_running_loop()
    wish: asyncio.Future[int] = loop.create_future()

    def stop(code: int) -> None:
        if not wish.done():
            wish.set_result(code)

    with contextlib.ExitStack() as stack:
        stack.callback(wish.cancel)
        for number, code in ((signal.SIGINT, 128 + signal.SIGINT), (signal.SIGTERM, 0)):
            with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows, or not the main thread
                loop.add_signal_handler(number, stop, code)
                stack.callback(loop.remove_signal_handler, number)
        yield wish
