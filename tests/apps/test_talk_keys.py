"""Keys of a real pseudo-terminal, and of a Windows console that is scripted."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from types import SimpleNamespace

import pytest

from apps.talk_keys import has_keys, stop_wishes


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
async def test_keys_arrive_at_once_and_the_terminal_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with os.fdopen(theirs) as keyboard:
        monkeypatch.setattr(sys, "stdin", keyboard)
        assert has_keys()
        pressed: list[bytes] = []
        with stop_wishes(pressed.append) as wish:
            os.write(ours, b" m ")
            for _ in range(3000):
                await asyncio.sleep(0.01)
                if len(pressed) == 3:
                    break
            assert pressed == [b" ", b"m", b" "]
            os.write(ours, b"q")
            assert await asyncio.wait_for(wish, 30) == 0
        assert termios.tcgetattr(theirs) == before
    os.close(ours)


async def test_a_windows_console_is_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = [b" ", b"Q"]
    console = SimpleNamespace(kbhit=lambda: bool(waiting), getch=lambda: waiting.pop(0))
    for missing in ("termios", "tty"):
        monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, "msvcrt", console)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    pressed: list[bytes] = []
    with stop_wishes(pressed.append) as wish:
        assert await asyncio.wait_for(wish, 30) == 0
    assert pressed == [b" "]
    await asyncio.sleep(0)
    assert [task for task in asyncio.all_tasks() if task.get_name() == "keys"] == []


async def test_without_a_terminal_there_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("q"))
    assert not has_keys()
    with stop_wishes() as wish:
        await asyncio.sleep(0.05)
        assert not wish.done()
