"""The supervised speech tokenizer: sound to speech codes, 25 per second, each eight ternary digits (FSQ).

Notable: the codes have geometry. A code is a number in base three whose digits are eight rounded projections, so `digits` takes
codes apart again and neighbouring digits mean neighbouring sounds. Attention carries a memory beside it (FSMN: a depthwise
convolution over the values, added after the output projection), and there is no norm after the last block.

Du et al. 2024, "CosyVoice 2: Scalable Streaming Speech Synthesis with Large Language Models"; checkpoint: CosyVoice2-0.5B's
speech_tokenizer_v2.onnx (read by `s3_tokenizer_checkpoint`).

Legend: B batch, n samples at 16 kHz, t mel frames (100 per second), p codes = ceil(ceil(t / 2) / 2), m mel bands (128),
D width (1280), H heads (20), K width of a head (64), G digits (8).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decoders.s3_tokenizer_mel import log_mel, tokenize_windows
from duplex.audio import Samples

LEVELS = 3  # values of a digit
SQUASH = 0.9990000128746033  # keeps tanh away from the edge where rounding would give a fourth value
ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class S3TokenizerConfig:
    """Sizes; the defaults are those of CosyVoice2's tokenizer."""

    bands: int = 128
    """Mel bands of the input."""
    width: int = 1280
    """Channels of every layer."""
    heads: int = 20
    """Attention heads; width / heads must be even, for the rotation of positions."""
    layers: int = 6
    """Transformer blocks."""
    memory_taps: int = 31
    """Length of the convolution over the values, in codes; odd."""
    digits: int = 8
    """Ternary digits of a code: 3^8 = 6561 codes."""

    def __post_init__(self) -> None:
        for name in ("bands", "width", "heads", "layers", "digits"):
            if getattr(self, name) < 1:
                raise ValueError(f"the speech tokenizer's {name} must be at least 1, not {getattr(self, name)}")
        if self.width % (2 * self.heads):
            raise ValueError(f"the speech tokenizer's width ({self.width}) must be a multiple of twice its heads ({self.heads})")
        if self.memory_taps < 1 or self.memory_taps % 2 == 0:
            raise ValueError(f"the speech tokenizer's memory_taps must be odd, not {self.memory_taps}")

    @property
    def vocabulary(self) -> int:
        """Number of codes."""
        return int(LEVELS**self.digits)


TINY = S3TokenizerConfig(width=32, heads=2, layers=1)


class MemoryAttention(nn.Module):
    """Self-attention with rotated positions, and a memory of the neighbourhood of each value."""

    def __init__(self, config: S3TokenizerConfig) -> None:
        super().__init__()
        width, taps = config.width, config.memory_taps
        self.heads = config.heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(width, width, taps, padding=taps // 2, groups=width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], valid: Tensor | None) -> Tensor:
        """x [B, p, D], rotation: cos and sin [p, K], valid [B, p] or None when all positions are -> [B, p, D]."""
        value = self.value(x)
        kept = value if valid is None else value * valid[..., None]
        memory = self.fsmn_block(kept.transpose(1, 2)).transpose(1, 2) + kept  # [B, p, D]
        if valid is not None:
            memory = memory * valid[..., None]
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query(x), self.key(x), value)
        )  # [B, H, p, K]
        mask = None if valid is None else valid[:, None, None, :]
        mixed = F.scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2)) + memory


class Block(nn.Module):
    """Pre-norm transformer block; its two norms have different epsilons."""

    def __init__(self, config: S3TokenizerConfig) -> None:
        super().__init__()
        width = config.width
        self.attn = MemoryAttention(config)
        self.attn_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], valid: Tensor | None) -> Tensor:
        """[B, p, D] -> [B, p, D]"""
        x = x + self.attn(self.attn_ln(x), rotation, valid)
        return x + self.mlp(self.mlp_ln(x))


