"""Single keys of a terminal, without Enter; and the wish to stop, by q or Ctrl-C. The terminal is left as it was found."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

POLL_S = 0.05  # on Windows, where the console cannot be waited for


def has_keys() -> bool:
    """Whether single keys can be read from stdin."""
    return sys.stdin is not None and sys.stdin.isatty()


@contextlib.contextmanager
def stop_wishes(other_key: Callable[[bytes], None] | None = None) -> Iterator[asyncio.Future[int]]:
    """A future that holds the exit code once the user wants to stop: 0 for q, 130 for Ctrl-C. Other keys go to `other_key`."""
    loop = asyncio.get_running_loop()
    wish: asyncio.Future[int] = loop.create_future()

    def stop(code: int) -> None:
        if not wish.done():
            wish.set_result(code)

    def pressed(key: bytes) -> None:
        if key in (b"q", b"Q"):
            stop(0)
        elif other_key is not None:
            other_key(key)

    with contextlib.ExitStack() as stack:
        stack.callback(wish.cancel)
        with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows, or not the main thread: KeyboardInterrupt does it
            loop.add_signal_handler(signal.SIGINT, stop, 128 + signal.SIGINT)
            stack.callback(loop.remove_signal_handler, signal.SIGINT)
        if has_keys():
            stack.enter_context(_keys(pressed))
        yield wish


@contextlib.contextmanager
def _keys(pressed: Callable[[bytes], None]) -> Iterator[None]:
    """Calls `pressed(byte)` for each key, unbuffered."""
    try:
        import termios
        import tty
    except ImportError:
        with _console_keys(pressed):
            yield
        return
    loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)

    def read() -> None:
        keys = os.read(keyboard, 64)
        if not keys:  # the terminal is gone
            loop.remove_reader(keyboard)
        for key in keys:
            pressed(bytes([key]))

    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, read)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _console_keys(pressed: Callable[[bytes], None]) -> Iterator[None]:
    """The same on a Windows console."""
    import importlib
    from typing import Any

    console: Any = importlib.import_module("msvcrt")

    async def poll() -> None:
        while True:
            while console.kbhit():
                pressed(console.getch())
            await asyncio.sleep(POLL_S)

    polling = asyncio.create_task(poll(), name="keys")
    try:
        yield
    finally:
        polling.cancel()
