"""`duologue talk`: a conversation through the microphone and the loudspeaker, shown live.

On a terminal the screen is redrawn ten times a second; elsewhere each finished turn is a line. The devices are looked up before the
models load, so that a wrong name is told at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
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
from apps.talk_view import TalkView
from duplex.echo import EchoKind

REDRAW_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `duologue talk`."""
    parser.add_argument("--input", metavar="NAME", help="microphone: its number, or a part of its name (see `duologue devices`)")
    parser.add_argument("--output", metavar="NAME", help="loudspeaker, likewise")
    parser.add_argument(
        "--echo", choices=get_args(EchoKind), help="how to keep the agent from hearing itself; none with headphones"
    )
    parser.add_argument("--profile", default="edge", help="profile name or YAML file (default: edge)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a profile key")
    parser.add_argument("--system", help="what to tell the LLM it is")
    parser.add_argument("--record", metavar="DIR", type=Path, help="write conversation.wav and events.jsonl into this folder")


def run(args: argparse.Namespace) -> int:
    """Entry point; 0 after q, 130 after Ctrl-C. Raises DeviceError, ConfigError, WeightsError, OutputError."""
    devices = list_devices()
    find_device("input", args.input, devices)
    find_device("output", args.output, devices)
    profile = load_profile(args.profile, args.set)
    console = Console()
    console.print(f"Loading the profile {profile.name} ...")
    with put_off():
        parts = build_parts(profile)
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
            transport: Transport = cards if recorder is None else RecordedTransport(cards, recorder)
            session = build_session(profile, parts, transport, worker, echo=args.echo, system_prompt=args.system)
            return await converse(session, view, console, recorder, cards)
    finally:
        worker.close()


async def converse(
    session: Session, view: TalkView, console: Console, recorder: Recorder | None = None, cards: SoundCards | None = None
) -> int:
    """Show a session until its transport ends, q is typed, or Ctrl-C comes; the exit code. Raises what broke the session."""
    events = session.events()
    # redrawn by our own task: rich's thread would read the view while events change it
    live = Live(get_renderable=view.render, console=console, auto_refresh=False) if console.is_terminal else None

    async def show() -> None:
        async for event in events:
            if recorder is not None:
                recorder.event(event)
            view.underruns = session.playout.underruns + (cards.stats.underruns if cards is not None else 0)
            for line in view.take(event):
                if live is None:
                    console.print(line, highlight=False, markup=False, soft_wrap=True)

    async def redraw() -> None:
        while live is not None:
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
    with live or contextlib.nullcontext(), _stop_wishes() as wish:
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


@contextlib.contextmanager
def _stop_wishes() -> Iterator[asyncio.Future[int]]:
    """A future that holds the exit code once the user wants to stop: 0 for q, 130 for Ctrl-C. The terminal is left as it was."""
    loop = asyncio.get_running_loop()
    wish: asyncio.Future[int] = loop.create_future()

    def stop(code: int) -> None:
        if not wish.done():
            wish.set_result(code)

    with contextlib.ExitStack() as stack:
        stack.callback(wish.cancel)
        with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows, or not the main thread: KeyboardInterrupt does it
            loop.add_signal_handler(signal.SIGINT, stop, 128 + signal.SIGINT)
            stack.callback(loop.remove_signal_handler, signal.SIGINT)
        if sys.stdin is not None and sys.stdin.isatty():
            stack.enter_context(_keys(lambda key: stop(0) if key in (b"q", b"Q") else None))
        yield wish


@contextlib.contextmanager
def _keys(pressed: Callable[[bytes], None]) -> Iterator[None]:
    """Calls `pressed(byte)` for each key on a POSIX terminal, unbuffered; elsewhere Ctrl-C has to do."""
    try:
        import termios
        import tty
    except ImportError:
        yield
        return
    loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, lambda: pressed(os.read(keyboard, 1)))
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
