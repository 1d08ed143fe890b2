"""Teaching the input projector: CTC against the LLM's own token embeddings, on Whisper's lower layers as they were published.

Terms: CTC over the tokens in use; CTC over the phones halfway; a pull of frames that say a token towards that token's embedding; and, to
begin with, a guide: CTC alone spends thousands of steps on which tokens are frequent before it looks for any in the sound, so each token
is also asked for in a window around the place where it lies if letters take equally long. The sound is spoilt little at first. All of it
follows the clock, as does the learning rate: a run of any length ends finished.

Legend: B rows, n samples, F frames out, D LLM width, V tokens in use, P phones, L targets.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from duplex.audio import USER_RATE_HZ
from duplex.errors import WeightsError
from encoders.speech_augment import AugmentConfig, MelBank, mask_patches, spoil
from encoders.speech_batches import Batches
from encoders.speech_projector import (
    SpeechProjector,
    SpeechProjectorConfig,
    TokenHead,
    collapse,
    load_whisper,
)

GUIDE_BEFORE, GUIDE_AFTER = 2, 5
"""Frames around a token's place in which the guide asks for it."""


@dataclass(frozen=True)
class ProjectorTrainingConfig:
    """How the projector is taught."""

    seconds: float = 300.0
    """Time for learning; the learning rate follows it."""
    batch_s: float = 700.0
    """Sound per step."""
    rate: float = 1.2e-3
    """Peak learning rate of the projector and the head."""
    warm_steps: int = 150
    """Steps until the peak."""
    decay: float = 0.01
    """Weight decay."""
    negatives: int | None = None
    """Tokens drawn for each step that it is judged against besides those it says; None for all others."""
    pull: float = 0.05
    """Weight of the pull towards embeddings."""
    phones: float = 1.0
    """Weight of the phones, per phone."""
    guide: float = 1.0
    """Weight of the guide at the start; it falls to none."""
    guided: float = 0.3
    """Share of the time in which it falls."""
    eased: float = 0.4
    """Share of the time after which the sound is spoilt in full."""
    masked_p: float = 0.6
    """Share of steps with patches of sound left out."""
    average: float = 0.998
    """Of the running average of the weights, which is what is kept."""
    save_every_s: float = 45.0
    """Time between checkpoints."""
    seed: int = 0
    """Of everything that is drawn."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to the sound."""


ON_A_CPU = ProjectorTrainingConfig(
    batch_s=20.0,
    rate=1e-3,
    warm_steps=300,
    negatives=1024,
    eased=1.0,
    masked_p=0.1,
    augment=AugmentConfig(
        speed=1.12, throat=1.07, room_p=0.3, noise_p=0.4, noise_db=(8.0, 32.0), line_p=0.08, clip_p=0.02, quietest_db=-28.0
    ),
)
"""What two cores can do: many small steps instead of few large ones, tokens judged against drawn ones, and sound that is spoilt less."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training is."""

    step: int
    seconds: float
    loss: float
    """CTC, nats per token."""
    phones: float
    """CTC, nats per phone."""
    speed: float
    """Seconds of sound per second."""


@dataclass(frozen=True, slots=True)
class Losses:
    """What a step learns from; nothing here was waited for."""

    ctc: Tensor
    """Per token."""
    phones: Tensor
    """CTC per phone."""
    pull: Tensor
    """Squared distance of frames that say a token from its embedding, per value."""
    guide: Tensor
    """Per token."""
    sound_s: float
    """Sound in the batch."""


