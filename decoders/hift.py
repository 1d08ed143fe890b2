"""HiFT, CosyVoice2's vocoder: mel frames to a 24 kHz waveform, whole or in pieces.

Notable: one forward for both modes. A whole passage is a fresh state and one long final step. The weights carry weight norm under the
official names until `fuse` folds it into plain weights, which `hift_checkpoint` does once at load.

How near a stream comes to the whole passage is decided by the seams (`HiFTConfig.seams`; see `hift_stream`).

Sources: Li et al. 2023, "HiFTNet"; checkpoint: CosyVoice2-0.5B hift.pt (328 tensors, 20.8 M parameters).

Shapes: t, T mel frames (20 ms), M mel bands (80), N = 480 T samples, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from decoders.hift_filter import ResBlock, source_down, spectrum, stage, upsampler, waveform
from decoders.hift_source import F0Predictor, HarmonicSource, published_sines
from decoders.hift_stream import ContinuousState, UpstreamState, continuous_step, upstream_step

HiFTState = ContinuousState | UpstreamState


@dataclass(frozen=True, slots=True)
class HiFTConfig:
    """Sizes of the checkpoint, and how a stream is joined."""

    mel_bands: int = 80
    """Mel bands per frame."""
    channels: int = 512
    """Channels before the first upsampling; each stage has half as many as the one before."""
    f0_channels: int = 512
    """Channels of the pitch predictor."""
    harmonics: int = 9
    """Sines of the excitation, the fundamental included."""
    rate_hz: int = 24_000
    """Sample rate."""
    up_rates: tuple[int, ...] = (8, 5, 3)
    """Upsampling factor of each stage."""
    up_kernels: tuple[int, ...] = (16, 11, 7)
    """Kernel of each upsampling convolution."""
    kernels: tuple[int, ...] = (3, 7, 11)
    """Kernels of the residual blocks that each stage averages."""
    source_kernels: tuple[int, ...] = (7, 7, 11)
    """Kernel of the residual block through which the excitation enters each stage."""
    dilations: tuple[int, ...] = (1, 3, 5)
    """Dilations within every residual block."""
    n_fft: int = 16
    """Points of the STFT that the network predicts."""
    hop: int = 4
    """Samples between its frames."""
    sine_level: float = 0.1
    """Amplitude of each sine of the excitation."""
    noise_level: float = 0.003
    """Deviation of the noise beside the sines; unvoiced frames have a third of `sine_level` instead."""
    voiced_hz: float = 10.0
    """Pitch above which a frame is voiced."""
    peak: float = 0.99
    """Largest sample that leaves the vocoder."""
    seams: Literal["continuous", "upstream"] = "continuous"
    """How pieces are joined: with phase and past carried over, or as the published code does."""
    context_frames: int = 8
    """Past mel frames that each continuous step sees again; they cost time, not latency."""
    hold_frames: int = 8
    """Newest mel frames held back until their future is known: 20 ms of latency each. Upstream: 8."""
    fade_samples: int = 240
    """Samples over which a continuous step takes over from the one before."""

    def __post_init__(self) -> None:
        stages = len(self.up_rates)
        if not stages or len(self.up_kernels) != stages or len(self.source_kernels) != stages:
            raise ValueError("hift.up_rates, up_kernels and source_kernels must have one entry per stage")
        if self.channels % 2**stages:
            raise ValueError(f"hift.channels must be a multiple of {2**stages}, not {self.channels}")
        if self.hop * 4 != self.n_fft:
            raise ValueError(f"hift.n_fft must be four times hift.hop, not {self.n_fft} and {self.hop}")
        if self.seams not in ("continuous", "upstream"):
            raise ValueError(f"hift.seams must be continuous or upstream, not {self.seams!r}")
        least = F0Predictor.LAYERS + 1
        if self.hold_frames < least or self.context_frames < least:
            raise ValueError(f"hift.hold_frames and hift.context_frames must be at least {least}, the reach of the pitch predictor")
        if not 1 <= self.fade_samples <= self.frame_samples:
            raise ValueError(f"hift.fade_samples must be in 1 to {self.frame_samples}, not {self.fade_samples}")

    @property
    def frame_samples(self) -> int:
        """Samples per mel frame (480)."""
        return prod(self.up_rates) * self.hop


class HiFT(nn.Module):
    """The vocoder. Holds no state: any number of responses, each with its own state, may be stepped in any order."""

    def __init__(self, config: HiFTConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or HiFTConfig()
        bins = c.n_fft + 2  # real and imaginary parts
        widths = [c.channels // 2**index for index in range(len(c.up_rates) + 1)]
        stages = list(zip(widths, widths[1:], c.up_rates, c.up_kernels, c.source_kernels, strict=False))
        self.m_source = HarmonicSource(c.harmonics, c.rate_hz, c.frame_samples, c.sine_level, c.noise_level, c.voiced_hz)
        self.conv_pre = weight_norm(nn.Conv1d(c.mel_bands, c.channels, 7, padding=3))
        self.ups = nn.ModuleList(upsampler(wide, kernel, rate) for wide, _, rate, kernel, _ in stages)
        self.source_downs = nn.ModuleList(
            source_down(bins, narrow, prod(c.up_rates[index + 1 :])) for index, (_, narrow, *_) in enumerate(stages)
        )
        self.source_resblocks = nn.ModuleList(ResBlock(narrow, kernel, c.dilations) for _, narrow, _, _, kernel in stages)
        self.resblocks = nn.ModuleList(ResBlock(narrow, kernel, c.dilations) for _, narrow, *_ in stages for kernel in c.kernels)
        self.conv_post = weight_norm(nn.Conv1d(widths[-1], bins, 7, padding=3))
        self.f0_predictor = F0Predictor(c.mel_bands, c.f0_channels)

    def fuse(self) -> None:
        """Fold weight norm into plain weights, so that no step computes it again. The state dict loses its official names."""
        for module in list(self.modules()):
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)

    def source(self, f0: Tensor, noise: Tensor | None) -> Tensor:
        """f0 [T] Hz, noise [N, 9] or None -> the excitation [N] of a whole passage, by the published arithmetic."""
        return self.m_source(f0, published_sines(self.m_source.rates(f0), self.config.frame_samples), noise)

    def filter(self, mel: Tensor, source: Tensor) -> Tensor:
        """mel [M, T], excitation [N] -> samples [N], float32."""
        c = self.config
        dtype = self.conv_pre.bias.dtype
        excitation = spectrum(source.float(), c.n_fft, c.hop).to(dtype)  # [1, 18, N / 4 + 1]
        x = self.conv_pre(mel.to(dtype)[None])  # [1, C, T]
        last, per_stage = len(self.ups) - 1, len(c.kernels)
        for index, (up, down, entry) in enumerate(zip(self.ups, self.source_downs, self.source_resblocks, strict=True)):
            blocks = list(self.resblocks[index * per_stage : (index + 1) * per_stage])
            x = stage(x, down(excitation), up, entry, blocks, index == last)  # [1, C / 2, L]
        return waveform(self.conv_post(F.leaky_relu(x, 0.01)), c.n_fft, c.hop, c.peak)

    def open(self, seed: int | None = 0) -> HiFTState:
        """A fresh state for one response. Equal seeds and mel frames give equal samples; None leaves the noise out."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        mel = self.conv_pre.bias.new_zeros(self.config.mel_bands, 0, dtype=torch.float32)
        none = mel.new_zeros(0)
        if self.config.seams == "upstream":
            return UpstreamState(generator, mel, none, none)
        return ContinuousState(generator, mel, none)

    @torch.inference_mode()
    def step(self, state: HiFTState, mel: Tensor, final: bool) -> Tensor:
        """mel [M, t] frames that follow those of earlier steps, t >= 0 -> samples [n] float32 at 24 kHz on the model's device.

        All but the newest `hold_frames` frames have been returned after a step, all of them after the final one. Raises ValueError
        when the mel has another number of bands, or after the final step.
        """
        c = self.config
        if mel.dim() != 2 or mel.shape[0] != c.mel_bands:
            raise ValueError(f"the vocoder wants mel [{c.mel_bands}, t], not {list(mel.shape)}")
        if state.ended:
            raise ValueError("this response has ended; open a fresh state")
        mel = mel.to(state.mel)
        if isinstance(state, UpstreamState):
            return upstream_step(self, state, mel, final, c.hold_frames)
        return continuous_step(self, state, mel, final, c.context_frames, c.hold_frames, c.fade_samples)
