"""Teaching the speech tokenizer: random crops of the teacher's latents, all of them on the device, for a given time.

Notable: four losses. The latents themselves (L1 and L2, normalised); the sound they make, as log-mel after the teacher's own frozen
HiFi-GAN on a few short crops, so that the codes spend their bits on what is heard; the phone of each frame, told from the quantised
features; and the spread of the digits (even use, no two digits saying the same). The learning rate follows the share of the time that
is used up, so that a run on any machine ends annealed. What can fail on a machine (memory, the sound loss) is made smaller or left
out, with a line that says so.

Shapes: B rows of c codes, T = 4 c latent frames, C latent channels.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from decoders.speech_tokenizer import (
    LEVELS,
    RATIO,
    SpeechTokenizer,
    SpeechTokenizerConfig,
    digits_to_index,
    digits_to_unit,
    per_digit,
    quantize,
)
from decoders.training_ranks import ALONE, Ranks
from decoders.vits_net import VITS_RATE_HZ, VitsNet
from duplex.errors import WeightsError
from duplex.mel_filters import mel_filters


@dataclass(frozen=True, slots=True)
class TokenizerTrainingConfig:
    """How the tokenizer is taught."""

    seconds: float = 90.0
    """Time to learn; what there is then is what is kept."""
    rows: int = 256
    """Crops per step."""
    codes: int = 64
    """Length of a crop; 64 are 3 s."""
    rate: float = 1.5e-3
    """Peak learning rate."""
    decay: float = 0.01
    """Weight decay."""
    phone_weight: float = 0.1
    """Of the phones' cross entropy, in nats per frame."""
    use_weight: float = 0.05
    """Of the digits' spread."""
    sound_weight: float = 0.2
    """Of the log-mel distance, in nepers."""
    sound_rows: int = 48
    """Rows of a step that are made to sound."""
    sound_codes: int = 8
    """Length of what sounds; 8 are 0.37 s."""
    seed: int = 0
    """Of the first weights and of the crops."""
    save_every_s: float = 30.0
    """Time between checkpoints."""
    tell_every_s: float = 5.0
    """Time between progress lines."""

    def __post_init__(self) -> None:
        if not 1 <= self.sound_codes <= self.codes or min(self.rows, self.sound_rows) < 1 or self.seconds <= 0:
            raise ValueError("the tokenizer is taught for some time on rows of codes, of which at most `codes` are made to sound")


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """Items laid end to end, each a whole number of codes."""

    latents: Tensor
    """[sum T, C] fp16, not normalised."""
    phones: Tensor
    """[sum T] uint8, the phone of each frame."""

    def crops(self, starts: Tensor, codes: int) -> tuple[Tensor, Tensor]:
        """starts [B] in codes -> latents [B, T, C] fp32, phones [B, T] int64."""
        places = starts[:, None] + torch.arange(codes, device=starts.device)  # [B, c]
        rows = len(starts)
        latents = self.latents.view(-1, RATIO, self.latents.shape[1])[places].float()
        return latents.reshape(rows, codes * RATIO, -1), self.phones.view(-1, RATIO)[places].long().reshape(rows, -1)

    def codes(self) -> int:
        """How many codes long."""
        return len(self.latents) // RATIO


@dataclass(slots=True)
class TokenizerProgress:
    """Where training is; the losses are means since the last report."""

    step: int
    seconds: float
    budget: float
    losses: dict[str, float]
    steps_per_s: float


@dataclass(slots=True)
class TokenizerJudgement:
    """Figures on speech that was kept back."""

    l1: float
    """Distance of normalised latents."""
    mel: float
    """Distance of log-mels of the sound, in nepers."""
    phone_accuracy: float
    """Share of frames whose phone is told rightly."""
    digit_perplexity: list[float]
    """Of each digit; at most 7, 5, 5, 5, 5."""
    code_perplexity: float
    """Of the joint code; at most 4375."""
    codes_used: int
    """Different codes met."""


@dataclass(slots=True)
class _Run:
    """What a checkpoint holds beside the weights."""

    step: int = 0
    seconds: float = 0.0
    curve: list[list[float]] = field(default_factory=list)
    """[seconds, latents, sound, phones] of each report."""


