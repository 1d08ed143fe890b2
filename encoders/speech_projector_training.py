"""Teaching the input projector's network to read phones: CTC, first on Whisper's encoder as it was published, then with thin layers beside
its own that learn too (LoRA).

The sound is spoilt little at first. That follows the clock, as does the learning rate: a run of any length ends finished. Where hearing
costs more than learning, on a CPU, batches that Whisper has heard as it was published are remembered and learnt from again.

Legend: B rows, n samples, S sounds, P phones, L targets.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from duplex.audio import USER_RATE_HZ
from duplex.errors import WeightsError
from encoders.fast_types import fast_in_bfloat16
from encoders.mel import HOP_SAMPLES
from encoders.speech_augment import AugmentConfig, MelBank, mask_patches, spoil
from encoders.speech_batches import Batches
from encoders.speech_projector import SOUND_RATE_HZ, SpeechProjector, SpeechProjectorConfig, collapse, load_whisper
from encoders.speech_projector_recipe import ProjectorTrainingConfig

_SAMPLES = round(USER_RATE_HZ / SOUND_RATE_HZ)
"""In a sound."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training is."""

    step: int
    seconds: float
    loss: float
    """CTC, nats per phone."""
    speed: float
    """Seconds of sound per second."""


@dataclass(frozen=True, slots=True)
class Read:
    """One row of a batch that was kept back."""

    texts: tuple[np.int64, ...]
    """Which texts were said."""
    meant: list[int]
    """Phones that were said."""
    odds: NDArray[np.float32]
    """[S, 1 + P] log probabilities, the blank first."""

    def phones(self) -> list[int]:
        """Those that were heard."""
        return collapse(torch.from_numpy(self.odds))


@dataclass(frozen=True, slots=True)
class _Heard:
    """A batch as Whisper hears it."""

    states: Tensor
    """[B, T, W] one chunk late; half where they are remembered."""
    sounds: Tensor
    """[B] sounds that count."""
    phones: list[NDArray[np.int64]]
    """[B] what is said."""
    sound_s: float
    """Sound in it."""


