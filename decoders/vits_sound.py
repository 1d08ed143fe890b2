"""The sound side of a VITS voice as torch modules: prior to latents (a residual coupling flow run backwards), latents to sound (HiFi-GAN).

Notable: names of the parameters are the checkpoint's; its weight norms are already multiplied out. The three residual blocks of a
HiFi-GAN stage have dilations (1, 2), (2, 6) and (3, 12): Piper's "medium".

Kim et al. 2021 (VITS); Kong et al. 2020 (HiFi-GAN).

Shapes: B rows, C latent channels (192), T latent frames (padded), hop 256 samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from decoders.vits_net import VitsNetConfig

STAGES = ((8, 16), (8, 16), (4, 8))  # (times longer, kernel) of each stage: 256 samples a frame
BLOCKS = ((3, (1, 2)), (5, (2, 6)), (7, (3, 12)))  # (kernel, dilations) of a stage's three residual blocks


class GatedStack(nn.Module):
    """Four gated convolutions over five frames, with residuals and skips (WaveNet)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.in_layers = nn.ModuleList(nn.Conv1d(channels, 2 * channels, 5, padding=2) for _ in range(4))
        self.res_skip_layers = nn.ModuleList(nn.Conv1d(channels, channels * (1 if last else 2), 1) for last in (0, 0, 0, 1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, C, T], zero outside of the mask -> sum of the skips [B, C, T]."""
        skips: Tensor | None = None
        for enter, leave in zip(self.in_layers, self.res_skip_layers, strict=True):
            value, gate = enter(x).chunk(2, dim=1)
            out = leave(value.tanh() * gate.sigmoid())
            if out.shape[1] == self.channels:
                skip = out
            else:
                residual, skip = out.chunk(2, dim=1)
                x = (x + residual) * mask
            skips = skip if skips is None else skips + skip
        assert skips is not None
        return skips * mask


class Coupling(nn.Module):
    """Half of the channels shifted by what the other half says."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pre = nn.Conv1d(channels // 2, channels, 1)
        self.enc = GatedStack(channels)
        self.post = nn.Conv1d(channels, channels // 2, 1)

    def backward_flow(self, z: Tensor, mask: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]: from the prior towards latents."""
        kept, moved = z.chunk(2, dim=1)
        shift = self.post(self.enc(self.pre(kept) * mask, mask)) * mask
        return torch.cat((kept, (moved - shift) * mask), dim=1)


class CouplingFlow(nn.Module):
    """Four couplings with the channels turned around between them. The checkpoint's numbering: 0, 2, 4 and 6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.flows = nn.ModuleDict({str(index): Coupling(channels) for index in (0, 2, 4, 6)})

    def forward(self, prior: Tensor, mask: Tensor) -> Tensor:
        """Noisy prior [B, C, T], mask [B, 1, T] -> latents [B, C, T]."""
        z = prior
        for index in ("6", "4", "2", "0"):
            z = cast(Coupling, self.flows[index]).backward_flow(z.flip(1), mask)
        return z * mask


class ResidualBlock(nn.Module):
    """Two dilated convolutions, each with a residual."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2 * dilation, dilation=dilation) for dilation in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, 0.1))
        return x


class Generator(nn.Module):
    """HiFi-GAN: latents [B, C, T] -> samples [B, T * 256]."""

    def __init__(self, config: VitsNetConfig) -> None:
        super().__init__()
        widths = [config.generator >> stage for stage in range(len(STAGES) + 1)]
        self.conv_pre = nn.Conv1d(config.channels, widths[0], 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(widths[stage], widths[stage + 1], kernel, times, padding=(kernel - times) // 2)
            for stage, (times, kernel) in enumerate(STAGES)
        )
        self.resblocks = nn.ModuleList(ResidualBlock(width, *block) for width in widths[1:] for block in BLOCKS)
        self.conv_post = nn.Conv1d(widths[-1], 1, 7, padding=3, bias=False)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.conv_pre(latents)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            blocks = self.resblocks[len(BLOCKS) * stage : len(BLOCKS) * (stage + 1)]
            x = cast(Tensor, sum(block(x) for block in blocks)) / len(BLOCKS)
        return cast(Tensor, self.conv_post(F.leaky_relu(x, 0.01))).tanh()[:, 0]
