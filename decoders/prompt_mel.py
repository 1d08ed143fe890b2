"""The mel spectrogram of a voice prompt, as the flow continues it: 24 kHz, 50 frames per second, 80 bands up to 8 kHz.

Notable: frame i is made of the samples around 480 i + 240, with reflected edges, so a sample of n gives exactly floor(n / 480)
frames, two per speech code. Magnitudes (not powers) go through the bank, and logarithms are natural.

Checkpoint: the settings that CosyVoice2-0.5B's flow was trained with.

Legend: n samples at 24 kHz, t frames (50 per second), m bands (80), b FFT bins (961).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from duplex.audio import AGENT_RATE_HZ
from duplex.mel_filters import mel_filters


@dataclass(frozen=True)
class PromptMelConfig:
    """The spectrogram's settings; the defaults are those of CosyVoice2."""

    rate_hz: int = AGENT_RATE_HZ
    """Rate of the samples."""
    fft_samples: int = 1920
    """Length of the window, 80 ms."""
    hop_samples: int = 480
    """Distance of frames, 20 ms."""
    bands: int = 80
    """Mel bands."""
    high_hz: float = 8000.0
    """Upper edge of the highest band; CosyVoice3 goes to half the rate."""
    floor: float = 1e-5
    """Smallest magnitude, so that silence has a logarithm."""

    def __post_init__(self) -> None:
        if not 0 < self.hop_samples <= self.fft_samples or (self.fft_samples - self.hop_samples) % 2:
            sizes = f"hop_samples ({self.hop_samples}) and fft_samples ({self.fft_samples})"
            raise ValueError(f"the prompt mel's {sizes} must differ by an even number, the hop not above the window")
        if self.floor <= 0.0:
            raise ValueError(f"the prompt mel's floor must be positive, not {self.floor}")
        mel_filters(self.rate_hz, self.fft_samples, self.bands, 0.0, self.high_hz)  # says what is wrong with the rest


def prompt_mel(samples: Tensor, config: PromptMelConfig | None = None) -> Tensor:
    """[n] samples in [-1, 1] -> [t, m] natural logarithms, t = floor(n / hop).

    Raises ValueError when the sound is not mono, or so short that its edges cannot be reflected (720 samples, 30 ms).
    """
    config = config or PromptMelConfig()
    margin = (config.fft_samples - config.hop_samples) // 2
    if samples.ndim != 1 or len(samples) <= margin:
        raise ValueError(f"a prompt mel needs mono sound of more than {margin} samples, not {tuple(samples.shape)}")
    padded = torch.nn.functional.pad(samples.float()[None], (margin, margin), mode="reflect")[0]
    window = torch.hann_window(config.fft_samples, device=samples.device)
    spectrum = torch.stft(
        padded, config.fft_samples, config.hop_samples, window=window, center=False, return_complex=True
    )  # [b, t]
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()  # [b, t]
    bank = mel_filters(config.rate_hz, config.fft_samples, config.bands, 0.0, config.high_hz)  # [b, m]
    return (magnitude.T @ torch.tensor(bank, device=samples.device)).clamp(min=config.floor).log()