class Encoder(nn.Module):
    """Two convolutions of stride two, then the blocks."""

    def __init__(self, config: S3TokenizerConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.bands, config.width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head_width = config.width // config.heads

    def forward(self, mel: Tensor, lengths: Tensor | None) -> Tensor:
        """mel [B, m, t], lengths [B] frames of each or None when none is padded -> [B, p, D]."""
        x, valid = mel, None
        for conv in (self.conv1, self.conv2):
            if lengths is not None:
                x = x * inside(lengths, x.shape[2])[:, None]
                lengths = (lengths + 1) // 2
            x = F.gelu(conv(x))
        if lengths is not None:
            valid = inside(lengths, x.shape[2])
        x = x.transpose(1, 2)  # [B, p, D]
        rotation = rotations(x.shape[1], self.head_width, x)
        for block in self.blocks:
            x = block(x, rotation, valid)
        return x


class Codebook(nn.Module):
    """Holds the projection to digits under the checkpoint's name for it."""

    def __init__(self, config: S3TokenizerConfig) -> None:
        super().__init__()
        self.project_down = nn.Linear(config.width, config.digits)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., G] digits in {0, 1, 2}."""
        return (self.project_down(hidden).float().tanh() * SQUASH).round() + 1


class Quantizer(nn.Module):
    """The checkpoint nests the codebook once more."""

    def __init__(self, config: S3TokenizerConfig) -> None:
        super().__init__()
        self._codebook = Codebook(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [...] codes, int64."""
        return join_digits(self._codebook(hidden).long())


class S3Tokenizer(nn.Module):
    """Sound to speech codes. Holds no state; state dict keys are those of the published tokenizer (102 at full size)."""

    def __init__(self, config: S3TokenizerConfig | None = None) -> None:
        super().__init__()
        self.config = config or S3TokenizerConfig()
        self.encoder = Encoder(self.config)
        self.quantizer = Quantizer(self.config)

    @classmethod
    def tiny(cls, seed: int = 0) -> S3Tokenizer:
        """The same class with random weights of 120 kB: no download, codes that vary with the sound."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(TINY)
            nn.init.normal_(model.quantizer._codebook.project_down.weight, std=0.3)
        return model.requires_grad_(False).train(False)

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """mel [B, m, t], lengths [B] frames of each (None: none is padded) -> codes [B, p] int64; those past a length mean nothing."""
        return self.quantizer(self.encoder(mel, lengths))

    @torch.inference_mode()
    def tokenize(self, samples: Samples) -> Tensor:
        """[n] samples at 16 kHz in [-1, 1] -> [p] codes, int64 on the CPU; n of any length above 200.

        Sound above 30 s goes through in windows that overlap, so memory does not grow with it. Raises ValueError when it is not
        mono or too short.
        """
        weight = self.encoder.conv1.weight
        mel = log_mel(torch.as_tensor(samples).to(weight.device), self.config.bands).to(weight.dtype)  # [m, t]
        return tokenize_windows(mel, lambda window: self(window[None])[0]).cpu()

    def digits(self, codes: Tensor) -> Tensor:
        """[...] codes -> [..., G] their digits in {0, 1, 2}, least significant first. Raises ValueError for what is no code."""
        return split_digits(codes, self.config.digits)


def inside(lengths: Tensor, frames: int) -> Tensor:
    """[B] lengths -> [B, frames], true before the end of each."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def rotations(count: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [count, width] of positions 0, 1, …; the second half of the channels repeats the first."""
    rates = ROTARY_BASE ** (-torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)  # [width / 2]
    angles = torch.arange(count, device=like.device, dtype=torch.float32)[:, None] * rates  # [count, width / 2]
    angles = torch.cat((angles, angles), dim=1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """[..., p, K] turned by its position: channel i pairs with channel i + K / 2."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def join_digits(digits: Tensor) -> Tensor:
    """[..., G] digits in {0, 1, 2}, least significant first -> [...] codes."""
    powers = LEVELS ** torch.arange(digits.shape[-1], device=digits.device)
    return (digits * powers).sum(-1)


def split_digits(codes: Tensor, count: int) -> Tensor:
    """The inverse of `join_digits`: [...] codes -> [..., count] digits. Raises ValueError for what is no code of that many."""
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= LEVELS**count):
        raise ValueError(f"speech codes lie in 0 to {LEVELS**count - 1}, not {int(codes.min())} to {int(codes.max())}")
    powers = LEVELS ** torch.arange(count, device=codes.device)
    return codes[..., None] // powers % LEVELS
