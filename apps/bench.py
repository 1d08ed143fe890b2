"""`duologue bench`: measurements on this machine, with real weights; each prints what it found and writes it down if asked."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from agent.build import build_parts
from agent.parts import Parts
from agent.profiles import Profile, load_profile
from apps import bench_conversation, bench_ears, bench_floor, bench_path, bench_serve, bench_soak, bench_start, bench_voice
from apps.interrupts import put_off
from duplex.errors import OutputError

BENCHES = {
    "conversation": (
        bench_conversation.add_arguments,
        bench_conversation.run_conversation_bench,
        "understanding, latency, WER, cascade",
    ),
    "ears": (bench_ears.add_arguments, bench_ears.run_ears, "words and answers through the transcript and through the projector"),
    "floor": (
        bench_floor.add_arguments,
        bench_floor.run_floor,
        "when the floor is taken and given up, beside other turn detectors",
    ),
    "soak": (bench_soak.add_arguments, bench_soak.run_soak, "many turns on one session: memory and tasks"),
    "path": (
        bench_path.add_arguments,
        bench_path.run_path,
        "from the end of speech to sound, stage by stage, for many conversations",
    ),
    "serve": (bench_serve.add_arguments, bench_serve.run_serve, "paced conversations on the Realtime server, and dying clients"),
    "voice": (
        bench_voice.add_arguments,
        bench_voice.run_voice,
        "how the agent's own voice sounds, beside the bridge voice and the teacher",
    ),
    "start": (bench_start.add_arguments, bench_start.run_start, "how long a warm start takes"),
}


Measure = Callable[[Profile, Parts, argparse.Namespace], Iterable[str]]
"""A measurement: gives its report line by line."""

USUAL = "path"
"""What is measured when nothing is named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `duologue bench`."""
    _add_common(parser, profile="edge", set=[], out=None)
    bench_path.add_arguments(parser)
    kinds = parser.add_subparsers(dest="bench", metavar="what", help=f"default: {USUAL}")
    for name, (arguments, _, about) in BENCHES.items():
        kind = kinds.add_parser(name, help=about, description=about)
        left = argparse.SUPPRESS  # what was said before the name holds
        _add_common(kind, profile=left, set=left, out=left)
        arguments(kind)
        if name == USUAL:  # its arguments may stand before its name as well, and hold then
            for action in kind._actions:
                action.default = left


def _add_common(parser: argparse.ArgumentParser, **usual: Any) -> None:
    parser.add_argument("--profile", default=usual["profile"], help="profile name or YAML file (default: edge)")
    parser.add_argument("--set", action="append", default=usual["set"], metavar="KEY=VALUE", help="override a profile key")
    parser.add_argument("--out", default=usual["out"], help="also write the report to this file")


def run(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    device = [f"runtime.device={args.device}"] if getattr(args, "device", None) else []
    profile = load_profile(args.profile, [*args.set, *device])
    name = args.bench or USUAL
    _, measure, _ = BENCHES[name]
    lines: list[str] = []
    try:
        for line in _report(
            name, profile, measure, args
        ):  # said as it is found, so that a run that is cut short has said something
            print(line, flush=True)
            lines.append(line)
    finally:
        if args.out and lines:
            _write(Path(args.out), "\n".join(lines) + "\n")
    return 0


def _report(name: str, profile: Profile, measure: Measure, args: argparse.Namespace) -> Iterator[str]:
    yield f"duologue bench {name}, profile {profile.name}, on {_machine()}"
    yield ""
    with put_off():
        parts = build_parts(profile, random_weights=getattr(args, "random_weights", False))
    yield from measure(profile, parts, args)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error.strerror or error}.") from error


def _machine() -> str:
    import os

    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next((row.split(":", 1)[1].strip() for row in info.read_text().splitlines() if row.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