class Training:
    """One run: weights, their average, the optimizer, and what was drawn."""

    def __init__(
        self,
        whisper: dict[str, Tensor],
        table: Tensor,
        net_config: SpeechProjectorConfig,
        config: ProjectorTrainingConfig,
        device: str,
        counts: Tensor | None = None,
    ) -> None:
        """whisper: OpenAI's encoder. table, counts: [V, D] embeddings of the tokens in use, [V] how often they are said."""
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(device)
        self.net = SpeechProjector(net_config)
        load_whisper(self.net, whisper)
        self.net.to(self.device)
        self.head = TokenHead(table, counts).to(self.device)
        self.mel = MelBank().to(self.device)
        ours = self.net.own_parameters().keys()
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name in ours)
        groups = [
            {"params": [p for p in self.net.parameters() if p.requires_grad], "peak": config.rate, "weight_decay": config.decay},
            {"params": list(self.head.parameters()), "peak": 4 * config.rate, "weight_decay": 0.0},
        ]
        self.learnt: list[Tensor] = [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
        self.average = [p.detach().clone() for p in self.learnt]
        self.optimizer = torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.98), fused=self.device.type == "cuda")
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.pick = np.random.default_rng(config.seed)
        self.step, self.seconds, self.share = 0, 0.0, 1.0
        self.history: list[tuple[float, ...]] = []

    # -- one step

    def _throats(self, rows: int, augment: AugmentConfig) -> Tensor:
        bend = math.log(augment.throat)
        return torch.exp((torch.rand(rows, device=self.device, generator=self.rng) * 2 - 1) * bend)

    def _eased(self) -> AugmentConfig:
        """How the sound is spoilt at this share of the time."""
        augment = self.config.augment
        part = min(self.share / self.config.eased, 1.0) if self.config.eased > 0 else 1.0
        low = augment.noise_db[0] + (1 - part) * max(augment.noise_db[1] - augment.noise_db[0], 0.0) * 0.8
        return replace(
            augment,
            room_p=part * augment.room_p,
            noise_p=part * augment.noise_p,
            noise_db=(low, augment.noise_db[1]),
            line_p=part * augment.line_p,
            clip_p=part * augment.clip_p,
        )

    def losses(self, spoken: Batches) -> Losses:
        """Of one batch."""
        augment = self._eased()
        batch = spoken.draw(self.config.batch_s, augment.speed)
        with torch.no_grad():
            throat = self._throats(len(batch.sound), augment)
            mel = self.mel(spoil(batch.sound, augment, self.rng), throat)
            if self.pick.random() < self.config.masked_p * min(self.share / max(self.config.eased, 1e-6), 1.0):
                mel = mask_patches(mel, self.rng)
        chosen, targets, odds_of_chosen = self._choose(batch.targets)
        with self._cast():
            with torch.no_grad():
                x, state = self.net.whisper(mel, self.net.open(len(mel)))
            vectors, phones, _ = self.net.own(x, state)
            scores = self.head(vectors, chosen) + odds_of_chosen
        frames = vectors.shape[1]
        odds = scores.float().log_softmax(2)  # [B, F, 1 + V]
        frames_on = torch.from_numpy(batch.frames).clamp(max=frames)
        ctc = ctc_per_label(odds, frames_on, targets)
        lengths = frames_on.to(self.device)
        with torch.no_grad():
            sure, best = odds.max(2)
            says = (best > 0) & (sure > math.log(0.5)) & (torch.arange(frames, device=self.device)[None, :] < lengths[:, None])
            said = (best - 1).clamp(min=0)
            said = said if chosen is None else chosen[said]
        distance_2 = (vectors.float() - self.head.table[said]).pow(2).mean(2)
        pull = (distance_2 * says).sum() / says.sum().clamp(min=1)
        sounds = ctc_per_label(phones.float().log_softmax(2), 2 * frames_on, batch.phones)
        guide = self._guide(batch.places, targets, odds) if self.share < self.config.guided else odds.new_zeros(())
        return Losses(ctc, sounds, pull, guide, batch.sound.numel() / USER_RATE_HZ)

    def _choose(self, targets: list[NDArray[np.int64]]) -> tuple[Tensor | None, list[NDArray[np.int64]], Tensor | float]:
        """The tokens that a step is judged against (None for all), its targets among them, and what to add to the scores.

        Of those that the step does not say only some are drawn; each stands for as many as were not: the sum over all is right on average.
        """
        size, drawn = len(self.head.table), self.config.negatives
        said = np.unique(np.concatenate(targets))
        if drawn is None or len(said) + drawn >= size:
            return None, targets, 0.0
        others = np.setdiff1d(self.pick.choice(size, drawn, replace=False), said, assume_unique=True)
        weight = math.log((size - len(said)) / len(others))
        more = np.concatenate([np.zeros(1 + len(said)), np.full(len(others), weight)]).astype(np.float32)
        chosen = torch.from_numpy(np.concatenate([said, others])).to(self.device)
        return chosen, [np.searchsorted(said, one) for one in targets], torch.from_numpy(more).to(self.device)

    def _guide(self, places: list[NDArray[np.float64]], targets: list[NDArray[np.int64]], odds: Tensor) -> Tensor:
        """Minus the log of how likely each token is within its window, on average over the window."""
        if not places:
            return odds.new_zeros(())
        rows = np.repeat(np.arange(len(targets)), [len(t) for t in targets])
        frames = np.concatenate(places)[:, None] + np.arange(-GUIDE_BEFORE, GUIDE_AFTER + 1)
        frames = np.clip(np.round(frames), 0, odds.shape[1] - 1).astype(np.int64)
        tokens = np.concatenate(targets) + 1
        where, at, which = (torch.from_numpy(x).to(self.device) for x in (rows, frames, tokens))
        return math.log(frames.shape[1]) - odds[where[:, None], at, which[:, None]].logsumexp(1).mean()

    def _cast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def learn(self, spoken: Batches, share: float) -> Losses:
        """One step at this share of the time."""
        config = self.config
        scale = min((self.step + 1) / config.warm_steps, 1.0) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * scale
        self.share = share
        found = self.losses(spoken)
        guide = config.guide * max(1 - share / config.guided, 0.0) if config.guided > 0 else 0.0
        loss = found.ctc + config.phones * found.phones + config.pull * found.pull + guide * found.guide
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        for parameter in self.learnt:
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)  # a step that went wrong is no step
        torch.nn.utils.clip_grad_norm_(self.learnt, 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(config.average, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.learnt], 1 - keep)
        return found

    def run(self, spoken: Batches, checkpoint: Path, tell: Callable[[Progress], None]) -> None:
        """Learn until the time is over; the newest state is left in `checkpoint`."""
        began = time.monotonic() - self.seconds
        told = saved = time.monotonic()
        heard, smooth = 0.0, np.full(2, np.nan)
        while self.seconds < self.config.seconds:
            try:
                found = self.learn(spoken, self.seconds / self.config.seconds)
            except torch.cuda.OutOfMemoryError:
                if self.config.batch_s < 60:
                    raise
                self.config = replace(self.config, batch_s=self.config.batch_s / 2)
                torch.cuda.empty_cache()
                continue
            heard += found.sound_s
            if self.step % 8 == 0 or self.device.type == "cpu":  # reading a number waits for the device
                newest = np.array([float(one.detach()) for one in (found.ctc, found.phones)])
                if np.isfinite(newest).all():
                    smooth = newest if np.isnan(smooth).any() else 0.8 * smooth + 0.2 * newest
            now = time.monotonic()
            self.seconds = now - began
            if now - told > 5 or self.seconds >= self.config.seconds:
                loss, phones = map(float, smooth)
                self.history.append((self.seconds, loss, phones))
                tell(Progress(self.step, self.seconds, loss, phones, heard / max(now - told, 1e-6)))
                told, heard = now, 0.0
            if now - saved > self.config.save_every_s or self.seconds >= self.config.seconds:
                self.save(checkpoint)
                saved = now

    # -- what is kept

    def use_average(self) -> None:
        """Put the average in the place of the weights; learning should not go on from it."""
        with torch.no_grad():
            for parameter, kept in zip(self.learnt, self.average, strict=True):
                parameter.copy_(kept)

    def save(self, file: Path) -> None:
        """Everything that a later run needs to go on."""
        part = file.with_suffix(".part")
        kept = {"learnt": [p.detach() for p in self.learnt], "average": self.average, "optimizer": self.optimizer.state_dict()}
        torch.save({**kept, "step": self.step, "seconds": self.seconds, "history": self.history}, part)
        os.replace(part, file)

    def resume(self, file: Path) -> bool:
        """Go on from `file`; False where there is none. Raises WeightsError for one that does not fit."""
        if not file.exists():
            return False
        try:
            kept = torch.load(file, map_location=self.device, weights_only=True)
            with torch.no_grad():
                for mine, theirs in zip([*self.learnt, *self.average], [*kept["learnt"], *kept["average"]], strict=True):
                    mine.copy_(theirs)
            self.optimizer.load_state_dict(kept["optimizer"])
        except Exception as error:  # torch.load raises many kinds, all of them mean the same here
            raise WeightsError(f"{file} does not fit this training ({error}); delete it to begin anew.") from error
        self.step, self.seconds, self.history = kept["step"], kept["seconds"], [tuple(row) for row in kept["history"]]
        self.pick, self.rng = (
            np.random.default_rng((self.config.seed, self.step)),
            self.rng.manual_seed(self.config.seed + self.step),
        )
        return True

    @torch.no_grad()
    def read(self, spoken: Batches, plain: bool) -> list[tuple[list[int], list[int]]]:
        """One batch of recordings that were held back: per row, tokens meant and tokens read."""
        augment = self.config.augment
        batch = spoken.draw(self.config.batch_s, 1.0 if plain else augment.speed, held=True, pairs=0.0 if plain else 0.35)
        sound = batch.sound if plain else spoil(batch.sound, augment, self.rng)
        with self._cast():
            vectors, _, _ = self.net(self.mel(sound), self.net.open(len(sound)))
            scores = self.head(vectors)
        return [(target.tolist(), collapse(scores[row, : batch.frames[row]])[0]) for row, target in enumerate(batch.targets)]


def ctc_per_label(odds: Tensor, lengths: Tensor, targets: list[NDArray[np.int64]]) -> Tensor:
    """CTC per label; rows without labels don't count.

    odds: [B, T, 1 + V] logarithms, blank first. lengths: [B] positions that count. targets: [B] labels from 0.
    """
    rows = [row for row, labels in enumerate(targets) if len(labels)]
    if not rows:
        return odds.new_zeros(())
    if len(rows) < len(targets):
        odds, lengths = odds[torch.tensor(rows, device=odds.device)], lengths[torch.tensor(rows)]
    flat = torch.from_numpy(np.concatenate([targets[row] for row in rows]) + 1).to(odds.device)
    sizes = torch.tensor([len(targets[row]) for row in rows])
    lost = functional.ctc_loss(odds.transpose(0, 1), flat, lengths, sizes, blank=0, reduction="none", zero_infinity=True)
    return lost.sum() / int(sizes.sum())


def distance(a: list[int] | list[str], b: list[int] | list[str]) -> int:
    """Insertions, deletions and substitutions that make one of the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]
