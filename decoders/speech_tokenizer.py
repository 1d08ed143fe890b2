"""The speech tokenizer of the voice that is trained here: VITS latents to codes at 21.53 Hz, and back.

Notable: one code stands for four latent frames and is five digits (finite scalar quantisation, Mentzer et al. 2023, levels 7, 5, 5, 5, 5:
4,375 codes without a code book to collapse). A classifier of phones on the quantised features makes the codes say what is spoken before how
(the supervised semantic tokens of CosyVoice 2, Du et al. 2024); its labels are the teacher's own alignment. The encoder sees both
ways, since it only ever makes training targets. The decoder back to latents looks two codes ahead and is causal otherwise, so that
codes hold nothing that a streaming flow could not read; it is the deterministic baseline for that flow.

    latents [B, T, C] -> normalise -> frame block -> fold 4 frames -> blocks -> 5 digits     (encode)
    digits [B, c, 5]  -> 2 codes ahead -> causal blocks -> unfold -> causal frame blocks -> latents     (decode)
                      `-> phone of each frame     (classify)

Shapes: B rows, T latent frames at 86.13 Hz, c = T / 4 codes, C latent channels (192), W width of the blocks.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from duplex.checkpoint import fill, read_tensors
from duplex.errors import WeightsError

LEVELS = (7, 5, 5, 5, 5)
RATIO = 4  # latent frames of one code
CODES_HZ = 22_050 / 256 / RATIO


@dataclass(frozen=True, slots=True)
class SpeechTokenizerConfig:
    """Sizes of the tokenizer."""

    channels: int = 192
    """Of the latents, and of the blocks at their rate."""
    width: int = 256
    """Of the blocks at the codes' rate."""
    inner: int = 384
    """Between the two layers of a block."""
    blocks: int = 3
    """At the codes' rate, on each side."""
    frame_blocks: int = 2
    """At the latents' rate, in the decoder; the encoder has one."""
    ahead: int = 2
    """Codes after its own that the decoder sees."""
    phones: int = 256
    """Ids that the classifier tells apart."""

    def __post_init__(self) -> None:
        if min(self.channels, self.width, self.inner, self.blocks, self.frame_blocks, self.phones) < 1 or self.ahead < 0:
            raise ValueError(f"the speech tokenizer's sizes must be positive: {self}")


class Block(nn.Module):
    """Norm, a layer over `kernel` neighbouring places, GELU, a layer, residual. `ahead` of the kernel's places lie in the future."""

    def __init__(self, width: int, inner: int, kernel: int, ahead: int) -> None:
        super().__init__()
        self.kernel, self.ahead = kernel, ahead
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(kernel * width, inner)
        self.leave = nn.Linear(inner, width)
        nn.init.normal_(self.leave.weight, 0.0, 0.3 * inner**-0.5)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, n, width]; mask [B, n, 1], zero where there is nothing."""
        y = self.norm(x)
        y = neighbours(y if mask is None else y * mask, self.kernel, self.ahead)
        return x + cast(Tensor, self.leave(F.gelu(self.enter(y))))


def neighbours(x: Tensor, kernel: int, ahead: int) -> Tensor:
    """[B, n, W] -> [B, n, kernel * W]: each place beside those before it and `ahead` after it; zeros outside."""
    count = x.shape[1]
    padded = F.pad(x, (0, 0, kernel - 1 - ahead, ahead))
    return torch.cat([padded[:, index : index + count] for index in range(kernel)], dim=2)


class TokenEncoder(nn.Module):
    """Normalised latents to what is rounded to digits."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.frames = Block(config.channels, config.inner, 5, 2)
        self.fold = nn.Linear(RATIO * config.channels, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.inner, 3, 1) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.digits = nn.Linear(config.width, len(LEVELS))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, C], mask [B, c, 1] -> [B, c, 5], unbounded."""
        x = self.frames(x, None if mask is None else mask.repeat_interleave(RATIO, 1))
        x = self.fold(x.reshape(x.shape[0], -1, RATIO * x.shape[2]))
        for block in self.blocks:
            x = block(x, mask)
        return cast(Tensor, self.digits(self.norm(x)))


class TokenDecoder(nn.Module):
    """Quantised features to normalised latents."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.ahead = config.ahead
        self.enter = nn.Linear((config.ahead + 1) * len(LEVELS), config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.inner, 3, 0) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.unfold = nn.Linear(config.width, RATIO * config.channels)
        self.frames = nn.ModuleList(Block(config.channels, config.inner, 5, 0) for _ in range(config.frame_blocks))
        self.leave = nn.Linear(config.channels, config.channels)

    def forward(self, unit: Tensor) -> Tensor:
        """unit [B, c, 5] in -1 to 1 -> [B, T, C]."""
        x = self.enter(neighbours(unit, self.ahead + 1, self.ahead))
        for block in self.blocks:
            x = block(x)
        x = self.unfold(self.norm(x))
        x = x.reshape(x.shape[0], RATIO * x.shape[1], -1)
        for block in self.frames:
            x = block(x)
        return cast(Tensor, self.leave(x))


