"""The speech tokenizer: digits, padding, look-ahead, files, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from decoders.speech_tokenizer import (
    LEVELS,
    RATIO,
    SpeechTokenizer,
    SpeechTokenizerConfig,
    digits_to_index,
    digits_to_unit,
    quantize,
)
from decoders.speech_tokenizer_training import (
    Speech,
    TokenizerTrainingConfig,
    code_use,
    judge_tokenizer,
    spread,
    statistics,
    train_tokenizer,
)
from decoders.vits_net import VitsNet, VitsNetConfig
from duplex.errors import WeightsError

SMALL = SpeechTokenizerConfig(channels=16, width=32, inner=48, blocks=2, frame_blocks=1)


@pytest.fixture
def net() -> SpeechTokenizer:
    torch.manual_seed(0)
    return SpeechTokenizer(SMALL).eval().requires_grad_(False)


def test_quantised_values_are_the_digits_and_carry_gradients() -> None:
    raw = (torch.randn(50, 5) * 3).requires_grad_()
    unit, digits = quantize(raw)
    assert torch.allclose(unit, digits_to_unit(digits), atol=1e-6)
    assert bool((digits < torch.tensor(LEVELS)).all())
    unit.sum().backward()
    assert raw.grad is not None and torch.allclose(raw.grad, 1 - raw.detach().tanh() ** 2, atol=1e-6)
    ends = quantize(torch.tensor([[-9.0] * 5, [9.0] * 5, [0.0] * 5]))[1]
    assert ends.tolist() == [[0] * 5, [6, 4, 4, 4, 4], [3, 2, 2, 2, 2]]


def test_every_code_has_a_number_of_its_own() -> None:
    digits = torch.cartesian_prod(*(torch.arange(levels) for levels in LEVELS))
    index = digits_to_index(digits)
    assert sorted(index.tolist()) == list(range(math.prod(LEVELS)))


def test_a_padded_row_is_encoded_as_if_alone(net: SpeechTokenizer) -> None:
    for block in (net.encoder.frames, *net.encoder.blocks):
        block.leave.weight.mul_(10)  # as if trained: neighbours matter
    latents = torch.randn(2, 40, 16)
    inside = torch.arange(10) < torch.tensor([[10], [6]])
    both = net.encode(latents, inside)
    assert torch.equal(both[0], net.encode(latents[:1])[0])
    assert torch.equal(both[1, :6], net.encode(latents[1:, :24])[0])
    assert not torch.equal(both[1, :6], net.encode(latents[1:])[0, :6])  # without the mask it does hear what follows
    with pytest.raises(ValueError, match="whole codes"):
        net.encode(latents[:, :39])


def test_the_decoder_looks_two_codes_ahead_and_no_further(net: SpeechTokenizer) -> None:
    digits = torch.randint(0, 5, (1, 12, 5))
    changed = digits.clone()
    changed[0, 8] = (changed[0, 8] + 2) % 5
    one, other = net.decode(digits), net.decode(changed)
    first = int((one != other).any(2)[0].nonzero()[0]) // RATIO
    assert first == 8 - SMALL.ahead


def test_saved_and_read_back(net: SpeechTokenizer, tmp_path: Path) -> None:
    net.mean.fill_(0.25)
    net.save(tmp_path / "tokenizer.safetensors")
    back = SpeechTokenizer.load(tmp_path / "tokenizer.safetensors")
    assert back.config == SMALL and float(back.mean[0]) == 0.25
    back.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "tokenizer.safetensors").read_bytes()
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name in ("bad", "none"):
        with pytest.raises(WeightsError):
            SpeechTokenizer.load(tmp_path / f"{name}.safetensors")


def test_spread_rewards_even_and_independent_digits() -> None:
    even = torch.rand(4000, 5) * 2 - 1
    scale = torch.tensor([(levels + 1) / (levels - 1) for levels in LEVELS]).sqrt()
    best = (even * scale).clamp(-0.999, 0.999).atanh()
    assert float(spread(best)) < float(spread(best * 0.1))
    assert float(spread(best)) < float(spread(best[:, :1].expand(-1, 5)))
    assert float(spread(best)) < float(spread(best + 2))


def test_use_of_codes_is_counted() -> None:
    each, joint, used = code_use(torch.tensor([[0, 0, 0, 0, 0], [6, 0, 0, 0, 0]], dtype=torch.uint8))
    assert each == pytest.approx([2, 1, 1, 1, 1]) and joint == pytest.approx(2) and used == 2


def _speech() -> Speech:
    """Four "phones", each a pattern of latents that lasts eight frames, with some noise."""
    generator = torch.Generator().manual_seed(4)
    patterns = torch.randn(4, 16, generator=generator) * 3 + 1
    phones = torch.randint(0, 4, (200,), generator=generator).repeat_interleave(8)
    latents = patterns[phones] + 0.1 * torch.randn(1600, 16, generator=generator)
    return Speech(latents.half(), phones.to(torch.uint8))


class _Clock:
    """Ten milliseconds pass at each look, so that a time is a number of steps on any machine."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now


def test_it_learns_stops_by_the_clock_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoders.speech_tokenizer_training.time", _Clock())
    speech = _speech()
    torch.manual_seed(1)
    teacher = VitsNet(VitsNetConfig(symbols=8, channels=16, inner=8, layers=1, heads=1, generator=8))
    checkpoint = tmp_path / "tokenizer.pt"
    settings = TokenizerTrainingConfig(
        seconds=0.2, rows=8, codes=8, rate=6e-3, phone_weight=0.3, sound_rows=1, sound_codes=2, sound_weight=0.02, tell_every_s=0.1
    )
    told: list[int] = []
    first, curve = train_tokenizer(speech, teacher, SMALL, settings, checkpoint, lambda p: told.append(p.step))
    assert told[-1] in (20, 21) and len(curve) == len(told)
    before = judge_tokenizer(first, speech, teacher, 16)
    longer = replace(settings, seconds=2.5)
    net, longer_curve = train_tokenizer(speech, teacher, SMALL, longer, checkpoint, lambda p: told.append(p.step))
    assert (
        told == sorted(told) and told[-1] in (250, 251) and longer_curve[: len(curve)] == curve
    )  # it went on, it did not begin anew
    found = judge_tokenizer(net, speech, teacher, 16)
    assert found.l1 < 0.5 * before.l1
    assert found.phone_accuracy > 0.6  # of four, so chance is 0.25
    again, _ = train_tokenizer(speech, teacher, SMALL, longer, checkpoint)  # the time is used up: nothing is left to do
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in again.state_dict().items())
    checkpoint.write_bytes(b"cut short")
    with pytest.raises(WeightsError, match="delete it"):
        train_tokenizer(speech, teacher, SMALL, longer, checkpoint)


def test_a_sound_loss_that_fails_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("decoders.speech_tokenizer_training.SoundDistance.__call__", broken)
    said: list[str] = []
    config = TokenizerTrainingConfig(seconds=0.2, rows=4, codes=8)
    teacher = VitsNet(VitsNetConfig(symbols=8, channels=16, inner=8, layers=1, heads=1, generator=8))
    train_tokenizer(_speech(), teacher, SMALL, config, tmp_path / "c.pt", say=said.append)
    assert len(said) == 1 and "no such kernel" in said[0]


def test_statistics_are_those_of_all_frames() -> None:
    latents = (torch.randn(3000, 4) * torch.tensor([1.0, 2.0, 0.5, 3.0]) + 1).half()
    mean, deviation = statistics(latents)
    torch.testing.assert_close(mean, latents.float().mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(deviation, latents.float().std(0), atol=2e-3, rtol=2e-3)
