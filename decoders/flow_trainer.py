"""Training a voice's flow by the clock: first directions, then few steps, then what the frames sound like.

    seconds:  0 ......... learn directions (flow matching, prior) ......... 50 % ... distil to few steps ... 80 % ... polish ... 100 %

Notable: the rate follows the share of time that is spent, so a run ends when it was told to, on any machine. What is kept is a running
mean of the weights; the student of the second part begins as that mean and changes the estimator only, and the third changes all of it.
A step that turns the weights into nonsense (bf16) costs seconds, not the run: the last good ones come back, and the rate is halved. A
checkpoint lets a stopped run go on.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoders.flow import Flow, FlowConfig
from decoders.flow_distillation import conditions, draw_pairs, span_loss, walk
from decoders.flow_judging import Judged, judge
from decoders.flow_polish import Polish
from decoders.flow_speech import Crops, SpeechStore
from decoders.flow_training import cosine_moments, speech_loss
from decoders.training_ranks import ALONE, Ranks
from duplex.errors import WeightsError

TEACH, DISTIL, POLISH = "directions", "few steps", "sound"


@dataclass(frozen=True, slots=True)
class FlowTrainerConfig:
    """How long, how much at once, how fast."""

    seconds: float = 240.0
    """Seconds of training, both parts together."""
    distil_share: float = 0.3
    """Share of them that is spent on bringing the flow down to few steps."""
    polish_share: float = 0.2
    """Share of them, the last, that is spent on the sound of what one pass makes."""
    rows: int = 128
    """Crops of a step."""
    length: int = 56
    """Codes of a crop."""
    rate: float = 1e-3
    """Highest learning rate of the first part."""
    distil_rate: float = 5e-4
    """Highest learning rate of the second part."""
    polish_rate: float = 5e-5
    """Highest learning rate of the third part."""
    warm_steps: int = 200
    """Steps over which each part's rate rises."""
    chunked: float = 0.8
    """Share of steps with the chunk mask, in which the voice is run."""
    teacher_steps: int = 8
    """Steps of the teacher's walk; a multiple of 4."""
    lessons: int = 2
    """Steps of the student for each walk of the teacher."""
    decay: float = 0.999
    """Of the running mean of the weights."""
    seed: int = 0
    """Of everything that is drawn."""
    tell_s: float = 5.0
    """Seconds between two reports."""
    save_s: float = 45.0
    """Seconds between two checkpoints."""

    def __post_init__(self) -> None:
        if self.seconds <= 0 or not 0.0 <= self.chunked <= 1.0:
            raise ValueError("flow_trainer: seconds must be above 0, chunked in 0 to 1")
        if min(self.distil_share, self.polish_share) < 0.0 or self.distil_share + self.polish_share > 1.0:
            raise ValueError("flow_trainer: distil_share and polish_share must be at least 0 and together at most 1")
        if self.teacher_steps < 4 or self.teacher_steps % 4 or min(self.rows, self.length, self.lessons, self.warm_steps) < 1:
            raise ValueError("flow_trainer: teacher_steps must be a multiple of 4, rows, length, lessons and warm_steps at least 1")


@dataclass(frozen=True, slots=True)
class Progress:
    """One report."""

    part: str
    step: int
    spent: float
    """Seconds of training so far."""
    loss: float
    """Of the newest steps, on the mean."""
    prior: float
    """Distance of the encoder's mean in the first part, of the frames in the third."""
    held: float
    """Error of two steps on replies kept back, in deviations; nan where none are."""