class SoundDistance:
    """Log-mel distance of the sound that latents make, at two resolutions."""

    def __init__(self, teacher: VitsNet, device: torch.device) -> None:
        self.teacher = teacher
        self.windows = [torch.hann_window(size, device=device) for size in (1024, 256)]
        self.banks = [
            torch.from_numpy(mel_filters(VITS_RATE_HZ, size, bands).copy()).to(device) for size, bands in ((1024, 80), (256, 32))
        ]

    def __call__(self, made: Tensor, target: Tensor) -> Tensor:
        """Latents [B, T, C] each, not normalised -> mean distance in nepers."""
        with torch.autocast(made.device.type, enabled=False):  # bf16 samples would drown what is quiet
            with torch.no_grad():
                wanted = self._mels(self.teacher.dec(target.transpose(1, 2)))
            heard = self._mels(self.teacher.dec(made.transpose(1, 2)))
        return torch.stack([(one - other).abs().mean() for one, other in zip(heard, wanted, strict=True)]).mean()

    def _mels(self, sound: Tensor) -> list[Tensor]:
        mels = []
        for window, bank in zip(self.windows, self.banks, strict=True):
            size = len(window)
            spectrum = torch.stft(sound, size, size // 4, window=window, return_complex=True)  # [B, b, n]
            power = spectrum.real.square() + spectrum.imag.square() + 1e-9
            mels.append((power.sqrt().transpose(1, 2) @ bank).clamp(min=1e-5).log())
        return mels


def statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """[sum T, C] fp16 -> mean and deviation of each channel [C], fp32."""
    total, squares = (torch.zeros(latents.shape[1], dtype=torch.float64, device=latents.device) for _ in range(2))
    for part in latents.split(1 << 20):
        total += part.double().sum(0)
        squares += part.double().square().sum(0)
    mean = total / len(latents)
    deviation = (squares / len(latents) - mean.square()).clamp(min=1e-6).sqrt()
    return mean.float(), deviation.float()


def train_tokenizer(
    speech: Speech,
    teacher: VitsNet,
    net_config: SpeechTokenizerConfig,
    config: TokenizerTrainingConfig,
    checkpoint: Path,
    tell: Callable[[TokenizerProgress], None] = lambda progress: None,
    say: Callable[[str], None] = print,
    ranks: Ranks = ALONE,
) -> tuple[SpeechTokenizer, list[list[float]]]:
    """Teach a tokenizer on the device of `speech`; goes on from `checkpoint` when it is there.

    ranks: those that train together, each with the same speech; the first one's clock counts, and it alone tells and saves.
    Returns it, ready for use, and the curve: [seconds, latents, sound, phones] of each report. Raises WeightsError for a checkpoint
    that does not fit, ValueError for less speech than one crop.
    """
    device = speech.latents.device
    if speech.codes() <= config.codes:
        raise ValueError(f"The tokenizer needs more than {config.codes} codes of speech, not {speech.codes()}.")
    torch.manual_seed(config.seed)
    net = SpeechTokenizer(net_config).to(device)
    mean, deviation = statistics(speech.latents)
    net.mean.copy_(mean)
    net.deviation.copy_(deviation)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=config.rate, weight_decay=config.decay, betas=(0.9, 0.98), fused=device.type == "cuda"
    )
    run = _resume(checkpoint, net, optimizer) if checkpoint.exists() else _Run()
    generator = torch.Generator(device).manual_seed(config.seed + run.step + 1_000_003 * ranks.index)
    rng = random.Random(config.seed + run.step)
    distance = SoundDistance(teacher, device)
    rows, sound_weight = config.rows, config.sound_weight
    sums, since = torch.zeros(4, device=device), 0
    began = told = saved = ranks.agreed(time.monotonic())
    before = run.seconds
    net.train()
    while run.seconds < config.seconds:
        share = run.seconds / config.seconds
        for group in optimizer.param_groups:
            group["lr"] = config.rate * _schedule(run.step, share)
        starts = torch.randint(speech.codes() - config.codes, (rows,), generator=generator, device=device)
        try:
            latents, phones = speech.crops(starts, config.codes)
            losses = _losses(net, latents, phones, distance if sound_weight else None, config, rng)
            loss = losses[0] + sound_weight * losses[1] + config.phone_weight * losses[2] + config.use_weight * losses[3]
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        except torch.OutOfMemoryError:
            if rows <= 8 or not ranks.alone:
                raise
            rows //= 2
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            say(f"out of memory: {rows} rows from here on")
            run.seconds = before + time.monotonic() - began
            continue
        except RuntimeError as error:
            if not sound_weight or not ranks.alone:
                raise
            sound_weight = 0.0
            say(f"the sound loss does not work on this machine and is left out ({str(error).splitlines()[0]})")
            run.seconds = before + time.monotonic() - began
            continue
        ranks.average_gradients(net.parameters())
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        run.step += 1
        since += 1
        sums += losses.detach()
        now = ranks.agreed(time.monotonic())
        run.seconds = before + now - began
        if now - told >= config.tell_every_s or run.seconds >= config.seconds:
            means = ranks.mean(sums / since).tolist()
            run.curve.append([run.seconds, *means[:3]])
            names = dict(zip(("latents", "sound", "phones", "use"), means, strict=True))
            if ranks.first:
                tell(TokenizerProgress(run.step, run.seconds, config.seconds, names, since / max(now - told, 1e-6)))
            sums.zero_()
            since, told = 0, now
        if ranks.first and now - saved >= config.save_every_s:
            _save(checkpoint, net, optimizer, run)
            saved = now
    if ranks.first:
        _save(checkpoint, net, optimizer, run)
    net.requires_grad_(False).train(False)
    return net, run.curve


