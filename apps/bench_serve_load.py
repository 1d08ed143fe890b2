"""How many paced conversations this machine holds in real time, and what a crowd of dying clients leaves behind.

Server and clients share this process, so the figures include the clients' share of the machine. Latency is measured by the client: from
the last packet of a question to the arrival of the answer's first sound.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import os
import random
import threading
from pathlib import Path

import numpy as np

from agent.host import Host
from agent.parts import Parts
from agent.profiles import Profile
from apps.bench_clips import clips
from apps.bench_counts import conversation_counts
from apps.bench_serve_client import Caller, Talked, die_in_the_middle, refusal
from apps.bench_serve_echo import EchoHost, round_trips
from apps.bench_soak import resident_mb
from apps.realtime import AccessConfig
from apps.serve_app import build_app
from apps.serve_thread import Running, running
from duplex.audio import Samples


def measure(profile: Profile, parts: Parts, args: argparse.Namespace) -> list[str]:
    """Measure and return the report's lines. Raises ConfigError for a wrong list of conversations."""
    counts = conversation_counts(args.conversations)
    lines: list[str] = []
    if args.echo_s > 0:
        lines += _echo(profile, parts, args.echo_s)
    lines += [
        "",
        "conversations   answers   unanswered   latency s: median   p95   worst   sound dry   misses   one more: code, after",
    ]
    for count in counts:
        lines.append(_paced(profile, parts, count, args.questions))
    if args.churn_s > 0:
        lines += _churn(profile, parts, max(counts), args.churn_s)
    return lines


def _echo(profile: Profile, parts: Parts, seconds: float) -> list[str]:
    access = AccessConfig()
    with running(build_app(EchoHost(profile, parts, max_sessions=1), access), access) as server:
        trips = 1000 * np.array(asyncio.run(round_trips(server.address, seconds)))
    if not len(trips):
        return ["The door's own round trip could not be measured: nothing came back."]
    return [
        f"The door's own round trip, sound in to sound out: median {np.median(trips):.1f} ms, p99 {np.percentile(trips, 99):.1f} ms, "
        f"worst {trips.max():.1f} ms ({len(trips)} clicks)."
    ]


def _paced(profile: Profile, parts: Parts, count: int, questions: int) -> str:
    recorded = [clip.samples() for clip in clips("questions")]
    access = AccessConfig()
    host = Host(profile, parts, max_sessions=count)

    async def converse(address: str) -> tuple[list[Talked], tuple[int | None, float]]:
        async def one(number: int) -> Talked:
            await asyncio.sleep(0.7 * number)  # people do not speak in step
            order = [recorded[(number * 3 + turn) % len(recorded)] for turn in range(questions)]
            return await Caller(address).talk(order)

        async def one_more() -> tuple[int | None, float]:
            await asyncio.sleep(0.7 * count + 1.0)
            return await refusal(address)

        *talked, refused = await asyncio.gather(*(one(number) for number in range(count)), one_more())
        assert isinstance(refused, tuple)
        return [t for t in talked if isinstance(t, Talked)], refused

    with running(build_app(host, access), access) as server:
        talked, (code, after_s) = asyncio.run(converse(server.address))
        misses = server.ask(lambda: host.deadline_misses)
    latencies = np.array([latency for one in talked for latency in one.latencies_s] or [np.nan])
    sound, dry = sum(one.sound_s for one in talked), sum(one.dry_s for one in talked)
    answers, unanswered = sum(one.answers for one in talked), sum(one.unanswered for one in talked)
    return (
        f"{count:>13}   {answers:>7}   {unanswered:>10}   {np.median(latencies):>17.2f}   {np.percentile(latencies, 95):.2f}"
        f"   {latencies.max():>5.2f}   {dry / max(sound, 1e-9):>9.1%}   {misses:>6}   {code}, {1000 * after_s:.0f} ms"
    )


def _churn(profile: Profile, parts: Parts, places: int, seconds: float) -> list[str]:
    access = AccessConfig(resume_s=0.5)
    host = Host(profile, parts, max_sessions=places)
    recorded = [clip.samples() for clip in clips("questions")]
    rows = ["", f"{seconds:.0f} s of clients that vanish in the middle of a word, {places} places:"]
    rows.append("   after s   opened   refused   resident MB   tasks   threads   open files")
    with running(build_app(host, access), access) as server:
        asyncio.run(_crowd(server, host, recorded, places, seconds, rows))
    return rows


async def _crowd(server: Running, host: Host, recorded: list[Samples], places: int, seconds: float, rows: list[str]) -> None:
    loop = asyncio.get_running_loop()
    began, chance = loop.time(), random.Random(0)
    numbers = itertools.count()

    async def visitors() -> None:
        while loop.time() - began < seconds:
            question = recorded[next(numbers) % len(recorded)]
            await die_in_the_middle(server.address, question, chance.uniform(0.1, 5.0), politely=chance.random() < 0.3)
            await asyncio.sleep(chance.uniform(0.0, 0.3))

    async def look() -> None:
        for part in range(1, 11):
            await asyncio.sleep(max(began + seconds * part / 10 - loop.time(), 0))
            rows.append(await asyncio.to_thread(_figures, server, host, loop.time() - began))

    await asyncio.gather(look(), *(visitors() for _ in range(places + 1)))
    deadline = loop.time() + 10
    while host.places_taken and loop.time() < deadline:  # noqa: ASYNC110  (another thread's figure)
        await asyncio.sleep(0.05)
    rows.append(await asyncio.to_thread(_figures, server, host, loop.time() - began) + "   (all gone)")


def _figures(server: Running, host: Host, after_s: float) -> str:
    gc.collect()
    files = Path("/proc/self/fd")
    open_files = len(os.listdir(files)) if files.exists() else -1
    tasks = server.ask(lambda: len(asyncio.all_tasks()))
    return (
        f"{after_s:>10.0f}   {host.opened:>6}   {host.refused:>7}   {resident_mb():>11.0f}   {tasks:>5}   "
        f"{threading.active_count():>7}   {open_files:>10}"
    )
