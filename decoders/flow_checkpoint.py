"""Where a flow comes from: CosyVoice2's `flow.pt`, or random weights for tests and benches.

Notable: the other generations of CosyVoice ship files of the same name; they are recognised by names that only they have.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from decoders.flow import Flow, FlowConfig
from decoders.flow_encoder import FlowEncoderConfig
from decoders.flow_estimator import FlowEstimatorConfig
from duplex.checkpoint import fill, read_tensors
from duplex.errors import WeightsError

TINY = FlowConfig(
    steps=2,
    encoder=FlowEncoderConfig(width=16, heads=2, feed_forward=32, blocks=1, up_blocks=1),
    estimator=FlowEstimatorConfig(channels=16, blocks=1, mid_stages=1, heads=2, head_width=8),
)
"""CosyVoice2's codes, frames, chunks and speakers, in the smallest networks."""

# A name that starts so is in no CosyVoice2 flow, and in every flow of that generation.
_OTHERS = {
    "decoder.estimator.transformer_blocks.": "CosyVoice3",
    "length_regulator.": "CosyVoice (1)",
}


def load(
    path: Path, config: FlowConfig | None = None, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Flow:
    """The flow of a CosyVoice2 `flow.pt` (or a `.safetensors` with the same names), ready for inference.

    config: sizes, if not CosyVoice2-0.5B's. Raises WeightsError when the file is missing, damaged, of another generation of
    CosyVoice, or does not hold exactly what `config` asks for.
    """
    tensors = read_tensors(path)
    for prefix, name in _OTHERS.items():
        if any(key.startswith(prefix) for key in tensors):
            raise WeightsError(f"{path} is the flow of {name}, which is another network; give the folder of CosyVoice2-0.5B.")
    return build(config or FlowConfig(), tensors, path, dtype=dtype, device=device)


def build(
    config: FlowConfig,
    tensors: dict[str, Tensor],
    source: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Flow:
    """A flow of these tensors, strictly; `source` is named when they do not fit (WeightsError)."""
    with torch.device("meta"):
        flow = Flow(config)
    fill(flow, tensors, source, "the flow", dtype)
    return flow.to(device)


def tiny(
    seed: int = 0, config: FlowConfig = TINY, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Flow:
    """A flow with random weights, the same for the same seed and sizes; torch's own random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = Flow(config)
    return flow.requires_grad_(False).train(False).to(device=device, dtype=dtype)
