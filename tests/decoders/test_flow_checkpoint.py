"""Files of flows: the official names exactly, other generations told apart, nothing loaded that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from decoders.flow import Flow, FlowConfig
from decoders.flow_checkpoint import TINY, load, tiny
from duplex.checkpoint import misfits
from duplex.errors import WeightsError
from tests.reference_weights import read_keys

KEYS = Path(__file__).parent / "reference" / "flow_keys.txt"


def test_names_and_shapes_are_the_official_ones() -> None:
    with torch.device("meta"):
        flow = Flow(FlowConfig())
    ours = {name: tuple(value.shape) for name, value in flow.state_dict().items()}
    assert misfits(read_keys(KEYS), ours) == ""
    assert len(ours) == 1121 and sum(value.numel() for value in flow.parameters()) == 112_549_360


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    flow = tiny(4)
    torch.save(flow.state_dict(), tmp_path / "flow.pt")
    again = load(tmp_path / "flow.pt", TINY)
    codes = torch.arange(30)
    mels = [model.step(model.open(codes[:0], torch.zeros(0, 80), torch.ones(192)), codes, final=True) for model in (flow, again)]
    assert torch.equal(*mels) and mels[0].shape == (80, 60)
    half = load(tmp_path / "flow.pt", TINY, dtype=torch.bfloat16)
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("decoder.estimator.transformer_blocks.0.attn.to_q.weight", "is the flow of CosyVoice3, which is another network"),
        ("length_regulator.model.0.weight", r"is the flow of CosyVoice \(1\), which is another network"),
    ],
)
def test_other_generations_are_named(tmp_path: Path, name: str, told: str) -> None:
    torch.save({"input_embedding.weight": torch.zeros(3, 2), name: torch.zeros(2, 2)}, tmp_path / "flow.pt")
    with pytest.raises(WeightsError, match=told) as caught:
        load(tmp_path / "flow.pt")
    assert "\n" not in str(caught.value)


def test_all_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    tensors = tiny(4).state_dict()
    del tensors["encoder_proj.bias"]
    tensors["encoder_proj.weight"] = tensors["encoder_proj.weight"][:, :3]
    tensors["more"] = torch.zeros(1)
    torch.save(tensors, tmp_path / "flow.pt")
    with pytest.raises(WeightsError) as caught:
        load(tmp_path / "flow.pt", TINY)
    assert "Missing: encoder_proj.bias; unexpected: more; of another shape: encoder_proj.weight (80x3 instead of 80x16)" in str(
        caught.value
    )


def test_a_file_cut_short_is_told(tmp_path: Path) -> None:
    torch.save(tiny(4).state_dict(), tmp_path / "flow.pt")
    (tmp_path / "flow.pt").write_bytes((tmp_path / "flow.pt").read_bytes()[:10_000])
    with pytest.raises(WeightsError, match="damaged or cut short"):
        load(tmp_path / "flow.pt", TINY)


def test_random_weights_are_the_seeds_and_leave_torchs_own_numbers_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = tiny(1), tiny(1), tiny(2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.encoder_proj.weight, same.encoder_proj.weight)
    assert not torch.equal(one.encoder_proj.weight, other.encoder_proj.weight)
    assert sum(value.nbytes for value in one.parameters()) < 1_000_000
