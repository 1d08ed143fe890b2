"""The VITS voice as a torch module: the teacher of the voice that is trained here, in batches on a GPU.

Notable: weights are read out of the three ONNX graphs of `vits.split_vits`, where those of the flow have lost their names and are
found by the nodes that use them; `pack` keeps all of it in one fp16 safetensors of 31 MB. Given the same noise it is the voice that
onnxruntime runs (a test holds that), and a row of a batch gives what it gives alone.

    ids [B, P] -> TextEncoder -> DurationPredictor -> durations [B, P] -> prior [B, C, T] -> CouplingFlow -> latents [B, T, C]
    latents -> Generator (HiFi-GAN) -> samples at 22.05 kHz

Kim et al. 2021 (VITS); checkpoint: Piper's en_US-joe-medium.

Shapes: B rows, P phoneme ids with pads (`^ _ p _ ... _ $`), C latent channels (192), T latent frames of 256 samples.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from decoders.onnx_weights import module_path, read_graph
from decoders.vits_sound import CouplingFlow, Generator
from decoders.vits_text import DurationPredictor, TextEncoder
from duplex.checkpoint import fill, read_tensors
from duplex.errors import WeightsError

VITS_RATE_HZ = 22_050
HOP = 256  # samples per latent frame
GRAPHS = ("text", "flow", "decoder")
_PARTS = ("enc_p.", "dp.", "flow.", "dec.")
_RENAMED = {"sid": "enc_p.emb.weight", "/dp/flows.0/Exp_output_0": "dp.flows.0.scale"}


@dataclass(frozen=True, slots=True)
class VitsNetConfig:
    """Sizes; the defaults are Piper's "medium"."""

    symbols: int = 256
    """Phoneme ids."""
    channels: int = 192
    """Of the text's hidden states and of the latents."""
    inner: int = 768
    """Of the text encoder's feed-forward layers."""
    layers: int = 6
    """Of the text encoder."""
    heads: int = 2
    """Of its attention."""
    generator: int = 256
    """Channels of HiFi-GAN before its first stage; each stage halves them."""

    def __post_init__(self) -> None:
        if self.channels % 2 or self.channels % self.heads or self.generator % 8:
            raise ValueError(
                f"A VITS voice needs even channels that its heads divide, and a generator of a multiple of 8, not {self.channels}, "
                f"{self.heads} and {self.generator}"
            )


