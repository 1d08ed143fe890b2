"""The pointer LM's file: fp16 safetensors that say in their header what sizes the network has.

Its means and deviations of the LLM's channels stay float32, since some hidden channels are thousands of times larger than others.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from decoders.pointer_lm import PointerLM, PointerLMConfig
from duplex.checkpoint import fill, read_tensors
from duplex.errors import WeightsError

WEIGHTS = Path(__file__).parent / "weights" / "voice_lm.safetensors"
"""What ships."""


def save(net: PointerLM, file: Path) -> None:
    """Write the weights, whole or not at all. Raises OSError."""
    tensors = {
        name: value.detach()
        .cpu()
        .to(torch.float32 if name.startswith("projector.") and value.ndim == 1 else torch.float16)
        .contiguous()
        for name, value in net.state_dict().items()
    }
    part = file.with_suffix(".part")
    save_file(tensors, part, {"config": json.dumps(asdict(net.config))})
    os.replace(part, file)


def load(file: Path = WEIGHTS) -> PointerLM:
    """The network in float32, ready for inference. Raises WeightsError for what is missing, damaged or of another kind."""
    tensors = read_tensors(file)
    try:
        with safe_open(file, "pt") as opened:
            kept = json.loads((opened.metadata() or {})["config"])
        config = PointerLMConfig(**{**kept, "levels": tuple(kept["levels"])})
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{file} does not say what network it is of ({error}); train it again.") from error
    net = PointerLM(config)
    fill(net, tensors, file, "the voice LM", torch.float32)
    return net
