"""`duologue bench`: what it measures by itself, and what it says of wrong arguments."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.build import build_parts
from agent.profiles import load_profile
from apps.bench_path import _make_room, _troubles
from apps.bench_path_turns import SOUND_S, Stages, Turn, in_turns, together
from apps.cli import main


def test_without_a_name_the_path_is_measured_for_many_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.txt"
    arguments = ["bench", "--profile", "tiny", "--conversations", "1,2", "--repeats", "1", "--out", str(out)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert out.read_text(encoding="utf-8") == text
    assert "bench path, profile tiny" in text
    rows = re.findall(r"^ +(\d+) +(?:in turns|together) +([\d.]+), ([\d.]+) +([\d.]+) +(\d+)$", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "2", "2"]
    assert all(0 < float(median) <= float(last) for _, median, last, _, _ in rows)
    for stage in ("transcribe", "prefill", "LLM token", "codes or flow", "vocoder"):
        assert stage in text


def test_side_by_side_is_as_one_by_one() -> None:
    profile = load_profile("tiny")
    parts = build_parts(profile)
    alone = [Turn(profile, parts, Stages()) for _ in range(3)]
    in_turns(alone)
    assert list(_make_room(parts, 3)) == []
    joint = [Turn(profile, parts, Stages()) for _ in range(3)]
    together(joint)
    assert [turn.seconds for turn in joint] == [turn.seconds for turn in alone]
    assert all(turn.seconds >= SOUND_S and turn.first_s > 0 for turn in joint)
    assert list(_troubles(parts)) == []


def test_a_time_limit_ends_the_measurement_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "path", "--profile", "tiny", "--conversations", "1,2", "--repeats", "1", "--seconds-limit", "0.001"]) == 0
    text = capsys.readouterr().out
    assert "Stopped before 1 at once" in text and "Done after" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--profile", "tiny", "--conversations", "none"], "1,4,16"),
        (["--profile", "edge", "--random-weights"], "other parts"),
        (["--profile", "tine"], "no profile"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert told in capsys.readouterr().err
