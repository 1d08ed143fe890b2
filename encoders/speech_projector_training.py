"""Teaching the input projector: CTC against the LLM's own token embeddings, on Whisper's encoder as it was published.

Terms: CTC over the tokens in use; CTC over the phones halfway; a pull of frames that say a token towards that token's embedding; and, to
begin with, a guide: CTC alone spends thousands of steps on which tokens are frequent before it looks for any in the sound, so each token
is also asked for in a window around the place where it lies if letters take equally long. The sound is spoilt little at first. All of it
follows the clock, as does the learning rate: a run of any length ends finished.

Where little sound can be heard the time is in three parts: phones alone; then tokens alone, from sentences that were put together from
pieces of phones (`encoders.speech_pieces`), several times as many a second; then tokens from both, three steps of four from pieces, so that
what was read of many texts is not forgotten over the few that were spoken. What hears phones does not learn any more by then, so that its
pieces stay what they were.

Legend: B rows, n samples, F frames out, D LLM width, V tokens in use, P phones, L targets.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
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
from encoders.speech_batches import Batches, Written
from encoders.speech_pieces import Heard, Imagination, Imagined, Pieces
from encoders.speech_projector import (
    OUT_RATE_HZ,
    SpeechProjector,
    SpeechProjectorConfig,
    TokenHead,
    collapse,
    load_whisper,
)
from encoders.speech_projector_losses import choose, ctc_per_label, guide, pull
from encoders.speech_projector_recipe import ProjectorTrainingConfig

SOUNDS_HZ = 2 * OUT_RATE_HZ
"""Phone scores per second."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training is."""

    step: int
    seconds: float
    loss: float
    """CTC, nats per token; NaN while none are learnt."""
    phones: float
    """CTC, nats per phone; NaN while none are learnt."""
    speed: float
    """Seconds of sound per second."""


