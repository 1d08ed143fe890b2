"""The command that teaches the flow: it makes a file that can be used, says how good it is, and goes on where it was stopped."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch

from apps import train_flow, train_flow_speech
from decoders import flow_voice
from decoders.flow_trainer import FlowTrainer
from decoders.flow_voice import VOICE
from decoders.speech_tokenizer import LEVELS, SpeechTokenizer, SpeechTokenizerConfig
from decoders.teacher import Taught
from decoders.vits_net import VitsNet
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
    offsets = torch.tensor([0, 0, *range(24, 60 * 24 + 1, 24)])
    nothing = [torch.zeros(0) for _ in range(3)]
    return Taught(latents, digits, *nothing, offsets, offsets.clone())


def nearness(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Stands for the distance of sounds, which needs a trained vocoder."""
    assert made.shape == true.shape and made.shape[2] == 192
    return (made - true).abs().mean()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "replies").mkdir()
    for name in ("000", "001"):
        (tmp_path / "replies" / f"{name}.safetensors").write_bytes(b"")
    tokenizer = SpeechTokenizer(SpeechTokenizerConfig())
    tokenizer.mean.fill_(3.0)
    tokenizer.deviation.fill_(2.0)
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    monkeypatch.setattr(train_flow_speech, "latents_and_codes", taught)
    monkeypatch.setattr(VitsNet, "load", lambda *given: None)
    monkeypatch.setattr(train_flow, "SoundDistance", lambda *given: nearness)
    monkeypatch.setattr(FlowTrainer, "run", partialmethod(FlowTrainer.run, clock=clock()))  # all parts have steps on any machine
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
    assert "few steps, step" in told and "sound, step" in told
    assert "| tokenizer's own decoder |" in told and "| shipped flow, 1 steps |" in told
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
    speech, held = train_flow_speech.make_speech(shards, tokenizer, 40.0, torch.device("cpu"))
    assert len(speech) == 2 * 59 * 24 and held.codes.shape == (2, 24)
    assert abs(float(held.frames.mean())) < 0.1 and float(held.frames.std()) == pytest.approx(1.0, abs=0.05)
    speech, _ = train_flow_speech.make_speech(shards, tokenizer, 0.01, torch.device("cpu"))
    assert len(speech) == 59 * 24


def test_on_a_cpu_speech_is_kept_until_another_tokenizer_makes_its_codes(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def telling(shard: Path, *parts: Any) -> Taught:
        asked.append(shard.stem)
        return taught(shard, *parts)

    monkeypatch.setattr(train_flow_speech, "latents_and_codes", telling)
    shards = sorted((work / "replies").glob("*.safetensors"))
    tokenizer = SpeechTokenizer.load(work / "tokenizer.safetensors")
    made = [train_flow_speech.make_speech(shards, tokenizer, 40.0, torch.device("cpu"))[0] for _ in range(2)]
    assert asked == ["000", "001"] and torch.equal(made[0].codes, made[1].codes) and torch.equal(made[0].frames, made[1].frames)
    (work / "speech" / "000.safetensors").write_bytes(b"cut short")
    train_flow_speech.make_speech(shards, tokenizer, 40.0, torch.device("cpu"))
    assert asked == ["000", "001", "000"]
    tokenizer.deviation.fill_(4.0)
    tokenizer.save(work / "tokenizer.safetensors")
    train_flow_speech.make_speech(shards, tokenizer, 40.0, torch.device("cpu"))
    assert asked == ["000", "001", "000", "000", "001"]


def test_a_run_may_begin_with_a_file(work: Path) -> None:
    assert train_flow.run_training(arguments(work), SMALL) == 0
    first = flow_voice.load(work / "flow.safetensors").flow.state_dict()
    (work / "flow.safetensors").rename(work / "start.safetensors")
    start = "--start", str(work / "start.safetensors")
    assert train_flow.run_training(arguments(work, *start, "--rate", "1e-9", "--distil", "0", "--polish", "0"), SMALL) == 0
    second = flow_voice.load(work / "flow.safetensors").flow.state_dict()
    assert all(torch.allclose(first[name], second[name], atol=1e-3) for name in first)
    assert "--start start.safetensors" in (work / "flow.md").read_text()


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
