"""`duologue bench soak`: many turns on one session; memory and tasks must stay flat."""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import sys
import threading
from pathlib import Path

from agent.build import build_session
from agent.feed import Subscription
from agent.parts import Parts
from agent.profiles import Profile
from agent.scripted_user import Say, ScriptedUser
from agent.session import Session
from agent.virtual_time import run_virtual
from agent.worker import VirtualWorker
from apps.bench_clips import clips
from duplex.events import ResponseEnded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this measurement."""
    parser.add_argument("--turns", type=int, default=200, help="turns to hold (default: 200)")


def resident_mb() -> float:
    """Resident memory of this process now, in MB."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def run_soak(profile: Profile, parts: Parts, args: argparse.Namespace) -> list[str]:
    """Hold the turns and return the report's lines."""
    questions = clips("questions")
    script = [Say(questions[i % len(questions)].samples(), delay_s=0.6, name=str(i)) for i in range(args.turns)]
    user = ScriptedUser(script, patience_s=8.0, record=False)
    every = max(args.turns // 10, 1)
    rows = ["turn   resident MB   tasks   threads   history messages"]
    figures: list[float] = []

    async def watch(session: Session, events: Subscription) -> None:
        turns = 0
        async for event in events:
            if not isinstance(event, ResponseEnded):
                continue
            turns += 1
            if turns % every == 0:
                gc.collect()
                figures.append(resident_mb())
                tasks, threads = len(asyncio.all_tasks()), threading.active_count()
                rows.append(f"{turns:>4}   {figures[-1]:>11.0f}   {tasks:>5}   {threads:>7}   {len(session.history.messages):>8}")
                print(rows[-1], file=sys.stderr, flush=True)

    async def main() -> int:
        session = build_session(profile, parts, user, VirtualWorker(), echo="none")
        watching = asyncio.create_task(watch(session, session.events()))
        async with session:
            await session.wait()
        await watching
        rows.append(f"after  tasks left: {len(asyncio.all_tasks()) - 1}")
        return len(user.said)

    turns = run_virtual(main())
    grown = figures[-1] - figures[0] if len(figures) > 1 else 0.0
    return [*rows, f"{turns} turns; resident memory grew by {grown:.0f} MB from the first tenth to the last."]