class Training:
    """One run: weights, their average, the optimizer, and what was drawn."""

    def __init__(
        self, whisper: dict[str, Tensor], net_config: SpeechProjectorConfig, config: ProjectorTrainingConfig, device: str
    ) -> None:
        """whisper: OpenAI's encoder."""
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(device)
        self.net = SpeechProjector(net_config)
        load_whisper(self.net, whisper)
        self.net.to(self.device)
        self.mel = MelBank().to(self.device)
        ours = self.net.own_parameters().keys()
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name in ours)
        self.names, self.learnt = zip(*((n, p) for n, p in self.net.named_parameters() if p.requires_grad), strict=True)
        self.before: list[Tensor] | None = None  # the average when Whisper's layers began to be taught
        self.average = [p.detach().clone() for p in self.learnt]
        self.optimizer = torch.optim.AdamW(self.learnt, lr=config.rate, betas=(0.9, 0.98), weight_decay=config.decay, fused=True)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.pick = np.random.default_rng(config.seed)
        self.step, self.seconds, self.share = 0, 0.0, 1.0
        self._memory: list[_Heard] = []
        self._asked = 0
        self.history: list[tuple[float, ...]] = []

    # -- one step

    def _throats(self, rows: int, augment: AugmentConfig) -> Tensor:
        bend = math.log(augment.throat)
        return torch.exp((torch.rand(rows, device=self.device, generator=self.rng) * 2 - 1) * bend)

    def _eased(self) -> float:
        """Which part of its spoiling the sound has at this share of the time."""
        return min(self.share / self.config.eased, 1.0) if self.config.eased > 0 else 1.0

    def loss(self, spoken: Batches) -> tuple[Tensor, float]:
        """CTC per phone of one batch, and how many seconds of sound are in it."""
        one = self._heard(spoken) if self.share < self.config.adapt_from else self._hear(spoken, True)
        with self._cast():
            heard, _ = self.net.hear(one.states.float(), self.net.open(len(one.states)))
            phones = self.net.phone(heard)
        return ctc_per_label(phones.float().log_softmax(2), one.sounds, one.phones), one.sound_s

    def _heard(self, spoken: Batches) -> _Heard:
        """A batch as Whisper hears it: a new one, or one that is remembered."""
        memory, config = self._memory, self.config
        self._asked += 1
        if memory and self._asked % config.again:
            return memory[int(self.pick.integers(len(memory)))]
        return self._remembered(self._hear(spoken, False))

    def _remembered(self, found: _Heard) -> _Heard:
        """A batch that was just heard, remembered where batches are learnt from again."""
        memory, config = self._memory, self.config
        found = replace(found, states=found.states.half())
        if config.again > 1 and sum(one.sound_s for one in memory) < config.memory_h * 3600:
            memory.append(found)
        elif config.again > 1:
            memory[int(self.pick.integers(len(memory)))] = found
        return found

    def _hear(self, spoken: Batches, adapting: bool) -> _Heard:
        """A new one; adapting: for teaching what stands beside Whisper's layers."""
        augment = self.config.augment.eased(self._eased())
        batch = spoken.draw(self.config.batch_s, augment.speed)
        with self._cast(), torch.set_grad_enabled(adapting):
            mel = self._mel(late_by(batch.sound, self.net.config), augment)
            states, _ = self.net.whisper(mel, self.net.open(len(mel)))
        sounds = torch.from_numpy(-(-batch.samples // _SAMPLES) + self.net.config.sounds)
        return _Heard(states, sounds, batch.phones, batch.sound.numel() / USER_RATE_HZ)

    @torch.no_grad()
    def _mel(self, sound: Tensor, augment: AugmentConfig) -> Tensor:
        """[B, n] -> [B, M, 80], spoilt."""
        mel = self.mel(spoil(sound, augment, self.rng), self._throats(len(sound), augment))
        if self.pick.random() < self.config.masked_p * self._eased():
            mel = mask_patches(mel, self.rng)
        return mel

    def _cast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast_in_bfloat16(self.device))

    def learn(self, spoken: Batches, share: float) -> tuple[Tensor, float]:
        """One step at this share of the time; gives what `loss` does."""
        config = self.config
        self.share = share
        if self.before is None and share >= config.adapt_from:
            self.before = [one.clone() for one in self.average]
        scale = min((self.step + 1) / config.warm_steps, 1.0) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate * scale
        loss, sound_s = self.loss(spoken)
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
        return loss, sound_s

    def run(self, spoken: Batches, checkpoint: Path, tell: Callable[[Progress], None]) -> None:
        """Learn until the time is over; the newest state is left in `checkpoint`."""
        began = time.monotonic() - self.seconds
        told = saved = time.monotonic()
        heard, smooth = 0.0, math.nan
        while self.seconds < self.config.seconds:
            try:
                loss, sound_s = self.learn(spoken, self.seconds / self.config.seconds)
            except torch.cuda.OutOfMemoryError:
                if self.config.batch_s < 60:
                    raise
                self.config = replace(self.config, batch_s=self.config.batch_s / 2)
                torch.cuda.empty_cache()
                continue
            heard += sound_s
            if self.step % 8 == 0 or self.device.type == "cpu":  # reading a number waits for the device
                newest = float(loss.detach())
                smooth = newest if math.isnan(smooth) else 0.8 * smooth + 0.2 * newest
            now = time.monotonic()
            self.seconds = now - began
            if now - told > 5 or self.seconds >= self.config.seconds:
                self.history.append((self.seconds, smooth))
                tell(Progress(self.step, self.seconds, smooth, heard / max(now - told, 1e-6)))
                told, heard = now, 0.0
            if now - saved > self.config.save_every_s or self.seconds >= self.config.seconds:
                self.save(checkpoint)
                saved = now

    # -- what is kept

    def use_average(self) -> None:
        """Put the average in the place of the weights, most of the way back to before Whisper's layers were taught; learning should not go
        on from it.

        What fits the training's voices ever better fits others ever worse; between the two lies what is better than both (Wortsman et al.
        2022, "Robust fine-tuning of zero-shot models").
        """
        with torch.no_grad():
            for index, (name, parameter) in enumerate(zip(self.names, self.learnt, strict=True)):
                parameter.copy_(self.average[index])
                if self.before is not None and not name.endswith(
                    ".down"
                ):  # of each pair of thin layers the one that began as 0 will do
                    parameter.lerp_(self.before[index], 1 - self.config.kept)

    def save(self, file: Path) -> None:
        """Everything that a later run needs to go on."""
        part = file.with_suffix(".part")
        kept = {"learnt": [p.detach() for p in self.learnt], "average": self.average, "optimizer": self.optimizer.state_dict()}
        torch.save({**kept, "before": self.before, "step": self.step, "seconds": self.seconds, "history": self.history}, part)
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
            self.before = kept["before"]
        except Exception as error:  # torch.load raises many kinds, all of them mean the same here
            raise WeightsError(f"{file} does not fit this training ({error}); delete it to begin anew.") from error
        self.step, self.seconds, self.history = kept["step"], kept["seconds"], [tuple(row) for row in kept["history"]]
        self.pick, self.rng = (
            np.random.default_rng((self.config.seed, self.step)),
            self.rng.manual_seed(self.config.seed + self.step),
        )
        return True

    @torch.no_grad()
    def begin(self, net: SpeechProjector) -> None:
        """Begin with what was learnt before, with or without anything beside Whisper's layers. Raises WeightsError."""
        if replace(net.config, rank=0) != replace(self.net.config, rank=0) or net.config.rank not in (0, self.net.config.rank):
            raise WeightsError("What was learnt before has other sizes, or other phones; begin without it.")
        self.net.load_state_dict(net.own_parameters(), strict=False)
        for average, parameter in zip(self.average, self.learnt, strict=True):
            average.copy_(parameter)

    @torch.no_grad()
    def read(self, spoken: Batches, plain: bool) -> list[Read]:
        """One batch of recordings that were held back, as they are or spoilt."""
        augment = self.config.augment
        batch = spoken.draw(self.config.batch_s, 1.0 if plain else augment.speed, held=True, pairs=0.0 if plain else 0.35)
        sound = batch.sound if plain else spoil(batch.sound, augment, self.rng)
        with self._cast():
            scores, _ = self.net(self.mel(late_by(sound, self.net.config)), self.net.open(len(sound)))
        odds = scores.float().log_softmax(2).cpu().numpy()
        ends = -(-batch.samples // _SAMPLES) + self.net.config.sounds
        rows = zip(batch.texts, batch.phones, odds, ends, strict=True)
        return [Read(texts, meant.tolist(), one[:end]) for texts, meant, one, end in rows]


def ctc_per_label(odds: Tensor, lengths: Tensor, targets: list[NDArray[np.int64]]) -> Tensor:
    """CTC per label; rows without labels don't count.

    odds: [B, S, 1 + P] logarithms, blank first. lengths: [B] sounds that count. targets: [B] labels from 0.
    """
    rows = [row for row, labels in enumerate(targets) if len(labels)]
    if not rows:
        return 0.0 * odds.sum()
    if len(rows) < len(targets):
        odds, lengths = odds[torch.tensor(rows, device=odds.device)], lengths[torch.tensor(rows)]
    flat = torch.from_numpy(np.concatenate([targets[row] for row in rows]) + 1).to(odds.device)
    sizes = torch.tensor([len(targets[row]) for row in rows])
    lost = functional.ctc_loss(odds.transpose(0, 1), flat, lengths, sizes, blank=0, reduction="none", zero_infinity=True)
    return lost.sum() / int(sizes.sum())


def late_by(sound: Tensor, sizes: SpeechProjectorConfig) -> Tensor:
    """[B, n] -> with silence for one more chunk, by which what comes out is late."""
    return functional.pad(sound, (0, sizes.mel_frames * HOP_SAMPLES))


def distance(a: list[int] | list[str], b: list[int] | list[str]) -> int:
    """Insertions, deletions and substitutions that make one of the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]
