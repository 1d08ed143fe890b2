"""HiFT's source: a pitch for each mel frame, and the sum of sines and noise that the filter shapes into a voice.

Notable: two ways to run the sines. `published_sines` is the checkpoint's own arithmetic: the phase of a whole passage summed in float32
from zero, whose rounding grows with its length (at 2 s the ninth harmonic is off by some thousandths of a radian). `carried_sines` is
the same curve with the phase kept in cycles, in float64 and modulo one, so it can go on from where an earlier call stopped for as
long as the conversation lasts. A frame's sines need the pitch of the next frame, because the phase runs straight from the middle of a
frame to the middle of the next; a frame's pitch needs `F0Predictor.reach` frames to both sides.

Sources: Wang, Takaki, Yamagishi 2019, "Neural source-filter waveform models"; Li et al. 2023, "HiFTNet"; checkpoint: CosyVoice2's hift.pt.

Shapes: T mel frames, M mel bands (80), H harmonics (9), S samples per frame (480), N = T S samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


class F0Predictor(nn.Module):
    """Mel frames to pitch."""

    LAYERS = 5

    def __init__(self, mel_bands: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(self.LAYERS):
            layers += [weight_norm(nn.Conv1d(channels if index else mel_bands, channels, 3, padding=1)), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    @property
    def reach(self) -> int:
        """Mel frames to each side that the pitch of a frame depends on."""
        return self.LAYERS

    def forward(self, mel: Tensor) -> Tensor:
        """mel [M, T] -> pitch [T] in Hz, float32, never negative."""
        hidden = self.condnet(mel.to(self.classifier.weight.dtype)[None])  # [1, C, T]
        pitch: Tensor = self.classifier(hidden[0].T).abs().float()[:, 0]  # [T]
        return pitch


class HarmonicSource(nn.Module):
    """Sines of all harmonics, with noise, mixed to one excitation."""

    def __init__(
        self, harmonics: int, rate_hz: int, frame_samples: int, sine_level: float, noise_level: float, voiced_hz: float
    ) -> None:
        """sine_level: amplitude of each sine; noise_level: deviation of the noise beside the sines of a voiced frame (an unvoiced
        one has a third of the sine's level); voiced_hz: pitch above which a frame is voiced."""
        super().__init__()
        self.harmonics, self.rate_hz, self.frame_samples = harmonics, rate_hz, frame_samples
        self.sine_level, self.noise_level, self.voiced_hz = sine_level, noise_level, voiced_hz
        self.l_linear = nn.Linear(harmonics, 1)

    def rates(self, f0: Tensor) -> Tensor:
        """f0 [T] Hz -> cycles per sample of each harmonic [T, H], aliased into [0, 1)."""
        multiples = torch.arange(1, self.harmonics + 1, dtype=f0.dtype, device=f0.device)
        return (f0[:, None] * multiples) / self.rate_hz % 1

    def draw(self, frames: int, generator: torch.Generator | None, device: torch.device) -> Tensor | None:
        """Noise [frames S, H] for that many frames; drawn on the CPU, frame after frame, so it depends neither on how a passage is
        split nor on the device. None without a generator: no noise."""
        if generator is None:
            return None
        return torch.randn(frames * self.frame_samples, self.harmonics, generator=generator, device="cpu").to(device)

    def forward(self, f0: Tensor, sines: Tensor, noise: Tensor | None) -> Tensor:
        """f0 [T] Hz, sines [N, H], noise [N, H] or None for silence -> excitation [N], float32."""
        mixed = self.mix(f0, sines, noise).to(self.l_linear.weight.dtype)
        source: Tensor = torch.tanh(self.l_linear(mixed)).float()[:, 0]  # [N, 1] -> [N]
        return source

    def mix(self, f0: Tensor, sines: Tensor, noise: Tensor | None) -> Tensor:
        """The excitation of each harmonic before they are summed: [N, H]."""
        voiced = (f0 > self.voiced_hz).to(sines.dtype)[:, None, None]  # [T, 1, 1]
        shape = (len(f0), self.frame_samples, self.harmonics)
        mixed = sines.view(shape) * (voiced * self.sine_level)  # [T, S, H]
        if noise is not None:
            deviation = voiced * self.noise_level + (1 - voiced) * (self.sine_level / 3)
            mixed = torch.addcmul(mixed, noise.view(shape), deviation)
        return mixed.flatten(0, 1)  # [T, S, H] -> [N, H]


def published_sines(rates: Tensor, frame_samples: int) -> Tensor:
    """rates [T, H] cycles per sample -> sines [N, H] whose phase starts at the first frame and is summed in float32."""
    phase = torch.cumsum(rates, 0) * (2 * torch.pi) * frame_samples  # [T, H] radians in the middle of each frame
    phase = F.interpolate(phase.T[None], scale_factor=float(frame_samples), mode="linear")[0].T  # [T, H] -> [N, H]
    return torch.sin(phase)


def carried_sines(rates: Tensor, before: Tensor | None, frame_samples: int) -> tuple[Tensor, Tensor]:
    """rates [T, H] cycles per sample, before [H] cycles in the middle of the frame before, or None when there is none
    -> sines [N, H], cycles [T, H] (float64, modulo one) in the middle of each frame.

    The phase stands still in the first half of the first frame of all and in the last half of the last frame given, as in
    `published_sines`; sines of the last frame are thus provisional until the next frame's rate is known.
    """
    steps = rates.double() * frame_samples  # [T, H] cycles per frame
    cycles = torch.cumsum(steps, 0)
    cycles = (cycles if before is None else cycles + before) % 1
    steps = steps.float()
    still = torch.zeros_like(steps[:1])  # [1, H]
    rising = steps if before is not None else torch.cat([still, steps[1:]])  # slope in the first half of each frame
    falling = torch.cat([steps[1:], still])  # and in the second half
    offsets = (torch.arange(frame_samples, device=rates.device) + 0.5) / frame_samples - 0.5  # [S] frames from the middle
    half = frame_samples // 2
    moved = torch.cat([offsets[None, :half, None] * rising[:, None], offsets[None, half:, None] * falling[:, None]], 1)  # [T, S, H]
    return torch.sin((moved + cycles.float()[:, None]) * (2 * torch.pi)).flatten(0, 1), cycles