@dataclass(slots=True)
class FlowTrainer:
    """The networks of a run and where it stands; made by `begin`."""

    config: FlowTrainerConfig
    learner: Flow
    average: Flow
    """Running mean of the learner."""
    teacher: Flow | None = None
    """What the first part ended as."""
    optimizer: Any = None
    part: str = TEACH
    step: int = 0
    """Steps of this part."""
    spent: float = 0.0
    slower: float = 1.0
    """Factor on the rate, halved by each accident."""
    curve: list[Progress] = field(default_factory=list)
    ranks: Ranks = ALONE
    """Those that train together."""

    def run(
        self,
        speech: SpeechStore,
        held: Crops | None,
        checkpoint: Path | None = None,
        polish: Polish | None = None,
        tell: Callable[[Progress], None] = lambda progress: None,
        clock: Callable[[], float] = time.monotonic,
        ranks: Ranks = ALONE,
    ) -> None:
        """Train until the time is spent; clock is read once a step. polish: needed when a share of the time is for it.

        ranks: those that train together, each with the same speech; the first one's clock counts, and it alone tells and saves.

        Raises OSError when the checkpoint cannot be written.
        """
        config, device = self.config, speech.codes.device
        if config.polish_share and polish is None:
            raise ValueError("flow_trainer: the third part needs something that judges sound")
        self.ranks = ranks
        generator = torch.Generator(device).manual_seed(
            config.seed + 1000 * self.step + (self.part == DISTIL) + 2 * (self.part == POLISH) + 1_000_003 * ranks.index
        )
        choices = torch.Generator().manual_seed(config.seed + self.step)
        good = _snapshot(self)
        losses: list[Tensor] = []
        told = saved = before = ranks.agreed(clock())
        while self.spent < config.seconds:
            if self.part == TEACH and self.spent >= self._ends(TEACH):
                self.graduate()
                good, losses = _snapshot(self), []
            if self.part == DISTIL and self.spent >= self._ends(DISTIL):
                self.begin_polish()
                good, losses = _snapshot(self), []
            chunked = float(torch.rand((), generator=choices)) < config.chunked
            crops = speech.crops(config.rows, config.length, generator)
            if self.part == TEACH:
                losses.append(self._teach(crops, generator, chunked))
            elif self.part == DISTIL:
                losses.append(self._distil(crops, generator, chunked))
            else:
                assert polish is not None
                losses.append(self._polish(crops, polish, generator, chunked))
            now = ranks.agreed(clock())
            self.spent, before = self.spent + now - before, now
            if now - told >= config.tell_s or self.spent >= self._ends(self.part):
                loss, prior = ranks.mean(torch.stack(losses).mean(0)).tolist()
                if math.isfinite(loss) and _finite(self.average):
                    good = _snapshot(self)
                else:
                    _restore(self, good)
                error = judged(self.average, held, 2, spans=self.part != TEACH).error if held is not None else math.nan
                progress = Progress(self.part, self.step, self.spent, loss, prior, error)
                self.curve.append(progress)
                if ranks.first:
                    tell(progress)
                losses, told = [], now
            if ranks.first and checkpoint is not None and (now - saved >= config.save_s or self.spent >= config.seconds):
                self.save(checkpoint)
                saved = now

    def graduate(self) -> None:
        """End the first part: what was learnt becomes the teacher, and the student begins as it."""
        self.teacher = copy.deepcopy(self.average).requires_grad_(False).train(False)
        self.part, self.step, self.slower = DISTIL, 0, 1.0
        self.learner.load_state_dict(self.teacher.state_dict())
        self.average.load_state_dict(self.teacher.state_dict())
        self.learner.requires_grad_(False).decoder.requires_grad_(True)
        self.optimizer = _optimizer(self.learner, self.config.distil_rate)

    def begin_polish(self) -> None:
        """End the second part: all of the mean of the student goes on to learn."""
        self.part, self.step, self.slower = POLISH, 0, 1.0
        self.learner.load_state_dict(self.average.state_dict())
        self.learner.requires_grad_(True)
        self.optimizer = _optimizer(self.learner, self.config.polish_rate)

    def _ends(self, part: str) -> float:
        """When a part ends, in seconds of training."""
        config = self.config
        shares = {TEACH: 1.0 - config.distil_share - config.polish_share, DISTIL: 1.0 - config.polish_share, POLISH: 1.0}
        return config.seconds * shares[part]

    def _teach(self, crops: Crops, generator: torch.Generator, chunked: bool) -> Tensor:
        """One step of flow matching: [loss, prior] on the device."""
        noise = torch.randn(crops.frames.shape, generator=generator, device=generator.device)
        moments = cosine_moments(len(noise), generator)
        with _precision(generator.device):
            direction, prior = speech_loss(self.learner, crops, noise, moments, chunked=chunked)
        self._update(direction + prior)
        return torch.stack((direction.detach(), prior.detach()))

    def _distil(self, crops: Crops, generator: torch.Generator, chunked: bool) -> Tensor:
        """One walk of the teacher and the student's lessons on it: [loss, 0] on the device."""
        assert self.teacher is not None
        noise = torch.randn(crops.frames.shape, generator=generator, device=generator.device)
        with _precision(generator.device):
            seen = conditions(self.teacher, crops, chunked=chunked)
            points = walk(self.teacher, seen, noise, self.config.teacher_steps, spans=False)
        total = noise.new_zeros(())
        for _ in range(self.config.lessons):
            begin, end = draw_pairs(len(noise), self.config.teacher_steps, generator)
            with _precision(generator.device):
                loss = span_loss(self.learner, seen, points, begin, end)
            self._update(loss)
            total += loss.detach() / self.config.lessons
        return torch.stack((total, torch.zeros_like(total)))

    def _polish(self, crops: Crops, polish: Polish, generator: torch.Generator, chunked: bool) -> Tensor:
        """One pass and what it sounds like: [loss, distance of the frames] on the device."""
        noise = torch.randn(crops.frames.shape, generator=generator, device=generator.device)
        with _precision(generator.device):
            loss, distance = polish(self.learner, crops, noise, generator, chunked=chunked)
        self._update(loss)
        return torch.stack((loss.detach(), distance.detach()))

    def _update(self, loss: Tensor) -> None:
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        weights = [weight for weight in self.learner.parameters() if weight.requires_grad]
        self.ranks.average_gradients(weights)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.config.decay, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.learner.parameters()), 1.0 - decay)

    def _rate(self) -> float:
        """Warm-up, then a cosine down to a fiftieth, by the share of this part's time."""
        config = self.config
        begin = {TEACH: 0.0, DISTIL: self._ends(TEACH), POLISH: self._ends(DISTIL)}[self.part]
        share = min(max((self.spent - begin) / max(self._ends(self.part) - begin, 1e-9), 0.0), 1.0)
        highest = {TEACH: config.rate, DISTIL: config.distil_rate, POLISH: config.polish_rate}[self.part]
        return self.slower * highest * min(1.0, (self.step + 1) / config.warm_steps) * (0.51 + 0.49 * math.cos(math.pi * share))

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        fresh = path.with_suffix(".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "sizes": json.dumps(dataclasses.asdict(self.learner.config)),
            "part": self.part,
            "step": self.step,
            "spent": self.spent,
            "seconds": self.config.seconds,
            "slower": self.slower,
            "learner": self.learner.state_dict(),
            "average": self.average.state_dict(),
            "teacher": self.teacher.state_dict() if self.teacher is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "curve": [dataclasses.astuple(one) for one in self.curve],
        }
        torch.save(content, fresh)
        os.replace(fresh, path)