@dataclass(frozen=True, slots=True)
class Losses:
    """What a step learns from, 0 for what it does not; nothing here was waited for."""

    ctc: Tensor
    """Per token."""
    pull: Tensor
    """Squared distance of frames that say a token from its embedding, per value."""
    guide: Tensor
    """Per token."""
    phones: Tensor
    """CTC per phone."""
    sound_s: float
    """Sound in the batch, heard or imagined."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """A batch as Whisper hears it."""

    states: Tensor
    """[B, T, W] half, one chunk late."""
    written: Written
    phones: list[NDArray[np.int64]]
    """As in `Batch`, one chunk later."""
    sound_s: float
    """Sound in it."""


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
        codes: Tensor | None = None,
    ) -> None:
        """whisper: OpenAI's encoder. table, counts, codes: of the tokens in use [V, D] embeddings, [V] how often they are said, and [V, K]
        how they sound, to begin with.
        """
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(device)
        self.net = SpeechProjector(net_config)
        load_whisper(self.net, whisper)
        self.net.to(self.device)
        self.head = TokenHead(table, counts, net_config.code)
        if codes is not None and len(codes):
            self.head.codes.data = codes.clone()
        self.head.to(self.device)
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
        self.optimizer = torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.98), fused=True)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.pick = np.random.default_rng(config.seed)
        self.step, self.seconds, self.share = 0, 0.0, 1.0
        self.stage, self.began = "", 0
        self._imagined: Imagination | None = None
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

    def losses(self, spoken: Batches) -> Losses:
        """Of one batch, for what is learnt at this share of the time."""
        stage, _ = self._stage()
        if self._reads():
            return self._read_losses(self._imagination(spoken).draw(self.config.batch_s))
        one = self._heard(spoken)
        with self._cast():
            with torch.set_grad_enabled(stage == "hearing" or not self.config.hearing):
                sounds, phones, state = self.net.hear(one.states.float(), self.net.open(len(one.states)))
            vectors = self.net.word(phones, sounds, state)[0] if stage == "together" else None
        heard = ctc_per_label(phones.float().log_softmax(2), 2 * torch.from_numpy(one.written.frames), one.phones)
        if vectors is None:
            none = heard.new_zeros(())
            return Losses(none, none, none, heard, one.sound_s)
        return Losses(*self._token_losses(vectors, one.written), heard, one.sound_s)

    def _heard(self, spoken: Batches) -> _Heard:
        """A batch as Whisper hears it: a new one, or one that is remembered."""
        memory, config = self._memory, self.config
        self._asked += 1
        if memory and self._asked % config.again:
            return memory[int(self.pick.integers(len(memory)))]
        return self._remembered(self._hear(spoken))

    def _remembered(self, found: _Heard) -> _Heard:
        """A batch that was just heard, remembered where batches are learnt from again."""
        memory, config = self._memory, self.config
        if config.again > 1 and sum(one.sound_s for one in memory) < config.memory_h * 3600:
            memory.append(found)
        elif config.again > 1:
            memory[int(self.pick.integers(len(memory)))] = found
        return found

    @torch.no_grad()
    def _hear(self, spoken: Batches) -> _Heard:
        augment = self.config.augment.eased(self._eased())
        batch = spoken.draw(self.config.batch_s, augment.speed)
        late = self.net.config.out_frames
        with self._cast():
            mel = self._mel(late_by(batch.sound, self.net.config), augment)
            states, _ = self.net.whisper(mel, self.net.open(len(mel)))
        return _Heard(states.half(), batch.written.later(late), batch.phones, batch.sound.numel() / USER_RATE_HZ)

    @torch.no_grad()
    def _mel(self, sound: Tensor, augment: AugmentConfig) -> Tensor:
        """[B, n] -> [B, M, 80], spoilt."""
        mel = self.mel(spoil(sound, augment, self.rng), self._throats(len(sound), augment))
        if self.pick.random() < self.config.masked_p * self._eased():
            mel = mask_patches(mel, self.rng)
        return mel

    def _read_losses(self, batch: Imagined) -> Losses:
        odds = batch.odds.to(self.device)
        with self._cast():
            vectors, _ = self.net.word(odds, None, self.net.open(len(odds)))
        return Losses(*self._token_losses(vectors, batch.written), odds.new_zeros(()), odds.shape[0] * odds.shape[1] / SOUNDS_HZ)

    def _token_losses(self, vectors: Tensor, written: Written) -> tuple[Tensor, Tensor, Tensor]:
        """[B, F, D + K] vectors -> CTC per token, pull and guide."""
        frames_on = torch.from_numpy(written.frames)
        chosen, targets, odds_of_chosen = choose(
            written.targets, len(self.head.table), self.config.negatives, self.pick, self.device
        )
        with self._cast():
            scores = self.head(vectors, chosen) + odds_of_chosen
        odds = scores.float().log_softmax(2)  # [B, F, 1 + V]
        pulled = pull(self.head.meant(vectors), odds, frames_on, self.head.table, chosen)
        asked = guide(written.places, targets, odds) if self._guided() else odds.new_zeros(())
        return ctc_per_label(odds, frames_on, targets), pulled, asked

    def _stage(self) -> tuple[str, float]:
        """What is learnt at this share of the time ("hearing", "reading", "together"), and which share of that is over."""
        hearing, reading = self.config.hearing, self.config.reading
        if self.share < hearing:
            return "hearing", self.share / hearing
        if self.share < hearing + reading:
            return "reading", (self.share - hearing) / reading
        return "together", (self.share - hearing - reading) / max(1 - hearing - reading, 1e-6)

    def _reads(self) -> bool:
        """Whether this step learns from pieces: all do while tokens alone are learnt, and three of four after that."""
        stage, _ = self._stage()
        return stage == "reading" or (stage == "together" and self.config.reading > 0 and self.step % 4 > 0)

    def _guided(self) -> float:
        """The guide's weight at this share of the time."""
        config = self.config
        if config.guided <= 0:
            return 0.0
        return config.guide * max(1 - (self.share - config.hearing) / config.guided, 0.0)

    def _imagination(self, spoken: Batches) -> Imagination:
        """Sentences from pieces of recordings as they are heard now."""
        if self._imagined is None:
            self._imagined = Imagination(Pieces(self._cut(spoken)), spoken.spoken, self.pick)
        return self._imagined

    @torch.no_grad()
    def _cut(self, spoken: Batches) -> Iterator[Heard]:
        """Recordings to cut up: those that are remembered, and more."""
        left, known = self.config.pieces_h * 3600, list(self._memory)
        while left > 0:
            one = known.pop() if known else self._remembered(self._hear(spoken))
            left -= one.sound_s
            with self._cast():
                _, phones, _ = self.net.hear(one.states.float(), self.net.open(len(one.states)))
            odds = phones.float().log_softmax(2).cpu().numpy()
            for row, said in enumerate(one.phones):
                yield Heard(odds[row, : 2 * int(one.written.frames[row])], said)

    def _cast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast_in_bfloat16(self.device))

    def learn(self, spoken: Batches, share: float) -> Losses:
        """One step at this share of the time."""
        config = self.config
        self.share = share
        stage, part = self._stage()
        if stage != self.stage:
            self.stage, self.began = stage, self.step
        scale = min((self.step - self.began + 1) / config.warm_steps, 1.0) * (
            0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * scale
        found = self.losses(spoken)
        loss = found.ctc + config.phones * found.phones + config.pull * found.pull + self._guided() * found.guide
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
                newest[newest == 0] = np.nan  # not learnt now
                if self._stage()[0] != "together" or np.isfinite(newest).all():
                    smooth = np.where(np.isfinite(smooth) & np.isfinite(newest), 0.8 * smooth + 0.2 * newest, newest)
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
        torch.save(
            {**kept, "step": self.step, "began": self.began, "stage": self.stage, "seconds": self.seconds, "history": self.history},
            part,
        )
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
        self.stage, self.began = kept["stage"], kept["began"]
        self.pick, self.rng = (
            np.random.default_rng((self.config.seed, self.step)),
            self.rng.manual_seed(self.config.seed + self.step),
        )
        return True

    @torch.no_grad()
    def begin(self, net: SpeechProjector, head: dict[str, Tensor], rows: Tensor) -> None:
        """Begin with what was learnt before. rows: [V] where each token was in that head, -1 for what is new. Raises WeightsError."""
        if net.config != self.net.config:
            raise WeightsError("What was learnt before has other sizes, or other phones; begin without it.")
        self.net.load_state_dict(net.own_parameters(), strict=False)
        mine, known = self.head, rows >= 0
        mine.sharp.copy_(head["sharp"])
        mine.blank.copy_(head["blank"])
        mine.bias[0] = head["bias"][0]
        for kept, learnt in ((mine.bias[1:], head["bias"][1:]), (mine.codes, head["codes"])):
            kept[known.to(kept.device)] = learnt[rows[known]].to(kept.device)
        for average, parameter in zip(self.average, self.learnt, strict=True):
            average.copy_(parameter)

    @torch.no_grad()
    def read(self, spoken: Batches, plain: bool) -> list[tuple[list[int], list[int]]]:
        """One batch of recordings that were held back: per row, tokens meant and tokens read."""
        augment = self.config.augment
        batch = spoken.draw(self.config.batch_s, 1.0 if plain else augment.speed, held=True, pairs=0.0 if plain else 0.35)
        sound = batch.sound if plain else spoil(batch.sound, augment, self.rng)
        written = batch.written.later(self.net.config.out_frames)
        with self._cast():
            vectors, _, _ = self.net(self.mel(late_by(sound, self.net.config)), self.net.open(len(sound)))
            scores = self.head(vectors)
        return [(target.tolist(), collapse(scores[row, : written.frames[row]])[0]) for row, target in enumerate(written.targets)]


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
