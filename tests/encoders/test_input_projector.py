"""The input projector against FunASR's adaptor, its official keys, and itself in other batches."""

from pathlib import Path

import pytest
import torch

from duplex.checkpoint import fill
from encoders.input_projector import InputProjector, InputProjectorConfig
from tests.reference_weights import load_reference, read_keys

REFERENCE = Path(__file__).parent / "reference"
TENSORS, INFO = load_reference(REFERENCE / "minmo_adaptor_tiny.safetensors")


@pytest.fixture(scope="module")
def projector() -> InputProjector:
    with torch.device("meta"):
        projector = InputProjector(
            InputProjectorConfig(**{name.removeprefix("config/"): x for name, x in INFO.items() if "config" in name})
        )
    state = {name.removeprefix("state/"): value for name, value in TENSORS.items() if name.startswith("state/")}
    fill(projector, state, "the reference", "the input projector")
    return projector


def relative(found, wanted) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@torch.inference_mode()
def test_it_agrees_with_the_reference(projector):
    found, made = projector(TENSORS["x"], TENSORS["lens"])
    assert torch.equal(made, TENSORS["olens"])
    for row, (length, count) in enumerate(zip(TENSORS["lens"].tolist(), made.tolist(), strict=True)):
        whole = count if length % 2 == 0 or length == TENSORS["x"].shape[1] else count - 1
        assert whole == count, "the reference lets padding into a half-filled stack; compare only where it does not"
        assert relative(found[row, :count], TENSORS["y"][row, :count]) < 1e-5


def test_full_size_has_exactly_the_official_keys():
    with torch.device("meta"):
        state = InputProjector().state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == read_keys(REFERENCE / "minmo_dev_adaptor.txt")


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 6, 7, 16])
def test_padding_changes_nothing(projector, length):
    x = TENSORS["x"][:1, :length]
    alone, made = projector(x)
    assert made.tolist() == [alone.shape[1]] == [(length + 1) // 2]
    rubbish = torch.full((1, 5, x.shape[2]), float("nan"))
    batch = torch.cat((torch.cat((x, rubbish), dim=1), torch.ones(1, length + 5, x.shape[2])))
    padded, counts = projector(batch, torch.tensor([length, length + 5]))
    assert counts.tolist() == [(length + 1) // 2, (length + 6) // 2]
    assert relative(padded[0, : counts[0]], alone[0]) < 1e-5


@torch.inference_mode()
def test_an_empty_row_of_a_batch_harms_nobody(projector):
    found, made = projector(TENSORS["x"], torch.tensor([17, 0]))
    assert made.tolist() == [9, 0] and torch.isfinite(found).all()


def test_sizes_that_do_not_fit_are_refused():
    for wrong in ({"llm_dim": 100}, {"attention_heads": 5}, {"downsample_rate": 0}, {"n_layer": -1}):
        with pytest.raises(ValueError):
            InputProjectorConfig(**wrong)