def begin(sizes: FlowConfig, config: FlowTrainerConfig, device: torch.device | str, start: Flow | None = None) -> FlowTrainer:
    """A run with random weights, the same for the same seed, or with those of a flow of these sizes. WeightsError for one of others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        learner = Flow(sizes)
    if start is not None:
        try:
            learner.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise WeightsError("The flow to begin with has other sizes; begin without it, or with another.") from error
    return _trainer(learner.to(device), config)


def resume(path: Path, sizes: FlowConfig, config: FlowTrainerConfig, device: torch.device | str) -> FlowTrainer:
    """A run that goes on where a checkpoint stands: at the same share of its time, or, if that was spent, anew from what it had learnt.

    Raises WeightsError when the file cannot be read, or is of another size.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if content["sizes"] != json.dumps(dataclasses.asdict(sizes)):
            raise WeightsError(f"{path} is the checkpoint of a flow of another size; move it away to begin anew.")
        trainer = begin(sizes, config, device)
        share = content["spent"] / content["seconds"]
        if share >= 1.0:
            known = content["teacher"] or content["average"]
            trainer.learner.load_state_dict(known)
            trainer.average.load_state_dict(known)
            return trainer
        trainer.spent = share * config.seconds
        trainer.average.load_state_dict(content["average"])
        if content["part"] == POLISH:
            trainer.begin_polish()
        if content["part"] == DISTIL:
            trainer.average.load_state_dict(content["teacher"])
            trainer.graduate()
            trainer.average.load_state_dict(content["average"])
        trainer.learner.load_state_dict(content["learner"])
        trainer.optimizer.load_state_dict(content["optimizer"])
        trainer.step, trainer.slower = content["step"], content["slower"]
        trainer.curve = [Progress(*one) for one in content["curve"]]
        return trainer
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0][:200]}); move it away.") from error


@torch.no_grad()
def judged(flow: Flow, held: Crops, steps: int, *, spans: bool, temperature: float = 1.0) -> Judged:
    """How good a flow is at so many steps, with the chunk mask, from fixed noise. steps 0: its encoder's mean."""
    device = held.frames.device
    noise = temperature * torch.randn(held.frames.shape, generator=torch.Generator().manual_seed(0)).to(device)
    with _precision(device):
        seen = conditions(flow, held, chunked=True)
        frames = walk(flow, seen, noise, steps, spans=spans)[-1] if steps else seen.mean
    return judge(frames, held.frames, seen.counted, flow.config.chunk * flow.config.ratio)


def calm(flow: Flow, held: Crops, steps: int, *, spans: bool) -> float:
    """The temperature at which frames are as lively as the true ones.

    A network that is narrower than its frames cannot take all of the noise away again; starting from less of it makes up for that.
    """
    found = {index / 20: judged(flow, held, steps, spans=spans, temperature=index / 20).liveliness for index in range(21)}
    return min(found, key=lambda temperature: abs(found[temperature] - 1.0))


def _trainer(learner: Flow, config: FlowTrainerConfig) -> FlowTrainer:
    average = copy.deepcopy(learner).requires_grad_(False).train(False)
    return FlowTrainer(config, learner.train(), average, optimizer=_optimizer(learner, config.rate))


def _optimizer(flow: Flow, rate: float) -> torch.optim.Optimizer:
    weights = [weight for weight in flow.parameters() if weight.requires_grad]
    fused = weights[0].device.type == "cuda"
    return torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=fused)


def _precision(device: torch.device) -> Any:
    """bf16 where it is fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _finite(flow: Flow) -> bool:
    return bool(torch.stack([weight.isfinite().all() for weight in flow.parameters()]).all())


def _snapshot(trainer: FlowTrainer) -> Any:
    return copy.deepcopy((trainer.learner.state_dict(), trainer.average.state_dict(), trainer.optimizer.state_dict()))


def _restore(trainer: FlowTrainer, good: Any) -> None:
    learner, average, optimizer = copy.deepcopy(good)
    trainer.learner.load_state_dict(learner)
    trainer.average.load_state_dict(average)
    trainer.optimizer.load_state_dict(optimizer)
    trainer.slower *= 0.5
