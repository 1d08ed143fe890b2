"""HiFT's filter: mel frames and an excitation in, a waveform out, by three upsampling stages and a small inverse STFT.

Notable: the network never predicts samples. It predicts magnitude and phase of a 16-point STFT with hop 4, and the excitation enters as
its own STFT at each stage. "Phase" is the sine of the last layer's output, and that layer is preceded by a leaky ReLU of slope 0.01 where
the others have 0.1: both as in the checkpoint. The network runs in its weights' dtype, the STFTs in float32.

Sources: Li et al. 2023, "HiFTNet"; Kong et al. 2020, "HiFi-GAN"; Ziyin et al. 2020 (snake); checkpoint: CosyVoice2's hift.pt.

Shapes: B = 1, C channels of a stage, L positions of a stage (8 T, 40 T, 120 T + 1 for T mel frames), Q STFT bins (9).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

_SNAKE_FLOOR = 1e-9
_LARGEST = 1e2  # of a magnitude


class Snake(nn.Module):
    """x + sin^2(a x) / a, with one a per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]  # [C, 1]
        wave = (x * alpha).sin_()  # [1, C, L]
        return torch.addcmul(x, wave.square_(), 1 / (alpha + _SNAKE_FLOOR))


class ResBlock(nn.Module):
    """Three residual pairs of convolutions, the first of each pair dilated."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_same(channels, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_same(channels, kernel, 1) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """[1, C, L] -> [1, C, L]"""
        for snake1, conv1, snake2, conv2 in zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True):
            x = conv2(snake2(conv1(snake1(x)))).add_(x)
        return x


def _same(channels: int, kernel: int, dilation: int) -> nn.Module:
    """A convolution that keeps the length."""
    return weight_norm(nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2))


def spectrum(source: Tensor, n_fft: int, hop: int) -> Tensor:
    """Excitation [N] -> real and imaginary parts stacked [1, 2 Q, N / hop + 1]."""
    window = torch.hann_window(n_fft, device=source.device)
    bins = torch.stft(source[None], n_fft, hop, window=window, return_complex=True)  # [1, Q, N / hop + 1]
    return torch.cat([bins.real, bins.imag], 1)


def waveform(predicted: Tensor, n_fft: int, hop: int, peak: float) -> Tensor:
    """The last layer's output [1, 2 Q, N / hop + 1] -> samples [N] in [-peak, peak]."""
    magnitude, angle = predicted.float().chunk(2, 1)  # [1, Q, .] each
    bins = torch.polar(magnitude.exp().clamp_(max=_LARGEST), angle.sin())
    window = torch.hann_window(n_fft, device=predicted.device)
    return torch.istft(bins, n_fft, hop, window=window)[0].clamp_(-peak, peak)


def upsampler(channels: int, kernel: int, rate: int) -> nn.Module:
    """Twice fewer channels, `rate` times as many positions."""
    return weight_norm(nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2))


def source_down(bins: int, channels: int, rate: int) -> nn.Module:
    """From the STFT's rate down to a stage's; the only convolutions of HiFT without weight norm."""
    if rate == 1:
        return nn.Conv1d(bins, channels, 1)
    return nn.Conv1d(bins, channels, 2 * rate, rate, padding=rate // 2)


def stage(x: Tensor, source: Tensor, up: nn.Module, entry: nn.Module, blocks: Sequence[nn.Module], last: bool) -> Tensor:
    """One upsampling stage: x [1, 2 C, L / rate], source [1, C, L] already brought to the stage's rate -> [1, C, L]."""
    x = up(F.leaky_relu(x, 0.1))
    if last:  # the STFT has one frame more than the upsampled mel
        x = F.pad(x, (1, 0), mode="reflect")
    x = x.add_(entry(source))
    total = blocks[0](x)
    for block in blocks[1:]:
        total.add_(block(x))
    return total.div_(len(blocks))
