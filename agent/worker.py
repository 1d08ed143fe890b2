"""The model worker: where models run, so that the event loop never waits for one.

Work comes as short jobs (one LLM token, one transcript, one chunk of sound). A job belongs to a lane, and a lane runs one job at a time,
so a model's state needs no lock. Among the lanes that are free, listening goes before speaking, speaking before thinking, and thinking
before speculation. `Worker` has real threads; `VirtualWorker` runs jobs at once on a virtual clock and charges their time to it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Priority(IntEnum):
    """Who goes first."""

    LISTEN = 0
    SPEAK = 1
    THINK = 2
    SPECULATE = 3


@dataclass(slots=True)
class LaneStats:
    """What a lane has done so far."""

    jobs: int = 0
    busy_s: float = 0.0
    longest_s: float = 0.0
    longest_wait_s: float = 0.0

    def note(self, took_s: float, waited_s: float) -> None:
        self.jobs += 1
        self.busy_s += took_s
        self.longest_s = max(self.longest_s, took_s)
        self.longest_wait_s = max(self.longest_wait_s, waited_s)


class ModelWorker(Protocol):
    """Runs jobs somewhere else."""

    stats: dict[str, LaneStats]

    async def run(self, priority: Priority, lane: str, job: Callable[..., T], *args: Any) -> T:
        """`job(*args)`. Cancelling takes a waiting job off the queue; a running one ends by itself and its result is dropped."""
        ...

    def close(self) -> None:
        """No more jobs; running ones end."""
        ...


@dataclass(order=True, slots=True)
class _Job:
    rank: tuple[int, int]
    lane: str = field(compare=False)
    call: Callable[[], Any] = field(compare=False)
    future: asyncio.Future[Any] = field(compare=False)
    loop: asyncio.AbstractEventLoop = field(compare=False)
    queued: float = field(compare=False)


class Worker:
    """`threads` daemon threads over one priority queue with lanes."""

    def __init__(self, threads: int = 2) -> None:
        self.stats: dict[str, LaneStats] = {}
        self._waiting: list[_Job] = []
        self._busy: set[str] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._order = itertools.count()
        self._threads = [threading.Thread(target=self._serve, name=f"models-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    async def run(self, priority: Priority, lane: str, job: Callable[..., T], *args: Any) -> T:
        """See ModelWorker. Raises RuntimeError when the worker is closed."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        entry = _Job((int(priority), next(self._order)), lane, lambda: job(*args), future, loop, time.perf_counter())
        with self._changed:
            if self._closed:
                raise RuntimeError("The model worker is closed.")
            heapq.heappush(self._waiting, entry)
            self._changed.notify()
        return await future

    def close(self) -> None:
        """Stop taking jobs, wait for the running ones."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=10)

    def _serve(self) -> None:
        while (job := self._take()) is not None:
            started = time.perf_counter()
            result: Any = None
            error: BaseException | None = None
            try:
                result = job.call()
            except BaseException as e:  # the waiter gets it, whatever it is
                error = e
            took = time.perf_counter() - started
            with self._changed:
                self._busy.discard(job.lane)
                self.stats.setdefault(job.lane, LaneStats()).note(took, started - job.queued)
                self._changed.notify()
            try:
                job.loop.call_soon_threadsafe(_deliver, job.future, result, error)
            except RuntimeError:  # the loop is gone: nobody is waiting
                continue
            finally:
                del job, result, error

    def _take(self) -> _Job | None:
        with self._changed:
            while True:
                skipped: list[_Job] = []
                found: _Job | None = None
                while self._waiting and found is None:
                    job = heapq.heappop(self._waiting)
                    if job.future.cancelled():
                        continue
                    if job.lane in self._busy:
                        skipped.append(job)
                    else:
                        found = job
                for job in skipped:
                    heapq.heappush(self._waiting, job)
                if found is not None:
                    self._busy.add(found.lane)
                    return found
                if self._closed:
                    return None
                self._changed.wait()


def _deliver(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if isinstance(error, StopIteration):  # a future cannot carry one
        error = RuntimeError("a model job ran past the end of its iterator")
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class VirtualWorker:
    """Runs each job at once, then lets its measured time (or `cost_s(lane)`) pass on the virtual clock.

    Lanes and a number of servers are respected in virtual time: a job's result is there when its lane and a server had time for it.
    """

    def __init__(self, servers: int = 2, cost_s: Callable[[str], float] | None = None) -> None:
        self.stats: dict[str, LaneStats] = {}
        self._cost_s = cost_s
        self._servers = [0.0] * servers
        self._locks: dict[str, asyncio.Lock] = {}

    async def run(self, priority: Priority, lane: str, job: Callable[..., T], *args: Any) -> T:
        """See ModelWorker."""
        async with self._locks.setdefault(lane, asyncio.Lock()):
            loop = asyncio.get_running_loop()
            began = time.perf_counter()
            result = job(*args)
            took = time.perf_counter() - began if self._cost_s is None else self._cost_s(lane)
            server = min(range(len(self._servers)), key=self._servers.__getitem__)
            start = max(loop.time(), self._servers[server])
            self._servers[server] = start + took
            self.stats.setdefault(lane, LaneStats()).note(took, start - loop.time())
            await asyncio.sleep(start + took - loop.time())
            return result

    def close(self) -> None:
        """Nothing to let go of."""
