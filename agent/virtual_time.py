"""An event loop on a manual clock: time stands still while code runs and jumps to the next timer when nothing is ready.

A conversation on this loop behaves as it would in real time, without the waiting: a file is answered faster than it plays, and a test
of a minute's talk takes milliseconds. Work that takes real time must say how long it took by sleeping so long (`agent.worker` does).
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector:
    """Asks the real selector without waiting, and lets the loop's clock jump by the time it would have waited."""

    def __init__(self, inner: selectors.BaseSelector) -> None:
        self._inner = inner
        self.jump = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:  # no timer at all: only another thread or a signal can wake the loop
            return self._inner.select(None)
        ready = self._inner.select(0)
        if not ready:
            self.jump += max(timeout, 0.0)
        return ready

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`loop.time()` starts at 0 and moves only by jumps from timer to timer."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector(selectors.DefaultSelector())
        super().__init__(self._jumping)  # type: ignore[arg-type]

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.jump


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a virtual clock."""
    result: list[T] = []

    # the runner prints its task's result when it puts Ctrl-C back, and printing a conversation takes seconds
    async def keep() -> None:
        result.append(await main)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(keep())
    return result[0]
