"""CAM++: who speaks, as one vector, from the sound of a few seconds.

Notable: every layer of the dense blocks weighs its output by what the whole sample and its own second (100 frames) sound like; those
weights are the same for all frames of a second, so they are computed once per second here. Published weights are batch-normed
throughout; at inference each norm is one scale and shift.

Wang et al. 2023, "CAM++: A Fast and Efficient Network for Speaker Verification Using Context-Aware Masking"; checkpoint:
CosyVoice2-0.5B's campplus.onnx, with the key names of FunASR's and 3D-Speaker's checkpoints (937 at full size).

Legend: B batch, n samples at 16 kHz, t fbank frames (100 per second), u = ceil(t / 2) frames after the first layer, s segments of
100 of these, M mel bands (80), C channels, E width of the embedding (192).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from duplex.audio import Samples
from duplex.fbank import FbankConfig, fbank

SEGMENT_FRAMES = 100


@dataclass(frozen=True)
class CamPlusConfig:
    """Sizes; the defaults are those of the published network."""

    bands: int = 80
    """Mel bands of the input; a multiple of 8."""
    head_channels: int = 32
    """Channels of the two-dimensional front."""
    first_channels: int = 128
    """Channels after the first time-delay layer."""
    growth: int = 32
    """Channels that each dense layer adds."""
    bottleneck: int = 4
    """Width of a dense layer's inside, in multiples of `growth`."""
    layers: tuple[int, ...] = (12, 24, 16)
    """Dense layers of each block."""
    dilations: tuple[int, ...] = (1, 2, 2)
    """Distance of the taps in each block, in frames."""
    embedding: int = 192
    """Width of the speaker embedding."""

    def __post_init__(self) -> None:
        if self.bands < 8 or self.bands % 8:
            raise ValueError(f"the speaker encoder's bands must be a multiple of 8, not {self.bands}")
        if not self.layers or len(self.layers) != len(self.dilations):
            raise ValueError(f"the speaker encoder needs as many dilations as blocks, not {self.dilations} for {self.layers}")
        sizes = (
            self.head_channels,
            self.first_channels,
            self.growth,
            self.bottleneck,
            self.embedding,
            *self.layers,
            *self.dilations,
        )
        if min(sizes) < 1:
            raise ValueError("the speaker encoder's sizes must all be at least 1")


