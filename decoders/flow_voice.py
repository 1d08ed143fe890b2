"""The small flow of the agent's own voice: its sizes, its codes, and its file.

Notable: a file says itself how large its network is and how many steps it was brought down to (JSON in its metadata), and holds the mean
and deviation of every latent channel, so nothing else is needed to turn codes into latents. A code is one number here, of five digits
(`speech_tokenizer.digits_to_index`).

Shapes: n codes, R frames per code (4), M latent channels (192).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from decoders.flow import Flow, FlowConfig
from decoders.flow_checkpoint import build
from decoders.flow_encoder import FlowEncoderConfig
from decoders.flow_estimator import FlowEstimatorConfig
from decoders.speech_tokenizer import LEVELS
from duplex.checkpoint import read_tensors
from duplex.errors import WeightsError

WEIGHTS = Path(__file__).parent / "weights" / "flow.safetensors"
CHANNELS = 192

VOICE = FlowConfig(
    vocabulary=4375,
    levels=LEVELS,
    mel=CHANNELS,
    ratio=4,
    speaker=0,
    prompted=False,
    chunk=5,
    window=20,
    steps=1,
    guidance=0.0,
    max_frames=20_000,
    encoder=FlowEncoderConfig(width=192, heads=3, feed_forward=768, blocks=3, up_blocks=1, lookahead=2),
    estimator=FlowEstimatorConfig(channels=160, blocks=1, mid_stages=2, heads=4, head_width=40, spans=True),
)
"""Sizes of the voice's flow: first frames after seven codes, then every five; each code sees about a second before it."""

_STATISTICS = ("latent_mean", "latent_deviation")


@dataclass(frozen=True, slots=True)
class VoiceFlow:
    """A flow and what its frames are measured in."""

    flow: Flow
    mean: Tensor
    """[M] of each latent channel."""
    deviation: Tensor
    """[M]; a latent is mean + deviation * frame."""


def split(codes: Tensor, levels: tuple[int, ...] = LEVELS) -> Tensor:
    """Codes [...] to digits [..., digits] uint8; undoes `speech_tokenizer.digits_to_index`."""
    digits = []
    for level in levels:
        digits.append(codes % level)
        codes = codes // level
    return torch.stack(digits, dim=-1).to(torch.uint8)


def save(made: VoiceFlow, path: Path, steps: int | None = None, temperature: float | None = None) -> None:
    """Write weights (fp16), sizes and statistics. steps, temperature: that the reader shall use, if not the flow's own. Raises OSError."""
    tensors = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in made.flow.state_dict().items()}
    statistics = (made.mean, made.deviation)
    tensors |= {name: value.detach().to("cpu", torch.float32) for name, value in zip(_STATISTICS, statistics, strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    own = made.flow.config
    calm = own.temperature if temperature is None else temperature
    sizes = dataclasses.replace(own, steps=steps or own.steps, temperature=calm)
    save_file(tensors, fresh, metadata={"flow": json.dumps(dataclasses.asdict(sizes))})
    fresh.replace(path)


def load(path: Path = WEIGHTS, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> VoiceFlow:
    """Read what `save` wrote, ready for inference. Raises WeightsError when the file is missing, damaged or of another kind."""
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        sizes = (file.metadata() or {}).get("flow")
    if sizes is None or not all(name in tensors for name in _STATISTICS):
        raise WeightsError(f"{path} is no flow of this voice: it lacks its sizes or its latents' statistics; train it again.")
    mean, deviation = (tensors.pop(name).to(device, torch.float32) for name in _STATISTICS)
    flow = build(read_sizes(sizes), tensors, path, dtype=dtype, device=device)
    return VoiceFlow(flow.requires_grad_(False).train(False), mean, deviation)


def read_sizes(text: str) -> FlowConfig:
    """A config from the JSON of a file. Raises WeightsError."""
    try:
        given = json.loads(text)
        encoder, estimator = FlowEncoderConfig(**given.pop("encoder")), FlowEstimatorConfig(**given.pop("estimator"))
        return FlowConfig(**{**given, "levels": tuple(given["levels"])}, encoder=encoder, estimator=estimator)
    except (TypeError, KeyError, ValueError) as error:
        raise WeightsError(f"The flow's sizes cannot be read ({error}); it was made by another version.") from error
