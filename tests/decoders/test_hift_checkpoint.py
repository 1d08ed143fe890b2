"""Official files fit to the last key; their relatives are told by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from decoders.hift import HiFTConfig
from decoders.hift_checkpoint import load, tiny
from duplex.errors import WeightsError
from tests.decoders.test_hift import INFO, MEL, REFERENCE, TENSORS, apart, mini
from tests.reference_weights import read_keys

MINI = HiFTConfig(channels=INFO["config/base_channels"], f0_channels=INFO["config/cond_channels"])


def older(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, name in old.items():
        tensors = {key.replace(new, name): value for key, value in tensors.items()}
    return tensors


@pytest.mark.parametrize("form", ["official", "older", "training", "older training"])
def test_files_in_all_their_spellings(tmp_path: Path, form: str) -> None:
    tensors = mini().state_dict()
    tensors = older(tensors) if "older" in form else tensors
    tensors = {f"generator.{key}": value for key, value in tensors.items()} if "training" in form else tensors
    torch.save(tensors, tmp_path / "hift.pt")
    model = load(tmp_path / "hift.pt", MINI)
    wave = model.filter(MEL, TENSORS["outputs/given_noise/source"][0, 0])
    assert apart(wave, TENSORS["outputs/given_noise/wav"][0]) < 1e-5
    assert not any(value.requires_grad for value in model.parameters()) and not model.training


def test_pitch_stays_in_float32(tmp_path: Path) -> None:
    torch.save(mini().state_dict(), tmp_path / "hift.pt")
    model = load(tmp_path / "hift.pt", MINI, torch.bfloat16)
    assert model.conv_pre.weight.dtype == torch.bfloat16
    assert apart(model.f0_predictor(MEL), TENSORS["outputs/f0"][0]) < 1e-5
    assert len(model.step(model.open(0), MEL[:, :20], True)) == 20 * 480


def test_every_misfit_is_listed(tmp_path: Path) -> None:
    tensors = dict(mini().state_dict())
    tensors["stray"] = tensors.pop("ups.1.bias")
    torch.save(tensors, tmp_path / "hift.pt")
    with pytest.raises(WeightsError, match=r"Missing: ups\.1\.bias; unexpected: stray"):
        load(tmp_path / "hift.pt", MINI)


def test_cosyvoice3_is_told_by_name(tmp_path: Path) -> None:
    shapes = read_keys(REFERENCE / "hift_cosyvoice3.txt")
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, tmp_path / "hift.pt")
    with pytest.raises(WeightsError, match="vocoder of CosyVoice3"):
        load(tmp_path / "hift.pt")


def test_cosyvoice1_is_told_by_name(tmp_path: Path) -> None:
    tensors = {name: value for name, value in mini().state_dict().items() if not name.startswith("ups.2")}
    torch.save(tensors, tmp_path / "hift.pt")
    with pytest.raises(WeightsError, match=r"CosyVoice\(1\)"):
        load(tmp_path / "hift.pt", MINI)


def test_tiny_is_small_audible_and_the_same_for_a_seed() -> None:
    first, again, other = (tiny(seed) for seed in (0, 0, 1))
    assert sum(value.numel() for value in first.parameters()) < 60_000
    sound = [model.step(model.open(0), MEL, True) for model in (first, again, other)]
    assert torch.equal(sound[0], sound[1]) and not torch.equal(sound[0], sound[2])
    assert 0.003 < float(sound[0].std()) < 0.3
