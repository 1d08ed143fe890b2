"""`duologue talk`: a conversation through the microphone and the loudspeaker, shown live.

On a terminal the screen is redrawn ten times a second; elsewhere each finished turn is a line. The devices are looked up before the
models load, so that a wrong name is told at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.live import Live

from agent.build import build_parts, build_session
from agent.parts import Parts
from agent.profiles import Profile, load_profile
from agent.session import Session
from agent.transport import Transport
from agent.worker import Worker
from apps.devices import find_device, list_devices
from apps.interrupts import put_off
from apps.recorder import RecordedTransport, Recorder
from apps.sound_cards import SoundCards
from apps.talk_keys import has_keys, stop_wishes
from apps.talk_microphone import GatedTransport, MicrophoneGate
from apps.talk_view import TalkView
from apps.voice_flags import add_voice_arguments, voice_of
from duplex.echo import EchoKind
from duplex.errors import ConfigError
from duplex.events import Event, Trouble

REDRAW_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `duologue talk`."""
    parser.add_argument("--input", metavar="NAME", help="microphone: its number, or a part of its name (see `duologue devices`)")
    parser.add_argument("--output", metavar="NAME", help="loudspeaker, likewise")
    echo = parser.add_mutually_exclusive_group()
    echo.add_argument("--echo", choices=get_args(EchoKind), help="how to keep the agent from hearing itself; none with headphones")
    echo.add_argument(
        "--half-duplex",
        dest="echo",
        action="store_const",
        const="half_duplex",
        help="shut the microphone while the agent speaks (the same as --echo half_duplex)",
    )
    parser.add_argument(
        "--push-to-talk", action="store_true", help="the microphone is shut until you press space, and after the next press again"
    )
    parser.add_argument("--profile", default="edge", help="profile name or YAML file (default: edge)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a profile key")
    parser.add_argument("--system", help="what to tell the LLM it is")
    add_voice_arguments(parser)
    parser.add_argument("--record", metavar="DIR", type=Path, help="write conversation.wav and events.jsonl into this folder")


def run(args: argparse.Namespace) -> int:
    """Entry point; 0 after q, 130 after Ctrl-C. Raises DeviceError, ConfigError, InputError, WeightsError, OutputError."""
    if args.push_to_talk and not has_keys():
        raise ConfigError("--push-to-talk needs a terminal whose keys can be read; start it in one, or leave the option out.")
    devices = list_devices()
    find_device("input", args.input, devices)
    find_device("output", args.output, devices)
    profile = load_profile(args.profile, args.set)
    voice = voice_of(args)
    console = Console()
    console.print(f"Loading the profile {profile.name} ...")
    with put_off():
        parts = build_parts(profile, voice=voice)
    view = TalkView()
    with contextlib.ExitStack() as stack:
        recorder = stack.enter_context(Recorder(args.record)) if args.record else None
        try:
            code = asyncio.run(_talk(args, profile, parts, view, console, recorder))
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        finally:
            for line in view.summary():
                console.print(line, highlight=False)
            if recorder is not None:
                recorder.close()
                console.print(f"Recorded in {recorder.folder}.", highlight=False)
    if recorder is not None and recorder.failure is not None:
        raise recorder.failure
    return code


async def _talk(
    args: argparse.Namespace, profile: Profile, parts: Parts, view: TalkView, console: Console, recorder: Recorder | None
) -> int:
    worker = Worker()
    try:
        async with await SoundCards.open(args.input, args.output) as cards:
            console.print("Listening to {}, speaking through {}.".format(*cards.names()), highlight=False)
            gate = MicrophoneGate(args.push_to_talk)
            transport: Transport = cards if recorder is None else RecordedTransport(cards, recorder, gate.shut)
            gated = GatedTransport(transport, gate)
            session = build_session(profile, parts, gated, worker, echo=args.echo, system_prompt=args.system)
            return await converse(session, view, console, recorder, cards, gate)
    finally:
        worker.close()


async def converse(
    session: Session,
    view: TalkView,
    console: Console,
    recorder: Recorder | None = None,
    cards: SoundCards | None = None,
    gate: MicrophoneGate | None = None,
) -> int:
    """Show a session until its transport ends, q is typed, or Ctrl-C comes; the exit code. Raises what broke the session."""
    events = session.events()
    gate = gate or MicrophoneGate()
    # redrawn by our own task: rich's thread would read the view while events change it
    live = Live(get_renderable=view.render, console=console, auto_refresh=False) if console.is_terminal else None

    def take(event: Event) -> None:
        if recorder is not None:
            recorder.event(event)
        for line in view.take(event):
            if live is None:
                console.print(line, highlight=False, markup=False, soft_wrap=True)

    def look() -> None:
        """What the view shows besides events."""
        view.underruns = session.playout.underruns + (cards.stats.underruns if cards is not None else 0)
        view.microphone, view.keys = gate.state(), gate.keys()
        if cards is not None:
            view.device_ms = cards.latency_ms()
        if session.echo is not None:
            view.echo, view.echo_trusted = session.echo.kind, session.echo.trusted

    async def show() -> None:
        async for event in events:
            look()
            take(event)

    if cards is not None:
        cards.on_note = lambda text: take(Trouble(session.now, text))
        cards.on_reopened = lambda: session.echo.reset() if session.echo is not None else None

    async def redraw() -> None:
        while live is not None:
            look()
            live.refresh()
            await asyncio.sleep(REDRAW_S)

    async def last_until(wish: asyncio.Future[int]) -> None:
        over = asyncio.create_task(session.wait(), name="wait")
        ends: set[asyncio.Future[Any]] = {over, wish}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if over.done():
            over.result()
        over.cancel()
        await asyncio.gather(over, return_exceptions=True)

    showing = asyncio.create_task(show(), name="show")
    redrawing = asyncio.create_task(redraw(), name="redraw")
    with live or contextlib.nullcontext(), stop_wishes(gate.press) as wish:
        try:
            async with session:
                await last_until(wish)
        finally:
            await asyncio.wait({showing}, timeout=1)  # the session has closed its events; the last ones shall be seen
            for task in (showing, redrawing):
                task.cancel()
            await asyncio.gather(showing, redrawing, return_exceptions=True)
        code = wish.result() if wish.done() else 0
    return code
