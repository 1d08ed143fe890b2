"""The command that teaches the flow: it makes a file that can be used, says how good it is, and goes on where it was stopped."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch

from apps import train_flow
from decoders import flow_voice
from decoders.flow_trainer import FlowTrainer
from decoders.flow_voice import VOICE
from decoders.speech_tokenizer import LEVELS, SpeechTokenizer, SpeechTokenizerConfig
from decoders.teacher import Taught
from duplex.errors import ConfigError, InputError
from tests.decoders.test_flow_trainer import clock

SMALL = dataclasses.replace(
    VOICE,
    encoder=dataclasses.replace(VOICE.encoder, width=16, heads=2, feed_forward=16, blocks=1),
    estimator=dataclasses.replace(VOICE.estimator, channels=16, mid_stages=0, heads=2, head_width=8),
)


def taught(shard: Path, *parts: Any) -> Taught:
    """Sixty replies of 24 codes, one of none."""
    generator = torch.Generator().manual_seed(int(shard.stem))
    digits = torch.stack([torch.randint(level, (60 * 24,), generator=generator) for level in LEVELS], 1).to(torch.uint8)
    latents = 3.0 + 2.0 * torch.randn(60 * 96, 192, generator=generator).half()
    nothing = torch.zeros(0)
    offsets = torch.tensor([0, 0, *range(24, 60 * 24 + 1, 24)])
    return Taught(latents, digits, nothing, nothing, nothing, offsets, offsets)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "replies").mkdir()
    for name in ("000", "001"):
        (tmp_path / "replies" / f"{name}.safetensors").write_bytes(b"")
    tokenizer = SpeechTokenizer(SpeechTokenizerConfig())
    tokenizer.mean.fill_(3.0)
    tokenizer.deviation.fill_(2.0)
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    monkeypatch.setattr(train_flow, "latents_and_codes", taught)
    monkeypatch.setattr(train_flow.VitsNet, "load", lambda *given: None)
    monkeypatch.setattr(FlowTrainer, "run", partialmethod(FlowTrainer.run, clock=clock()))  # both parts have steps on any machine
    return tmp_path


def arguments(work: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train_flow.add_arguments(parser)
    out = str(work / "flow.safetensors")
    given = ["--work", str(work), "--device", "cpu", "--minutes", "0.02", "--rows", "4", "--length", "10", "--out", out, *more]
    return parser.parse_args(given)


def test_a_run_makes_weights_a_card_and_a_picture(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_flow.run_training(arguments(work, "--steps", "2"), SMALL) == 0
    told = capsys.readouterr().out
    assert "few steps, step" in told and "| tokenizer's own decoder |" in told and "| shipped flow, 1 steps |" in told
    made = flow_voice.load(work / "flow.safetensors")
    config = made.flow.config
    assert config == dataclasses.replace(SMALL, steps=2, temperature=config.temperature)
    assert f"| shipped flow, 2 steps, noise x {config.temperature:g} |" in told
    assert made.mean.tolist() == [3.0] * 192 and made.deviation.tolist() == [2.0] * 192
    assert "| teacher flow, 10 steps |" in (work / "flow.md").read_text()
    assert (work / "flow.png").stat().st_size > 1000 and (work / "flow.pt").is_file()
    assert train_flow.run_training(arguments(work, "--resume"), SMALL) == 0


def test_speech_is_taken_up_to_the_hours_and_some_is_kept_back(work: Path) -> None:
    shards = sorted((work / "replies").glob("*.safetensors"))
    tokenizer = SpeechTokenizer.load(work / "tokenizer.safetensors")
    speech, held = train_flow.make_speech(shards, tokenizer, 40.0, torch.device("cpu"))
    assert len(speech) == 2 * 59 * 24 and held.codes.shape == (2, 24)
    assert abs(float(held.frames.mean())) < 0.1 and float(held.frames.std()) == pytest.approx(1.0, abs=0.05)
    speech, _ = train_flow.make_speech(shards, tokenizer, 0.01, torch.device("cpu"))
    assert len(speech) == 59 * 24


def test_the_cost_is_told_first(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_flow.run_training(arguments(work, "--dry-run", "--hours", "40")) == 0
    assert "4.8 GB for the speech" in capsys.readouterr().out
    assert not (work / "flow.safetensors").exists()


def test_what_is_missing_is_told(work: Path) -> None:
    with pytest.raises(ConfigError, match="more than 0 minutes"):
        train_flow.run_training(arguments(work, "--minutes", "0"))
    for shard in (work / "replies").glob("*"):
        shard.unlink()
    with pytest.raises(InputError, match="train corpus"):
        train_flow.run_training(arguments(work))
