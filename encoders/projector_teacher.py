"""What the input projector is held to while it learns: Whisper's encoder as published, with all of the sound in view.

Legend: B rows, M mel frames, T encoder positions, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.mel import MELS, QUIET, SILENCE
from encoders.speech_projector import SpeechProjector, SpeechProjectorConfig, level, load_whisper

SILENT_STRIDE = 8
"""Of the remembered silence after the sound, one position in so many stands for its neighbours."""


class Teacher(nn.Module):
    """Whisper's encoder as published, with a full view of the window and remembered silence after it, as our other ears have it."""

    def __init__(self, tensors: dict[str, Tensor], config: SpeechProjectorConfig) -> None:
        super().__init__()
        self.net = SpeechProjector(config)
        load_whisper(self.net, tensors)
        self.requires_grad_(False)
        self._silent: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def forward(self, mel: Tensor) -> Tensor:
        """[B, M, 80] log10 mel power -> [B, T, W] states, aligned with `SpeechProjector`'s."""
        net = self.net
        if not self._silent:
            silence = torch.full((1, 2 * len(net.positions), MELS), SILENCE, device=mel.device)
            x = self._stem(silence)
            for layer in net.encoder:
                x, pair = layer(x, None, None, 0, x.shape[1])
                self._silent.append(pair)
        peak = mel.amax((1, 2)).clamp(min=QUIET)
        levelled, _ = level(mel, peak, mel.shape[1])
        x = self._stem(levelled)
        t, whole = x.shape[1], len(net.positions)
        kept = range(t + SILENT_STRIDE // 2, whole, SILENT_STRIDE)
        weight = torch.zeros(1, 1, 1, len(kept) + t, device=x.device, dtype=x.dtype)
        if len(kept):
            weight[..., : len(kept)] = math.log((whole - t) / len(kept))
        for layer, (k, v) in zip(net.encoder, self._silent, strict=True):
            chosen = slice(kept.start, kept.stop, kept.step)
            past = tuple(one[:, :, chosen].expand(len(x), -1, -1, -1).to(x.dtype) for one in (k, v))
            x, _ = layer(x, past if len(kept) else None, weight.expand(len(x), 1, t, -1), 0, 1)
        out: Tensor = net.encoder_norm(x)
        return out

    def _stem(self, levelled: Tensor) -> Tensor:
        net = self.net
        framed = functional.pad(levelled, (0, 0, 3, 0), value=SILENCE)
        x = functional.gelu(net.conv1(framed.transpose(1, 2)))
        x = functional.gelu(net.conv2(x)).transpose(1, 2)
        return x + net.positions[: x.shape[1]]
