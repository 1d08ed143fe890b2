"""`duologue bench start`: seconds from a new process to an agent that could answer, weights in the cache and files in memory."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from agent.parts import Parts
from agent.profiles import Profile

_SCRIPT = """
import asyncio, sys
from agent.build import build_parts, build_session
from agent.profiles import load_profile
from agent.scripted_user import ScriptedUser
from agent.worker import Worker
profile = load_profile(sys.argv[1])
async def main():
    async with build_session(profile, build_parts(profile), ScriptedUser([]), Worker(), echo="none"):
        print("ready", flush=True)
asyncio.run(main())
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this measurement."""
    parser.add_argument("--repeats", type=int, default=3, help="starts to time (default: 3)")


def run_start(profile: Profile, parts: Parts, args: argparse.Namespace) -> list[str]:
    """Time whole processes and return the report's lines."""
    took = []
    for _ in range(args.repeats):
        began = time.perf_counter()
        with subprocess.Popen([sys.executable, "-c", _SCRIPT, profile.name], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            ready = "ready" in process.stdout.readline()
            took.append(time.perf_counter() - began)
        if not ready or process.returncode:
            raise RuntimeError(f"the started process ended with code {process.returncode} before it was ready")
    return [f"Warm start, process to first possible answer: {', '.join(f'{t:.1f}' for t in took)} s (best {min(took):.1f} s)."]
