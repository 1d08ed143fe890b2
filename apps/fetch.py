"""`duologue fetch [profile]`: brings a profile's weights into the cache; the second run does nothing."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from agent import weight_cache, weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `duologue fetch`."""
    parser.add_argument("profile", nargs="?", default="edge", help="name of a profile, or a YAML file (default: edge)")
    parser.add_argument("--verify", action="store_true", help="hash every file again, and mend what is damaged")
    parser.add_argument("--slim", action="store_true", help="then delete downloads that only served a conversion")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    """Fetches, and says where everything is."""
    begun = time.monotonic()
    if not args.quiet:
        _print_price(args.profile)
    with _progress(args.quiet) as progress:
        paths = weights.fetch(args.profile, progress, verify=args.verify, slim=args.slim)
    total = sum(_size(path) for path in paths.values())
    if not args.quiet:
        took = time.monotonic() - begun
        print(f"Weights of '{args.profile}' are ready: {total / 1e6:.0f} MB in {_places(list(paths.values()))} ({took:.1f} s).")
    return 0


def _places(paths: list[Path]) -> str:
    """The cache folder, and the user's own folders beside it."""
    home = weight_cache.home()
    own = sorted({str(path.parent) for path in paths if not path.is_relative_to(home)})
    return " and ".join(own if own and not any(path.is_relative_to(home) for path in paths) else [str(home), *own])


def _print_price(profile: str) -> None:
    """What is about to be downloaded, and under which licences: said before it begins."""
    missing = weights.missing(profile)
    if missing:
        total = sum(item.bytes for item in missing)
        print(f"'{profile}' needs {_amount(total)} more in {weight_cache.home()}:")
    for item in missing:
        print(f"  {_amount(item.bytes):>8}  {item.name}: {item.publisher}. Licence: {item.licence}.")


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _progress(quiet: bool) -> QuietProgress:
    if quiet:
        return QuietProgress()
    return BarProgress() if sys.stdout.isatty() else LineProgress()


class QuietProgress(weights.Quiet):
    """Shows nothing; the base of the two that do."""

    def __enter__(self) -> QuietProgress:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""


class LineProgress(QuietProgress):
    """Plain lines for logs and pipes: one at every tenth of a file, and every note."""

    def __init__(self) -> None:
        self._label, self._total, self._unit, self._tenth = "", 1, "bytes", -1

    def begin(self, label: str, total: int, unit: str = "bytes") -> None:
        """A new piece of work."""
        self._label, self._total, self._unit, self._tenth = label, max(1, total), unit, -1

    def advance(self, done: int) -> None:
        """Prints when the next tenth is reached."""
        tenth = done * 10 // self._total
        if tenth == self._tenth:
            return
        self._tenth = tenth
        amount = f" ({done / 1e6:.0f} of {self._total / 1e6:.0f} MB)" if self._unit == "bytes" else ""
        print(f"  {self._label}: {tenth * 10:3d} %{amount}", flush=True)

    def note(self, text: str) -> None:
        """Prints the sentence."""
        print(text, flush=True)


class BarProgress(QuietProgress):
    """A moving bar for people at a terminal."""

    def __init__(self, console: Any = None) -> None:
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[amount]}"),
            progress.TimeRemainingColumn(),
        )
        self._bars: Any = progress.Progress(*columns, console=console)
        self._task: Any = None
        self._total, self._unit = 1, "bytes"

    def __enter__(self) -> BarProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, label: str, total: int, unit: str = "bytes") -> None:
        """A new bar below the finished ones."""
        self._total, self._unit = max(1, total), unit
        self._task = self._bars.add_task(label, total=self._total, amount="")

    def advance(self, done: int) -> None:
        """Moves the newest bar."""
        amount = f"{done / 1e6:.0f}/{self._total / 1e6:.0f} MB" if self._unit == "bytes" else ""
        self._bars.update(self._task, completed=done, amount=amount)

    def note(self, text: str) -> None:
        """Prints the sentence above the bars."""
        self._bars.console.print(text, markup=False, highlight=False)
