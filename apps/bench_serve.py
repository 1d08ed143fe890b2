"""`duologue bench serve`: the server under load.

The measuring itself is imported when it is asked for, since it needs the extra `serve`.
"""

from __future__ import annotations

import argparse

from agent.parts import Parts
from agent.profiles import Profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this measurement."""
    parser.add_argument("--conversations", default="1,2,4", metavar="N,N", help="how many at once, in turn (default: 1,2,4)")
    parser.add_argument("--questions", type=int, default=6, help="questions per conversation (default: 6)")
    parser.add_argument(
        "--echo-s", type=float, default=20.0, help="seconds of measuring the door's own round trip; 0 leaves it out"
    )
    parser.add_argument(
        "--churn-s", type=float, default=0.0, help="seconds of clients that die in the middle of a word (default: 0)"
    )


def run_serve(profile: Profile, parts: Parts, args: argparse.Namespace) -> list[str]:
    """Measure and return the report's lines. Raises ConfigError for a wrong list of conversations."""
    from apps.bench_serve_load import measure

    return measure(profile, parts, args)
