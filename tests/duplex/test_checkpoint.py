"""Checkpoints are data, and fit to the last key or not at all."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from duplex.checkpoint import fill, misfits, read_tensors
from duplex.errors import WeightsError


def layer() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(3, 2)


@pytest.mark.parametrize("nest", [None, "state_dict", "model_state_dict"])
def test_pt_files_are_read_nested_or_not(tmp_path: Path, nest: str | None) -> None:
    state = nn.Linear(3, 2).state_dict()
    torch.save(state if nest is None else {nest: state, "step": 3}, tmp_path / "a.pt")
    module = layer()
    fill(module, read_tensors(tmp_path / "a.pt"), "a.pt", "a layer")
    assert torch.equal(module.weight, state["weight"])  # type: ignore[arg-type]
    assert not module.training and not module.weight.requires_grad  # type: ignore[union-attr]


def test_safetensors_and_dtype(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, tmp_path / "a.safetensors")
    module = layer()
    fill(module, read_tensors(tmp_path / "a.safetensors"), "a", "a layer", torch.bfloat16)
    assert module.weight.dtype == torch.bfloat16


def test_misfits_are_all_in_one_message() -> None:
    with pytest.raises(WeightsError) as caught:
        fill(layer(), {"weight": torch.ones(3, 2), "extra": torch.ones(1)}, "x.pt", "a layer")
    text = str(caught.value)
    assert "Missing: bias" in text and "unexpected: extra" in text and "weight (3x2 instead of 2x3)" in text
    assert misfits({"a": (1,)}, {"a": (1,)}) == ""
    assert "and 8 more" in misfits({str(i): () for i in range(20)}, {})


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('was_here', 'w').close()",)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    if form == "torch":
        torch.save({"weight": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Evil()}, protocol=2))
    with pytest.raises(WeightsError, match="could run code"):
        read_tensors(path)
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_cut_short_is_one_sentence(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    state = nn.Linear(300, 200).state_dict()
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match="damaged or cut short"):
        read_tensors(path)


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is missing"):
        read_tensors(tmp_path / "none.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match="damaged"):
        read_tensors(tmp_path / "empty.pt")
    torch.save({"step": 3}, tmp_path / "step.pt")
    with pytest.raises(WeightsError, match="no tensors"):
        read_tensors(tmp_path / "step.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="a list instead"):
        read_tensors(tmp_path / "list.pt")
