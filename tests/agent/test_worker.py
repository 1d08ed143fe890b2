"""The model worker: priorities, lanes, cancelling, errors; and the same on a virtual clock."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from agent.virtual_time import run_virtual
from agent.worker import Priority, VirtualWorker, Worker


async def test_results_and_errors_come_back() -> None:
    worker = Worker(2)
    assert await worker.run(Priority.THINK, "a", lambda x: x + 1, 1) == 2
    with pytest.raises(KeyError):
        await worker.run(Priority.THINK, "a", {}.__getitem__, "x")
    with pytest.raises(RuntimeError, match="past the end"):
        await worker.run(Priority.THINK, "a", next, iter(()))
    assert worker.stats["a"].jobs == 3
    worker.close()
    with pytest.raises(RuntimeError, match="closed"):
        await worker.run(Priority.THINK, "a", int)


async def test_listening_goes_before_speculation() -> None:
    worker, order, gate = Worker(1), [], threading.Event()
    blocked = asyncio.create_task(worker.run(Priority.THINK, "x", gate.wait, 5))
    await asyncio.sleep(0.05)
    later = [
        asyncio.create_task(worker.run(priority, f"lane{priority}", order.append, priority))
        for priority in (Priority.SPECULATE, Priority.THINK, Priority.SPEAK, Priority.LISTEN)
    ]
    await asyncio.sleep(0.05)
    gate.set()
    await asyncio.gather(blocked, *later)
    assert order == sorted(order)
    worker.close()


async def test_a_lane_runs_one_job_at_a_time_and_lanes_run_side_by_side() -> None:
    worker = Worker(2)
    running, most, lock, pair = 0, 0, threading.Lock(), threading.Barrier(2)

    def job(work: Callable[..., object], seconds: float) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        work(seconds)
        with lock:
            running -= 1

    await asyncio.gather(*(worker.run(Priority.THINK, "same", job, time.sleep, 0.02) for _ in range(5)))
    assert most == 1
    await asyncio.gather(*(worker.run(Priority.THINK, f"lane{i}", job, pair.wait, 30) for i in range(6)))  # each waits for another
    assert most == 2
    worker.close()


async def test_a_cancelled_job_that_waits_is_never_run() -> None:
    worker, gate, ran = Worker(1), threading.Event(), []
    blocked = asyncio.create_task(worker.run(Priority.THINK, "a", gate.wait, 5))
    await asyncio.sleep(0.02)
    waiting = asyncio.create_task(worker.run(Priority.THINK, "a", ran.append, 1))
    await asyncio.sleep(0.02)
    waiting.cancel()
    await asyncio.sleep(0)
    gate.set()
    await blocked
    await worker.run(Priority.THINK, "a", int)
    assert ran == []
    worker.close()


def test_virtual_time_passes_in_jumps() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(1800))
        return loop.time()

    began = time.perf_counter()
    assert run_virtual(main()) == pytest.approx(3600)
    assert time.perf_counter() - began < 60  # of an hour


def test_virtual_jobs_cost_what_they_cost_and_share_the_servers() -> None:
    async def main() -> list[float]:
        worker = VirtualWorker(servers=2, cost_s=lambda lane: 1.0)
        loop = asyncio.get_running_loop()
        ends = []

        async def job(lane: str) -> None:
            await worker.run(Priority.THINK, lane, int)
            ends.append(loop.time())

        await asyncio.gather(*(job(f"lane{i}") for i in range(4)), job("lane0"))
        return ends

    assert run_virtual(main()) == pytest.approx([1, 1, 2, 2, 3])
