"""The load measurement itself, on doubles: it counts what there is to count."""

from __future__ import annotations

import argparse
import re

from agent.profiles import load_profile
from apps.bench_serve import add_arguments, run_serve
from tests.apps.served import ToneEars, doubles


class AnyEars(ToneEars):
    """Hears the same in any speech."""

    def transcribe(self, window):  # type: ignore[no-untyped-def]
        heard = super().transcribe(window)
        return type(heard)("What is it?", heard.end)


def test_it_measures_the_door_the_load_and_the_dying() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--conversations", "2", "--questions", "1", "--echo-s", "4", "--churn-s", "5"])
    parts = doubles({}, ["It is a bee."])
    object.__setattr__(parts, "ears", AnyEars({}))
    lines = run_serve(load_profile("tiny", ["session.response.group_tokens=1"]), parts, args)
    trip = re.search(r"median ([\d.]+) ms, p99 ([\d.]+) ms", lines[0])
    assert trip is not None and 0 < float(trip[1]) < 3000
    row = next(line for line in lines if line.lstrip().startswith("2 ")).split()
    assert row[:3] == ["2", "2", "0"]
    assert 0.2 < float(row[3]) < 30
    assert "1013," in row
    gone = lines[-1].split()
    assert int(gone[1]) >= 3 and lines[-1].endswith("(all gone)")
    tasks = [int(line.split()[4]) for line in lines[-11:]]
    assert tasks[-1] <= min(tasks[:-1])
