"""Blocking calls of a sound library on a thread that nobody has to wait for.

A sound system that died can hang in open or close for ever, so the event loop's own pool, which is joined at the end, will not do.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def aside(work: Callable[[], T], limit_s: float, late: Callable[[T], object] | None = None) -> T:
    """Run `work` on a daemon thread and give its result, or raise what it raised.

    Raises TimeoutError after `limit_s`. The call goes on behind the back of one that was cancelled or ran out of time; what it gives
    in the end is handed to `late`, on a thread, to be closed.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def unwanted(result: T) -> None:
        if late is not None:
            threading.Thread(target=late, args=(result,), daemon=True, name="late-sound").start()

    def give(result: T) -> None:
        if done.done():
            unwanted(result)
        else:
            done.set_result(result)

    def fail(error: BaseException) -> None:
        if not done.done():
            done.set_exception(error)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            _post(loop, fail, error)
        else:
            if not _post(loop, give, result):
                unwanted(result)

    threading.Thread(target=run, daemon=True, name="sound").start()
    async with asyncio.timeout(limit_s):
        return await done


def _post(loop: asyncio.AbstractEventLoop, call: Callable[[T], None], value: T) -> bool:
    """False when the loop has ended and nobody waits."""
    try:
        loop.call_soon_threadsafe(call, value)
    except RuntimeError:
        return False
    return True