TINY = CamPlusConfig(head_channels=4, first_channels=16, growth=4, bottleneck=2, layers=(2, 2, 1), embedding=192)


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; the first may halve the bands."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, channels, 1, stride=(stride, 1), bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, bands, t] -> [B, C, bands / stride, t]"""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class Head(nn.Module):
    """The two-dimensional front: bands / 8, every band's channels then stand in one column."""

    def __init__(self, config: CamPlusConfig) -> None:
        super().__init__()
        channels = config.head_channels
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = nn.Sequential(Residual(channels, 2), Residual(channels, 1))
        self.layer2 = nn.Sequential(Residual(channels, 2), Residual(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M, t] -> [B, C * M / 8, t]"""
        x = F.relu(self.bn1(self.conv1(x[:, None])))  # [B, C, M, t]
        x = self.layer2(self.layer1(x))  # [B, C, M / 4, t]
        return F.relu(self.bn2(self.conv2(x))).flatten(1, 2)


class Norm(nn.Module):
    """Batch norm under the name that the checkpoint gives it, and a ReLU where it has one."""

    def __init__(self, channels: int, *, affine: bool = True, relu: bool = True) -> None:
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(channels, affine=affine)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, u] -> [B, C, u]"""
        x = self.batchnorm(x)
        return F.relu(x) if self.relu else x


class TimeDelay(nn.Module):
    """A convolution over five frames that halves their rate."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels_in, channels_out, 5, stride=2, padding=2, bias=False)
        self.nonlinear = Norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, t] -> [B, C', u]"""
        return self.nonlinear(self.linear(x))


class ContextMask(nn.Module):
    """A convolution whose output is weighed, per channel, by the context: the mean of all frames plus that of the frame's segment."""

    def __init__(self, channels_in: int, channels_out: int, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(channels_in, channels_out, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(channels_in, channels_in // 2, 1)
        self.linear2 = nn.Conv1d(channels_in // 2, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, u] -> [B, growth, u]"""
        context = x.mean(-1, keepdim=True) + segment_means(x)  # [B, C, s]
        mask = self.linear2(F.relu(self.linear1(context))).sigmoid()  # [B, growth, s]
        spread = mask[..., None].expand(-1, -1, -1, SEGMENT_FRAMES).flatten(2)  # [B, growth, s * 100]
        return self.linear_local(x) * spread[..., : x.shape[-1]]


class DenseLayer(nn.Module):
    """Norm, 1 x 1 convolution, norm, masked convolution: `growth` new channels."""

    def __init__(self, channels: int, config: CamPlusConfig, dilation: int) -> None:
        super().__init__()
        inside = config.bottleneck * config.growth
        self.nonlinear1 = Norm(channels)
        self.linear1 = nn.Conv1d(channels, inside, 1, bias=False)
        self.nonlinear2 = Norm(inside)
        self.cam_layer = ContextMask(inside, config.growth, dilation)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, u] -> [B, growth, u]"""
        return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))


class DenseBlock(nn.Module):
    """Layers that each read all channels so far and add their own."""

    def __init__(self, channels: int, count: int, config: CamPlusConfig, dilation: int) -> None:
        super().__init__()
        for index in range(count):
            self.add_module(f"tdnnd{index + 1}", DenseLayer(channels + index * config.growth, config, dilation))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, u] -> [B, C + count * growth, u]"""
        for layer in self.children():
            x = torch.cat((x, layer(x)), dim=1)
        return x


class Transit(nn.Module):
    """Halves the channels between blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nonlinear = Norm(channels)
        self.linear = nn.Conv1d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, u] -> [B, C / 2, u]"""
        return self.linear(self.nonlinear(x))


class Statistics(nn.Module):
    """Mean and (unbiased) deviation of each channel over time."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, u] -> [B, 2 C]"""
        return torch.cat((x.mean(-1), x.std(-1)), dim=1)


class Dense(nn.Module):
    """The last projection, normed without scale and shift of its own."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, embedding, 1, bias=False)
        self.nonlinear = Norm(embedding, affine=False, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C] -> [B, E]"""
        return self.nonlinear(self.linear(x[..., None]))[..., 0]


class CamPlus(nn.Module):
    """The speaker encoder. Holds no state; state dict keys are those of the published checkpoints."""

    def __init__(self, config: CamPlusConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CamPlusConfig()
        self.head = Head(config)
        parts: dict[str, nn.Module] = {"tdnn": TimeDelay(config.head_channels * config.bands // 8, config.first_channels)}
        channels = config.first_channels
        for index, (count, dilation) in enumerate(zip(config.layers, config.dilations, strict=True), start=1):
            parts[f"block{index}"] = DenseBlock(channels, count, config, dilation)
            channels += count * config.growth
            parts[f"transit{index}"] = Transit(channels)
            channels //= 2
        parts |= {"out_nonlinear": Norm(channels), "stats": Statistics(), "dense": Dense(2 * channels, config.embedding)}
        self.xvector = nn.Sequential()
        for name, part in parts.items():
            self.xvector.add_module(name, part)

    @classmethod
    def tiny(cls, seed: int = 0) -> CamPlus:
        """The same class with random weights of 50 kB: no download, the full width of embedding."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(TINY)
        return model.requires_grad_(False).train(False)

    def forward(self, features: Tensor) -> Tensor:
        """[B, t, M] fbank with its mean over time taken off, none padded -> [B, E], not normalised."""
        return self.xvector(self.head(features.transpose(1, 2)))

    @torch.inference_mode()
    def embed(self, samples: Samples) -> Tensor:
        """[n] samples at 16 kHz in [-1, 1] -> [E] float32 on the CPU, not normalised. Raises ValueError when it is too short."""
        weight = self.head.conv1.weight
        return self(speaker_features(samples, self.config.bands).to(weight))[0].float().cpu()

    def folds(self) -> dict[str, str]:
        """Convolutions whose output feeds one batch norm and nothing else, and that norm: exporters make one step of the two."""
        found = {"head.conv1": "head.bn1", "head.conv2": "head.bn2", "xvector.tdnn.linear": "xvector.tdnn.nonlinear.batchnorm"}
        for name, module in self.named_modules():
            if isinstance(module, Residual):
                found |= {f"{name}.conv1": f"{name}.bn1", f"{name}.conv2": f"{name}.bn2"}
                if len(module.shortcut):
                    found[f"{name}.shortcut.0"] = f"{name}.shortcut.1"
            elif isinstance(module, DenseLayer):
                found[f"{name}.linear1"] = f"{name}.nonlinear2.batchnorm"
        found[f"xvector.transit{len(self.config.layers)}.linear"] = "xvector.out_nonlinear.batchnorm"
        return found | {"xvector.dense.linear": "xvector.dense.nonlinear.batchnorm"}


def segment_means(x: Tensor) -> Tensor:
    """[B, C, u] -> [B, C, s] means over segments of 100 frames; the last may be shorter."""
    both = torch.cat((x, torch.ones_like(x[:, :1])), dim=1)  # [B, C + 1, u]: the last channel counts the frames
    padded = F.pad(both, (0, -x.shape[-1] % SEGMENT_FRAMES))
    sums = padded.unflatten(-1, (-1, SEGMENT_FRAMES)).sum(-1)  # [B, C + 1, s]
    return sums[:, :-1] / sums[:, -1:]


def speaker_features(samples: Samples, bands: int = 80) -> Tensor:
    """[n] samples at 16 kHz -> [1, t, M]: what the network is shown, Kaldi's fbank without its mean over time.

    Raises ValueError for less than three frames of sound (45 ms).
    """
    features = torch.from_numpy(fbank(samples, FbankConfig(window="povey", scale=1.0, bands=bands)))  # [t, M]
    if len(features) < 3:
        raise ValueError(f"a speaker embedding needs at least 45 ms of sound, not {len(samples)} samples at 16 kHz")
    return (features - features.mean(0))[None]
