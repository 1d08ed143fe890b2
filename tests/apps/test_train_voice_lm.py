"""`duologue train voice-lm` from end to end on made-up replies."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.cli import main
from decoders import pointer_lm_weights
from tests.decoders import voice_replies


def test_it_writes_weights_card_and_curve_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work, out = tmp_path / "work", tmp_path / "out" / "voice_lm.safetensors"
    voice_replies.write(work, replies=20)
    small = ["--device", "cpu", "--layers", "2", "--width", "64", "--length", "256", "--work", str(work), "--out", str(out)]
    assert main(["train", "voice-lm", "--minutes", "9", "--passes", "2", *small]) == 0
    said = capsys.readouterr().out
    assert "It may be stopped and run again" in said and "with hidden states" in said
    assert pointer_lm_weights.load(out).config.width == 64
    assert "--minutes 9 --passes 2 --stage joint" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".png").stat().st_size > 1000
    assert main(["train", "voice-lm", "--minutes", "9", "--passes", "2", "--stage", "hidden", *small]) == 0
    assert "--stage hidden" in out.with_suffix(".md").read_text()
    assert main(["train", "voice-lm", "--minutes", "9", "--passes", "2", "--no-hidden", "--seed", "1", *small]) == 0
    assert "with hidden states" not in out.with_suffix(".md").read_text()


def test_a_dry_run_only_says_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "voice-lm", "--dry-run", "--device", "cpu", "--work", str(tmp_path / "none")]) == 0
    assert "30 MB" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_without_material_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "voice-lm", "--device", "cpu", "--work", str(tmp_path)]) == 4
    assert "duologue train corpus" in capsys.readouterr().err