class VitsNet(nn.Module):
    """The voice. Inference only."""

    def __init__(self, config: VitsNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or VitsNetConfig()
        self.enc_p = TextEncoder(self.config)
        self.dp = DurationPredictor(self.config.channels)
        self.flow = CouplingFlow(self.config.channels)
        self.dec = Generator(self.config)
        self.requires_grad_(False).train(False)

    @classmethod
    def load(cls, source: Path, device: torch.device | str = "cpu") -> VitsNet:
        """From the folder that `vits.split_vits` wrote, or from a file that `pack` wrote; in fp32.

        Raises WeightsError when it is missing, damaged or another voice.
        """
        if source.is_dir():
            config, tensors = VitsNetConfig(), read_split(source)
        else:
            config, tensors = _read_config(source), read_tensors(source)
        net = cls(config)
        fill(net, tensors, source, "the VITS voice", torch.float32)
        return net.to(device)

    def pack(self, path: Path) -> None:
        """Write all weights to one fp16 safetensors; the file appears whole or not at all."""
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")  # several trainers may come here at once
        tensors = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, part, {"config": json.dumps(dataclasses.asdict(self.config))})
        part.replace(path)

    @torch.no_grad()
    def prior(
        self, ids: Tensor, lengths: Tensor, noise: Tensor, noise_w: float = 0.8, length_scale: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ids [B, P] and their lengths [B], noise [B, 2, P] -> mean and log-deviation [B, C, P], durations int64 [B, P]."""
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None])[:, None].to(noise.dtype)  # [B, 1, P]
        hidden, mean, log_deviation = self.enc_p(ids, mask)
        log_durations = self.dp(hidden, noise * noise_w, mask)
        durations = torch.ceil(log_durations.exp() * mask[:, 0] * length_scale).long()
        return mean, log_deviation, durations

    @torch.no_grad()
    def latents(self, mean: Tensor, log_deviation: Tensor, durations: Tensor, noise: Tensor, noise_scale: float = 0.667) -> Tensor:
        """A prior [B, C, P], drawn out to durations [B, P] with noise [B, C, T], T of the longest row -> [B, T, C]; zero after a row."""
        ends = durations.cumsum(1)  # [B, P]
        frames = torch.arange(noise.shape[2], device=noise.device)
        mask = (frames < ends[:, -1:])[:, None].to(noise.dtype)  # [B, 1, T]
        owner = torch.searchsorted(ends, frames.expand(len(ends), -1).contiguous(), right=True).clamp(max=ends.shape[1] - 1)
        owner = owner[:, None].expand(-1, mean.shape[1], -1)  # [B, C, T]
        prior = mean.gather(2, owner) + noise * log_deviation.gather(2, owner).exp() * noise_scale
        return cast(Tensor, self.flow(prior * mask, mask)).transpose(1, 2)

    def speak(
        self,
        ids: Tensor,
        lengths: Tensor,
        generator: torch.Generator | None = None,
        noise_scale: float = 0.667,
        noise_w: float = 0.8,
        length_scale: float = 1.0,
        multiple: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """ids [B, P] and their lengths [B] -> latents [B, T, C], durations int64 [B, P].

        generator: draws the noise, on the device of `ids`. multiple: the last id of each row is held until the row's frames are a
        multiple of this.
        """
        rows, count = ids.shape
        noise = torch.randn(rows, 2, count, generator=generator, device=ids.device)
        mean, log_deviation, durations = self.prior(ids, lengths, noise, noise_w, length_scale)
        if multiple > 1:
            more = (-durations.sum(1)) % multiple
            durations = durations.scatter_add(1, lengths[:, None] - 1, more[:, None])
        longest = int(durations.sum(1).max())
        noise = torch.randn(rows, mean.shape[1], longest, generator=generator, device=ids.device)
        return self.latents(mean, log_deviation, durations, noise, noise_scale), durations

    @torch.no_grad()
    def render(self, latents: Tensor) -> Tensor:
        """latents [B, T, C] -> samples [B, T * HOP] at VITS_RATE_HZ, in -1 to 1."""
        return cast(Tensor, self.dec(latents.transpose(1, 2)))


def read_split(folder: Path) -> dict[str, Tensor]:
    """All weights of the three graphs in `folder`, by the checkpoint's names.

    Raises WeightsError when a graph is missing or damaged.
    """
    from onnx import numpy_helper

    tensors: dict[str, Tensor] = {}
    for name in GRAPHS:
        graph = read_graph(folder / f"{name}.onnx").graph
        nameless = {
            node.input[1]: f"{module_path(node.name)}.weight"
            for node in graph.node
            if node.op_type == "Conv" and len(node.input) > 1
        }
        for stored in graph.initializer:
            ours = stored.name if stored.name.startswith(_PARTS) else _RENAMED.get(stored.name, nameless.get(stored.name))
            if ours is not None:
                tensors[ours] = torch.from_numpy(np.array(numpy_helper.to_array(stored), np.float32))
    return tensors


def _read_config(path: Path) -> VitsNetConfig:
    from safetensors import safe_open

    if not path.is_file():
        raise WeightsError(f"{path} is missing; make it with `duologue train tokenizer --pack-teacher {path}`.")
    try:
        with safe_open(path, "pt") as file:
            return VitsNetConfig(**json.loads((file.metadata() or {})["config"]))
    except Exception as error:  # safetensors has an exception of its own; a foreign file lacks the sizes
        raise WeightsError(f"{path} does not hold the packed voice ({error}); make it again with --pack-teacher.") from error
