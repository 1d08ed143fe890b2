"""`duologue train`: teach the parts that are trained here; each goes on where it was stopped."""

from __future__ import annotations

import argparse

from apps import train_predictor

PARTS = {
    "predictor": (train_predictor.add_arguments, train_predictor.run_training, "when to take, keep or give up the floor"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `duologue train`."""
    parts = parser.add_subparsers(dest="part", metavar="part", required=True)
    for name, (arguments, _, about) in PARTS.items():
        arguments(parts.add_parser(name, help=about, description=about))


def run(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    return PARTS[args.part][1](args)