class PhoneClassifier(nn.Module):
    """Quantised features of a code and its two neighbours to the phone of each of its four frames."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.enter = nn.Linear(3 * len(LEVELS), config.width)
        self.middle = nn.Linear(config.width, config.width)
        self.spread = nn.Linear(config.width, RATIO * 64)
        self.leave = nn.Linear(64, config.phones)

    def forward(self, unit: Tensor) -> Tensor:
        """unit [B, c, 5] -> logits [B, T, phones]."""
        x = F.gelu(self.middle(F.gelu(self.enter(neighbours(unit, 3, 1)))))
        x = F.gelu(self.spread(x))
        return cast(Tensor, self.leave(x.reshape(x.shape[0], RATIO * x.shape[1], 64)))


class SpeechTokenizer(nn.Module):
    """Encoder, quantiser, decoder and classifier."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: SpeechTokenizerConfig | None = None) -> None:
        super().__init__()
        self.config = config or SpeechTokenizerConfig()
        self.encoder = TokenEncoder(self.config)
        self.decoder = TokenDecoder(self.config)
        self.classifier = PhoneClassifier(self.config)
        self.register_buffer("mean", torch.zeros(self.config.channels))
        self.register_buffer("deviation", torch.ones(self.config.channels))

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> SpeechTokenizer:
        """Read what `save` wrote, ready for use, in fp32. Raises WeightsError when it is missing, damaged or another file."""
        net = cls(_read_config(path))
        fill(net, read_tensors(path), path, "the speech tokenizer", torch.float32)
        return net.to(device)

    def save(self, path: Path) -> None:
        """Write fp16 weights and sizes; the file appears whole or not at all."""
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        tensors = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, part, {"config": json.dumps(dataclasses.asdict(self.config))})
        part.replace(path)

    def normalize(self, latents: Tensor) -> Tensor:
        """[..., C], each channel to mean 0 and deviation 1."""
        return (latents - self.mean) / self.deviation

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return x * self.deviation + self.mean

    @torch.no_grad()
    def encode(self, latents: Tensor, inside: Tensor | None = None) -> Tensor:
        """latents [B, T, C], T a multiple of 4 -> digits [B, c, 5] uint8.

        inside: bool [B, c], where a padded row has codes; those come out as if the row were alone. Raises ValueError for another T.
        """
        if latents.shape[1] % RATIO:
            raise ValueError(f"The tokenizer takes whole codes of {RATIO} frames, not {latents.shape[1]} frames.")
        mask = None if inside is None else inside[..., None].to(latents.dtype)
        x = self.normalize(latents)
        if mask is not None:
            x = x * mask.repeat_interleave(RATIO, 1)
        return quantize(self.encoder(x, mask))[1]

    @torch.no_grad()
    def decode(self, digits: Tensor) -> Tensor:
        """digits [B, c, 5] -> latents [B, 4 c, C]. After the end it sees zeros, so a batch must not be padded."""
        return self.denormalize(self.decoder(digits_to_unit(digits)))


def quantize(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Unbounded [..., 5] -> (values in -1 to 1, rounded forwards and smooth backwards; digits uint8)."""
    top = per_digit([levels - 1 for levels in LEVELS], raw.device)
    bounded = raw.float().tanh()
    digits = ((bounded + 1) / 2 * top).round()
    unit = digits * 2 / top - 1
    return bounded + (unit - bounded).detach(), digits.detach().to(torch.uint8)


def per_digit(values: Sequence[float], device: torch.device) -> Tensor:
    """[5] fp32, made on the device, so that a GPU need not be waited for."""
    return torch.cat([torch.full((1,), float(value), device=device) for value in values])


def digits_to_unit(digits: Tensor) -> Tensor:
    """Digits [..., 5] -> values [..., 5] evenly spaced in -1 to 1."""
    return digits.float() * 2 / per_digit([levels - 1 for levels in LEVELS], digits.device) - 1


def digits_to_index(digits: Tensor) -> Tensor:
    """Digits [..., 5] -> one number [...] in 0 to 4374; the first digit counts least."""
    place, index = 1, torch.zeros(digits.shape[:-1], dtype=torch.int64, device=digits.device)
    for digit, levels in enumerate(LEVELS):
        index = index + digits[..., digit].long() * place
        place *= levels
    return index


def _read_config(path: Path) -> SpeechTokenizerConfig:
    from safetensors import safe_open

    if not path.is_file():
        raise WeightsError(f"{path} is missing; make it with `duologue train tokenizer`.")
    try:
        with safe_open(path, "pt") as file:
            return SpeechTokenizerConfig(**json.loads((file.metadata() or {})["config"]))
    except Exception as error:  # safetensors has an exception of its own; a foreign file lacks the sizes
        raise WeightsError(f"{path} does not hold a speech tokenizer ({error}); train it again.") from error
