"""`duologue demo`: the shipped conversation. A recorded voice and scripted questions talk with the agent; the result is shown."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent.build import build_parts
from agent.profiles import load_profile
from apps.file import add_conversation_arguments, converse_with_file, latency_table
from apps.interrupts import put_off
from apps.transcript_lines import lines_of
from apps.voice_flags import voice_of
from duplex.errors import OutputError

DEMO = Path(__file__).parent / "samples" / "demo.flac"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `duologue demo`."""
    parser.add_argument(
        "folder", nargs="?", default="demo-out", help="where to write the recording, events and picture (default: demo-out)"
    )
    add_conversation_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    folder = Path(args.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} could not be made: {error.strerror or error}.") from error
    profile = load_profile(args.profile, args.set)
    voice = voice_of(args)
    with put_off():
        parts = build_parts(profile, voice=voice)
    result = converse_with_file(profile, parts, DEMO, folder / "conversation.wav", paced=args.paced, system=args.system)
    print("\nThe conversation\n")
    for line in lines_of(result.events):
        print(line)
    print("\nLatencies\n")
    print("\n".join(latency_table(result.events)))
    print("\nStages\n")
    print("\n".join(result.stages))
    print(f"\n{result.duration_s:.1f} s of conversation in {result.took_s:.1f} s of computing; {result.underruns} underruns.")
    print(f"\nListen:  {result.out}   (left: user, right: agent)\nLook:    {result.picture}\nRead:    {result.events_path}")
    return 0
