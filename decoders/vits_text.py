"""The text side of a VITS voice as a torch module: phoneme ids to prior and durations, in batches.

Notable: attention hears its neighbours' distance in a window of four (Shaw et al. 2018), computed by gathering nine products a
position instead of the checkpoint's pad-and-reshape. Durations are drawn by a flow run backwards whose couplings are
rational-quadratic splines (Durkan et al. 2019). Names of the parameters are the checkpoint's. Every row of a batch is masked to its
own length at each place where the voice as it was published would see zeros, so that a row gives what it gives alone.

Kim et al. 2021 (VITS); Piper's "medium" sizes.

Shapes: B rows, P phoneme ids (padded), C channels (192), H heads, W window on both sides (4), K spline bins (10).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from decoders.vits_net import VitsNetConfig

WINDOW = 4
BINS = 10
TAIL = 5.0  # the splines are the identity outside of -TAIL to TAIL
_LEAST = 1e-3  # of a bin's width, height and slope


class ChannelNorm(nn.Module):
    """Layer norm over the channels of [B, C, P]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.transpose(1, 2), self.gamma.shape, self.gamma, self.beta, 1e-5).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with learned keys and values of the distance, up to `WINDOW` positions."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, channels // heads
        self.emb_rel_k = nn.Parameter(torch.randn(1, 2 * WINDOW + 1, self.width) * self.width**-0.5)
        self.emb_rel_v = nn.Parameter(torch.randn(1, 2 * WINDOW + 1, self.width) * self.width**-0.5)
        self.conv_q, self.conv_k, self.conv_v, self.conv_o = (nn.Conv1d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """x [B, C, P]; visible bool [B, 1, 1, P]."""
        rows, _, count = x.shape
        q, k, v = (
            conv(x).view(rows, self.heads, self.width, count).transpose(2, 3) for conv in (self.conv_q, self.conv_k, self.conv_v)
        )  # [B, H, P, c]
        q = q / math.sqrt(self.width)
        place = torch.arange(count, device=x.device)
        distance = place[None, :] - place[:, None] + WINDOW  # [P, P]
        near = (distance >= 0) & (distance <= 2 * WINDOW)
        shape = (rows, self.heads, count, count)
        relative = (q @ self.emb_rel_k[0].T).gather(3, distance.clamp(0, 2 * WINDOW).expand(shape))
        scores = q @ k.transpose(2, 3) + relative * near
        weights = scores.masked_fill(~visible, -1e4).softmax(-1)  # [B, H, P, P]
        offsets = place[:, None] + torch.arange(-WINDOW, WINDOW + 1, device=x.device)  # [P, 2W + 1]
        inside = (offsets >= 0) & (offsets < count)
        banded = weights.gather(3, offsets.clamp(0, count - 1).expand(rows, self.heads, count, -1)) * inside
        out = weights @ v + banded @ self.emb_rel_v[0]
        return cast(Tensor, self.conv_o(out.transpose(2, 3).reshape(rows, -1, count)))


class FeedForward(nn.Module):
    """Two convolutions over three positions."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(channels, inner, 3, padding=1)
        self.conv_2 = nn.Conv1d(inner, channels, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return cast(Tensor, self.conv_2(torch.relu(self.conv_1(x * mask)) * mask) * mask)


class Encoder(nn.Module):
    """Post-norm transformer."""

    def __init__(self, config: VitsNetConfig) -> None:
        super().__init__()
        layers = range(config.layers)
        self.attn_layers = nn.ModuleList(Attention(config.channels, config.heads) for _ in layers)
        self.norm_layers_1 = nn.ModuleList(ChannelNorm(config.channels) for _ in layers)
        self.ffn_layers = nn.ModuleList(FeedForward(config.channels, config.inner) for _ in layers)
        self.norm_layers_2 = nn.ModuleList(ChannelNorm(config.channels) for _ in layers)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        visible = mask[:, None] > 0  # [B, 1, 1, P]
        x = x * mask
        layers = zip(self.attn_layers, self.norm_layers_1, self.ffn_layers, self.norm_layers_2, strict=True)
        for attend, norm_1, feed, norm_2 in layers:
            x = norm_1(x + attend(x, visible))
            x = norm_2(x + feed(x, mask))
        return x * mask


class TextEncoder(nn.Module):
    """Ids to hidden states, and to the prior's mean and log-deviation."""

    def __init__(self, config: VitsNetConfig) -> None:
        super().__init__()
        self.emb = nn.Embedding(config.symbols, config.channels)
        self.encoder = Encoder(config)
        self.proj = nn.Conv1d(config.channels, 2 * config.channels, 1)
        nn.init.normal_(self.emb.weight, 0.0, config.channels**-0.5)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids [B, P], mask [B, 1, P] -> hidden, mean, log-deviation, each [B, C, P]."""
        x = self.emb(ids).transpose(1, 2) * math.sqrt(self.emb.embedding_dim)
        hidden = self.encoder(x, mask)
        mean, log_deviation = (self.proj(hidden) * mask).chunk(2, dim=1)
        return hidden, mean, log_deviation


class DepthwiseStack(nn.Module):
    """Three dilated, depth-separable convolutions with residuals (the paper's DDSConv)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        steps = range(3)
        self.convs_sep = nn.ModuleList(
            nn.Conv1d(channels, channels, 3, padding=3**step, dilation=3**step, groups=channels) for step in steps
        )
        self.convs_1x1 = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in steps)
        self.norms_1 = nn.ModuleList(ChannelNorm(channels) for _ in steps)
        self.norms_2 = nn.ModuleList(ChannelNorm(channels) for _ in steps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for separate, mix, norm_1, norm_2 in zip(self.convs_sep, self.convs_1x1, self.norms_1, self.norms_2, strict=True):
            y = F.gelu(norm_1(separate(x * mask)))
            x = x + F.gelu(norm_2(mix(y)))
        return x * mask


class SplineCoupling(nn.Module):
    """One channel bent by a spline that the other channel and the text choose."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pre = nn.Conv1d(1, channels, 1)
        self.convs = DepthwiseStack(channels)
        self.proj = nn.Conv1d(channels, 3 * BINS - 1, 1)
        self.scale = 1 / math.sqrt(channels)

    def backward_flow(self, z: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """z [B, 2, P], text [B, C, P] -> [B, 2, P]: from noise towards durations."""
        kept, bent = z.chunk(2, dim=1)
        shape = (self.proj(self.convs(self.pre(kept) + text, mask)) * mask).transpose(1, 2)  # [B, P, 3K - 1]
        widths, heights, slopes = shape.split((BINS, BINS, BINS - 1), dim=2)
        bent = inverse_spline(bent[:, 0], widths * self.scale, heights * self.scale, slopes)[:, None]
        return torch.cat((kept, bent), dim=1) * mask


def inverse_spline(y: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor) -> Tensor:
    """Where a monotonic rational-quadratic spline takes the value y [...]; its bins are given unnormalised.

    widths, heights [..., K]; slopes [..., K - 1] at the inner knots; outside of the tails, and in slope at them, it is the identity.
    """
    ends = math.log(math.expm1(1 - _LEAST))
    slope = _LEAST + F.softplus(F.pad(slopes, (1, 1), value=ends))  # [..., K + 1]
    x_knots, y_knots = _knots(widths), _knots(heights)  # [..., K + 1]
    inside = (y >= -TAIL) & (y <= TAIL)
    held = y.clamp(-TAIL, TAIL)[..., None]
    index = ((held >= y_knots[..., 1:]).sum(-1, keepdim=True)).clamp(max=BINS - 1)  # [..., 1]
    left, right = x_knots.gather(-1, index)[..., 0], x_knots.gather(-1, index + 1)[..., 0]
    low, high = y_knots.gather(-1, index)[..., 0], y_knots.gather(-1, index + 1)[..., 0]
    first, second = slope.gather(-1, index)[..., 0], slope.gather(-1, index + 1)[..., 0]
    width, height = right - left, high - low
    delta, above = height / width, held[..., 0] - low
    bend = first + second - 2 * delta
    a = above * bend + height * (delta - first)
    b = height * first - above * bend
    c = -delta * above
    root = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
    return torch.where(inside, root * width + left, y)


def _knots(sizes: Tensor) -> Tensor:
    """Unnormalised bin sizes [..., K] -> places [..., K + 1] from -TAIL to TAIL."""
    sizes = _LEAST + (1 - _LEAST * BINS) * sizes.softmax(-1)
    inner = 2 * TAIL * sizes.cumsum(-1)[..., :-1] - TAIL
    edge = torch.full_like(inner[..., :1], TAIL)
    return torch.cat((-edge, inner, edge), dim=-1)


class Affine(nn.Module):
    """Shift and scale of each channel, backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(2, 1))
        self.scale = nn.Parameter(torch.ones(2, 1))  # exp(-log-scale), as the graph stores it


class DurationPredictor(nn.Module):
    """Noise to log-durations, given the text. The checkpoint's numbering: an affine map is 0, splines are 3, 5 and 7."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pre = nn.Conv1d(channels, channels, 1)
        self.convs = DepthwiseStack(channels)
        self.proj = nn.Conv1d(channels, channels, 1)
        self.flows = nn.ModuleDict({"0": Affine(), **{str(index): SplineCoupling(channels) for index in (3, 5, 7)}})

    def forward(self, hidden: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, C, P], noise [B, 2, P] already scaled -> log-durations [B, P]."""
        text = self.proj(self.convs(self.pre(hidden), mask)) * mask
        z = noise
        for index in ("7", "5", "3"):
            z = cast(SplineCoupling, self.flows[index]).backward_flow(z.flip(1), text, mask)
        affine = cast(Affine, self.flows["0"])
        return (((z.flip(1) - affine.m) * affine.scale) * mask)[:, 0]