def _schedule(step: int, share: float) -> float:
    """Factor on the learning rate: up over 100 steps or 5 % of the time, whichever ends first, then down a cosine."""
    return min(max((step + 1) / 100, share / 0.05), 1.0) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def _losses(
    net: SpeechTokenizer,
    latents: Tensor,
    phones: Tensor,
    distance: SoundDistance | None,
    config: TokenizerTrainingConfig,
    rng: random.Random,
) -> Tensor:
    """Crops -> [4]: latents, sound, phones, use."""
    device = latents.device
    x = net.normalize(latents)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        raw = net.encoder(x)
        unit, _ = quantize(raw)
        made = net.decoder(unit).float()
        logits = net.classifier(unit).float()
    gap = made - x
    own = gap.abs().mean() + 0.5 * gap.square().mean()
    phone = F.cross_entropy(logits.flatten(0, 1), phones.flatten())
    sound = torch.zeros((), device=device)
    if distance is not None:
        count, length = min(config.sound_rows, len(latents)), config.sound_codes * RATIO
        start = rng.randint(0, latents.shape[1] - length)
        part = slice(start, start + length)
        sound = distance(net.denormalize(made[:count, part]), latents[:count, part])
    return torch.stack((own, sound, phone, spread(raw)))


def spread(raw: Tensor) -> Tensor:
    """How far the digits [..., 5], before rounding, are from even and independent use; 0 is best."""
    z = raw.float().tanh().flatten(0, -2)  # [n, 5]
    mean = z.mean(0)
    centred = z - mean
    covariance = centred.T @ centred / len(z)
    variance = covariance.diagonal()
    even = per_digit([(levels + 1) / (levels - 1) / 3 for levels in LEVELS], raw.device)
    correlation = covariance / (variance[:, None] * variance[None, :] + 1e-6).sqrt()
    shared = (correlation - torch.diag(correlation.diagonal())).square().sum() / 2
    return mean.square().sum() + (variance / even - 1).square().sum() + shared


@torch.no_grad()
def judge_tokenizer(net: SpeechTokenizer, speech: Speech, teacher: VitsNet, codes: int = 64, most: int = 512) -> TokenizerJudgement:
    """Figures on speech that was kept back, in crops of `codes`, at most `most` of them.

    Raises ValueError for less speech than one crop.
    """
    count = min(speech.codes() // codes, most)
    if not count:
        raise ValueError(f"The tokenizer is judged on at least {codes} codes of speech, not {speech.codes()}.")
    device = speech.latents.device
    distance = SoundDistance(teacher, device)
    l1, mel, right, parts = 0.0, 0.0, 0.0, []
    for starts in (torch.arange(count, device=device) * codes).split(32):
        latents, phones = speech.crops(starts, codes)
        digits = net.encode(latents)
        made = net.decode(digits)
        share = len(starts) / count
        l1 += share * float((net.normalize(made) - net.normalize(latents)).abs().mean())
        mel += share * float(distance(made[:, -16 * RATIO :], latents[:, -16 * RATIO :]))
        right += share * float((net.classifier(digits_to_unit(digits)).argmax(2) == phones).float().mean())
        parts.append(digits.flatten(0, 1))
    digits = torch.cat(parts)
    return TokenizerJudgement(l1, mel, right, *code_use(digits))


def code_use(digits: Tensor) -> tuple[list[float], float, int]:
    """Digits [n, 5] -> perplexity of each digit, perplexity of the joint code, how many codes were met."""
    each = [_perplexity(torch.bincount(digits[:, index].long(), minlength=levels)) for index, levels in enumerate(LEVELS)]
    joint = torch.bincount(digits_to_index(digits), minlength=math.prod(LEVELS))
    return each, _perplexity(joint), int((joint > 0).sum())


def _perplexity(counts: Tensor) -> float:
    share = counts.double() / counts.sum()
    return float(torch.special.entr(share).sum().exp())


def _save(path: Path, net: SpeechTokenizer, optimizer: torch.optim.Optimizer, run: _Run) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    kept = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**kept, "step": run.step, "seconds": run.seconds, "curve": run.curve}, part)
    part.replace(path)


def _resume(path: Path, net: SpeechTokenizer, optimizer: torch.optim.Optimizer) -> _Run:
    try:
        kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
        return _Run(int(kept["step"]), float(kept["seconds"]), list(kept["curve"]))
    except Exception as error:  # the unpickler, zip and a misfit each fail in their own ways
        raise WeightsError(f"{path} is damaged or of another training ({error}); delete it to start anew.") from error
