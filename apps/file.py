"""`duologue file USER.wav OUT.wav`: the agent talks with a recording; a stereo WAV, the events and a picture come out.

Without `--paced` the conversation runs on a virtual clock: every model job's measured time is charged to the conversation's time, so
latencies are as they would be live, but nobody waits through the silences.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from agent.build import build_parts, build_session
from agent.parts import Parts
from agent.profiles import Profile, load_profile
from agent.session import Session
from agent.virtual_time import run_virtual
from agent.worker import ModelWorker, VirtualWorker, Worker
from apps.file_transport import FileTransport
from apps.interrupts import put_off
from apps.sound_files import open_sound
from apps.stereo_writer import StereoWriter
from apps.transcript_lines import lines_of
from apps.voice_flags import add_voice_arguments, voice_of
from duplex.audio import AGENT_RATE_HZ
from duplex.errors import InputError, OutputError
from duplex.events import Event, Levels

PICTURE_S = 300.0
"""The picture shows at most so much of the conversation."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `duologue file`."""
    parser.add_argument("user", metavar="USER.wav", help="what the user says: WAV, FLAC or OGG, any rate, mono or stereo")
    parser.add_argument(
        "out", metavar="OUT.wav", help="stereo recording to write: user left, agent right; same length as the input"
    )
    add_conversation_arguments(parser)


def add_conversation_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments shared with `duologue demo`."""
    parser.add_argument("--profile", default="edge", help="profile name or YAML file (default: edge)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a profile key, e.g. session.interim_s=0.4"
    )
    parser.add_argument("--paced", action="store_true", help="play in real time instead of faster")
    parser.add_argument("--system", help="what to tell the LLM it is")
    add_voice_arguments(parser)


@dataclass(slots=True)
class FileResult:
    """What a conversation with a file left behind."""

    out: Path
    events_path: Path
    picture: Path
    events: list[Event] = field(default_factory=list)
    duration_s: float = 0.0
    took_s: float = 0.0
    underruns: int = 0
    late_frames: int = 0
    warnings: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    profile = load_profile(args.profile, args.set)
    _check_paths(Path(args.user), Path(args.out))
    with open_sound(args.user):  # refuse a bad file before the models load
        pass
    voice = voice_of(args)
    with put_off():
        parts = build_parts(profile, voice=voice)
    result = converse_with_file(profile, parts, Path(args.user), Path(args.out), paced=args.paced, system=args.system)
    for warning in result.warnings:
        print(f"Note: {warning}")
    for line in lines_of(result.events):
        print(line)
    print(
        f"\n{result.duration_s:.1f} s of conversation in {result.took_s:.1f} s; {result.underruns} underruns.\n"
        f"{result.out}  {result.events_path}  {result.picture}"
    )
    return 0


def converse_with_file(
    profile: Profile, parts: Parts, user: Path, out: Path, *, paced: bool = False, system: str | None = None
) -> FileResult:
    """Run the conversation. Raises InputError and OutputError; OUT.wav is valid whatever happens."""
    result = FileResult(out, out.with_suffix(".events.jsonl"), out.with_suffix(".png"))
    began = time.perf_counter()
    with ExitStack() as stack:
        reader = stack.enter_context(open_sound(user))
        writer = stack.enter_context(StereoWriter(out, AGENT_RATE_HZ))
        log = stack.enter_context(_open_events(result.events_path))
        transport = FileTransport(reader, reader.total_samples, writer)

        async def main(worker: ModelWorker) -> Session:
            session = build_session(profile, parts, transport, worker, echo="none", system_prompt=system)
            events = session.events()
            writing = asyncio.create_task(_write_events(events, log, result.events))
            try:
                async with session:
                    await session.wait()
            finally:
                await writing
            return session

        worker: ModelWorker = Worker() if paced else VirtualWorker()
        stack.callback(worker.close)
        session = asyncio.run(main(worker)) if paced else run_virtual(main(worker))
        result.duration_s = writer.duration_s
        result.underruns, result.late_frames = session.playout.underruns, transport.late_frames
        result.warnings = list(reader.warnings)
        result.stages = [
            f"{name}: {s.jobs} jobs, {s.busy_s:.2f} s busy (rtf {s.busy_s / max(writer.duration_s, 1e-9):.3f}), "
            f"longest {1000 * s.longest_s:.0f} ms"
            for name, s in sorted(worker.stats.items())
        ]
    result.took_s = time.perf_counter() - began
    _draw(result, user.name)
    return result


async def _write_events(events: object, log: TextIO, kept: list[Event]) -> None:
    from duplex.events import as_dict

    async for event in events:  # type: ignore[attr-defined]
        if isinstance(event, Levels):
            continue  # ten a second would bury the rest
        kept.append(event)
        log.write(json.dumps(as_dict(event), ensure_ascii=False) + "\n")


def _draw(result: FileResult, title: str) -> None:
    import soundfile

    from apps.timeline import draw_timeline
    from duplex.audio import USER_RATE_HZ
    from duplex.resample import resample

    both, _ = soundfile.read(result.out, frames=int(PICTURE_S * AGENT_RATE_HZ), dtype="float32", always_2d=True)
    if result.duration_s > PICTURE_S:
        title += f" (the first {PICTURE_S:.0f} s)"
    user = resample(both[:, 0].copy(), AGENT_RATE_HZ, USER_RATE_HZ)
    try:
        draw_timeline(result.picture, user, both[:, 1], result.events, title)
    except OSError as error:
        raise OutputError(f"{result.picture} could not be written: {error.strerror or error}.") from error


def _open_events(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error.strerror or error}.") from error


def _check_paths(user: Path, out: Path) -> None:
    if out.suffix.lower() != ".wav":
        raise OutputError(f"{out} must end in .wav, because that is what is written.")
    if out.exists() and user.exists() and out.resolve() == user.resolve():
        raise InputError(f"{out} is the input itself; choose another name for the output.")


def latency_table(events: Sequence[Event]) -> list[str]:
    """One line per response: when, response latency, how it ended, stop latency."""
    from duplex.audio import seconds
    from duplex.events import ResponseEnded, ResponseStarted

    started = {e.epoch: e for e in events if isinstance(e, ResponseStarted)}
    rows = ["turn   at        response latency   ended         stop latency"]
    for number, end in enumerate((e for e in events if isinstance(e, ResponseEnded)), 1):
        if (begin := started.get(end.epoch)) is None:
            continue
        latency = f"{begin.latency_s:.2f} s" if begin.latency_s is not None else "-"
        stop = f"{1000 * end.stop_latency_s:.0f} ms" if end.stop_latency_s is not None else "-"
        rows.append(f"{number:>4}   {seconds(begin.at):6.2f} s   {latency:<16}   {end.reason:<11}   {stop}")
    return rows
