"""HiFT from an official hift.pt, or from a seed.

Notable: weight norm is loaded under the checkpoint's names, strictly, then folded into plain weights, so the model that comes out has no
official names any more. Older files say `weight_g` and `weight_v`, and training checkpoints put `generator.` before every name; both are
read. The pitch predictor and the excitation stay in float32 whatever the dtype: in bfloat16 a pitch is off by up to 0.4 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from decoders.hift import HiFT, HiFTConfig
from duplex.checkpoint import fill, read_tensors
from duplex.errors import WeightsError

TINY = HiFTConfig(channels=16, f0_channels=8)
"""30,000 parameters and the full-size rates: what `tiny` uses unless told otherwise."""

_RENAMED = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
_FLOAT32 = ("f0_predictor", "m_source")


def load(
    path: Path, config: HiFTConfig | None = None, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> HiFT:
    """The vocoder of CosyVoice2, ready for inference.

    Raises:
        WeightsError: the file is missing, damaged, of CosyVoice(1) or CosyVoice3, or does not fit; every misfit is listed.
    """
    tensors = official_names(read_tensors(path))
    _refuse_siblings(path, tensors)
    with torch.device("meta"):
        model = HiFT(config)
    fill(model, tensors, path, "the CosyVoice2 vocoder (HiFT)")
    return _ready(model, dtype, device)


def official_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as in the released hift.pt, from older or training checkpoints."""
    renamed = {}
    for name, value in tensors.items():
        stem, _, leaf = name.removeprefix("generator.").rpartition(".")
        renamed[f"{stem}.{_RENAMED.get(leaf, leaf)}" if stem else leaf] = value
    return renamed


def _refuse_siblings(path: Path, tensors: Mapping[str, Tensor]) -> None:
    entry = tensors.get("conv_pre.parametrizations.weight.original1")
    if entry is None or entry.dim() != 3:
        return
    if entry.shape[2] == 5:
        raise WeightsError(f"{path} is the vocoder of CosyVoice3, which is another network; give CosyVoice2-0.5B's hift.pt.")
    if "ups.1.bias" in tensors and "ups.2.bias" not in tensors:
        raise WeightsError(f"{path} is the 22 kHz vocoder of CosyVoice(1); give CosyVoice2-0.5B's hift.pt, which runs at 24 kHz.")


def tiny(seed: int = 0, config: HiFTConfig = TINY) -> HiFT:
    """The same class with random weights, by default small ones: soft buzzing and hissing. Also for measuring at full size."""
    model = HiFT(replace(config))
    generator = torch.Generator().manual_seed(seed)
    for name, value in sorted(model.state_dict().items()):
        if name.endswith(".alpha"):
            value.fill_(1.0)
        elif name.endswith("original0"):
            value.fill_(0.6)
        elif name.endswith("bias"):
            value.zero_()
        else:
            value.normal_(0.0, (value.numel() / value.shape[0]) ** -0.5, generator=generator)
    with torch.no_grad():
        bins = config.n_fft // 2 + 1
        model.conv_post.bias[:bins] = 1.0  # log magnitude
        model.f0_predictor.classifier.bias.fill_(150.0)  # Hz
        model.f0_predictor.classifier.weight.mul_(40.0)
    return _ready(model, torch.float32, "cpu")


def _ready(model: HiFT, dtype: torch.dtype, device: torch.device | str) -> HiFT:
    model.fuse()
    model.requires_grad_(False).train(False).to(device)
    for name, part in model.named_children():
        if name not in _FLOAT32:
            part.to(dtype)
    return model
