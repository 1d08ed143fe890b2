"""`duologue train tokenizer` and `train codes`, end to end at a tiny size."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from apps import train_codes, train_teacher, train_tokenizer
from decoders.speech_tokenizer import SpeechTokenizer
from decoders.teacher import BEGIN_ID, END_ID
from decoders.training_ranks import Ranks
from decoders.vits_net import VitsNet, VitsNetConfig
from duplex.errors import ConfigError, InputError


def _run(part: object, *words: str) -> int:
    parser = argparse.ArgumentParser()
    part.add_arguments(parser)  # type: ignore[attr-defined]
    run = part.run_training if part is train_tokenizer else part.run_codes  # type: ignore[attr-defined]
    return int(run(parser.parse_args([*words, "--device", "cpu"])))


def _shard(work: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [[BEGIN_ID, *rng.integers(3, 30, rng.integers(5, 30)).tolist(), END_ID] for _ in range(12)]
    (work / "replies").mkdir(parents=True, exist_ok=True)
    save_file(
        {"phones": np.concatenate(rows).astype(np.uint8), "phones_offsets": np.cumsum([0, *map(len, rows)])},
        work / "replies" / f"{name}.safetensors",
    )


@pytest.fixture
def work(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    VitsNet(VitsNetConfig(symbols=40, channels=16, inner=16, layers=1, heads=2, generator=8)).pack(tmp_path / "teacher.safetensors")
    _shard(tmp_path, "000", 0)
    _shard(tmp_path, "001", 1)
    return tmp_path


def test_from_replies_to_codes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = work / "installed" / "tokenizer.safetensors"
    words = ("--work", str(work), "--minutes", "0.01", "--rows", "4", "--codes", "8", "--hours", "1", "--out", str(out))
    assert _run(train_tokenizer, *words) == 0
    assert out.read_bytes() == (work / "tokenizer.safetensors").read_bytes()
    assert "perplexity of the digits" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".png").stat().st_size > 1000
    assert SpeechTokenizer.load(out).config.channels == 16
    assert "times real time" in capsys.readouterr().out

    (work / "replies" / "DONE").touch()
    assert _run(train_codes, "--work", str(work), "--follow") == 0
    assert (work / "codes" / "DONE").exists()
    made = load_file(work / "codes" / "001.safetensors")
    replies = load_file(work / "replies" / "001.safetensors")
    assert made["codes"].dtype == np.uint8 and made["codes"].shape == (made["codes_offsets"][-1], 5)
    assert made["pointer"].dtype == np.int16 and len(made["pointer"]) == len(made["codes"])
    assert made["durations"].dtype == np.int16 and len(made["durations"]) == len(replies["phones"])
    sums = np.add.reduceat(made["durations"].astype(int), replies["phones_offsets"][:-1])
    assert sums.tolist() == (4 * np.diff(made["codes_offsets"])).tolist()

    before = [(work / "codes" / name).stat().st_mtime_ns for name in ("000.safetensors", "001.safetensors")]
    _shard(work, "002", 2)
    assert _run(train_codes, "--work", str(work)) == 0  # only what is new is made
    assert [(work / "codes" / name).stat().st_mtime_ns for name in ("000.safetensors", "001.safetensors")] == before
    assert (work / "codes" / "002.safetensors").exists()
    torch.manual_seed(9)
    SpeechTokenizer(SpeechTokenizer.load(out).config).save(work / "tokenizer.safetensors")
    assert _run(train_codes, "--work", str(work)) == 0  # another tokenizer: all is made anew
    assert (work / "codes" / "000.safetensors").stat().st_mtime_ns != before[0]
    assert not np.array_equal(load_file(work / "codes" / "001.safetensors")["codes"], made["codes"])


def test_cost_is_said_first_and_nothing_done(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(train_tokenizer, "--work", str(work), "--dry-run") == 0
    assert _run(train_codes, "--work", str(work), "--dry-run") == 0
    assert "GB" in capsys.readouterr().out
    assert not (work / "tokenizer.safetensors").exists() and not (work / "codes").exists()


def test_the_teacher_is_packed(work: Path) -> None:
    assert _run(train_tokenizer, "--work", str(work), "--pack-teacher", str(work / "carried.safetensors")) == 0
    assert (work / "carried.safetensors").read_bytes() == (work / "teacher.safetensors").read_bytes()


def test_waiting_ends_with_enough_the_end_or_the_time(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_teacher, "POLL_S", 0.01)
    hours = train_teacher.estimated_hours(work / "replies" / "000.safetensors")
    slept: list[float] = []

    def arrive(seconds: float) -> None:
        slept.append(seconds)
        _shard(work, f"{len(slept) + 1:03}", len(slept))

    monkeypatch.setattr(train_teacher.time, "sleep", arrive)
    train_teacher.wait_for_hours(work, hours * 0.5, 1e9)
    assert slept == []
    train_teacher.wait_for_hours(work, hours * 4, 1e9)
    assert 1 <= len(slept) < 20
    count = len(slept)
    (work / "replies" / "DONE").touch()
    train_teacher.wait_for_hours(work, 1e9, 1e9)
    (work / "replies" / "DONE").unlink()
    train_teacher.wait_for_hours(work, 1e9, 0.0)
    assert len(slept) == count


def test_several_gpus_wait_for_nothing(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_tokenizer, "join_ranks", lambda device: Ranks(0, 2))
    with pytest.raises(ConfigError, match="leave out --wait"):
        _run(train_tokenizer, "--work", str(work), "--minutes", "1", "--wait")


def test_bad_input_is_told(work: Path) -> None:
    with pytest.raises(ConfigError):
        _run(train_tokenizer, "--work", str(work), "--minutes", "0")
    for shard in (work / "replies").iterdir():
        shard.unlink()
    with pytest.raises(InputError, match="train corpus"):
        _run(train_tokenizer, "--work", str(work), "--out", str(work / "x.safetensors"))
