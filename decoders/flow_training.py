"""What a flow is trained on: the direction from noise to speech at a random moment, with conditions that are sometimes left out.

Notable: every random choice is drawn before the pass (`FlowDraws`), so a loss can be computed again, number for number. Half the steps
use the chunk mask and half full attention, so one network serves both; known frames are a random beginning, as a voice prompt is.

`speech_loss` is the form for a flow of one voice without prompts or guidance: the encoder's mean is taught as well, by its distance to the
frames, so that the mean alone is already speech.

Source: Lipman et al. 2023, "Flow Matching for Generative Modeling"; proportions are CosyVoice2's.

Shapes: B rows, n codes, t = n * R frames, M mel bands, S width of a speaker's vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from decoders.flow import Flow, FlowConfig
from decoders.flow_speech import Crops

SIGMA = 1e-6
"""Deviation that is left at the end of the path."""


@dataclass(frozen=True, slots=True)
class FlowBatch:
    """Utterances, filled up at their ends to one length."""

    codes: Tensor
    """[B, n] int64; any code in the padding."""
    counts: Tensor
    """[B] int64, codes of each row."""
    mel: Tensor
    """[B, n * R, M]"""
    speakers: Tensor | None
    """[B, S]; None for a flow that has one speaker."""

    def __post_init__(self) -> None:
        if self.mel.ndim != 3 or self.mel.shape[0] != self.codes.shape[0] or self.mel.shape[1] % self.codes.shape[1]:
            raise ValueError(f"mel {list(self.mel.shape)} has no whole number of frames for each of codes {list(self.codes.shape)}")
        if int(self.counts.min()) < 1 or int(self.counts.max()) > self.codes.shape[1]:
            raise ValueError(f"counts must be in 1 to {self.codes.shape[1]}")


@dataclass(frozen=True, slots=True)
class FlowDraws:
    """The random choices of one training step."""

    noise: Tensor
    """[B, n * R, M], standard normal."""
    moments: Tensor
    """[B] in [0, 1)."""
    conditioned: Tensor
    """[B] bool, False where all conditions are left out."""
    known: Tensor
    """[B] int64, frames at the beginning that are given."""
    chunked: bool
    """Whether this step uses the chunk mask."""


@dataclass(frozen=True, slots=True)
class FlowTrainingConfig:
    """Proportions of the random choices; the defaults are CosyVoice2's."""

    unconditioned: float = 0.2
    """Share of rows without conditions, from which guidance learns."""
    prompted: float = 0.5
    """Share of rows with known frames."""
    most_known: float = 0.3
    """Largest share of a row's frames that is known."""
    chunked: float = 0.5
    """Share of steps with the chunk mask."""

    def __post_init__(self) -> None:
        for name in ("unconditioned", "prompted", "most_known", "chunked"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"flow_training.{name} must be in 0 to 1, not {getattr(self, name)}")


def draw(config: FlowTrainingConfig, batch: FlowBatch, generator: torch.Generator) -> FlowDraws:
    """Choices for one step, on the batch's device. generator: on the CPU. Moments follow the solver's cosine, as its steps do."""
    rows, device = len(batch.codes), batch.mel.device
    ratio = batch.mel.shape[1] // batch.codes.shape[1]
    noise = torch.randn(batch.mel.shape, generator=generator)
    moments = cosine_moments(rows, generator)
    conditioned = torch.rand(rows, generator=generator) >= config.unconditioned
    share = torch.rand(rows, generator=generator) * config.most_known
    prompted = torch.rand(rows, generator=generator) < config.prompted
    known = (share * prompted * batch.counts.cpu() * ratio).long()
    chunked = bool(torch.rand((), generator=generator) < config.chunked)
    return FlowDraws(noise.to(device), moments.to(device), conditioned.to(device), known.to(device), chunked)


def flow_loss(flow: Flow, batch: FlowBatch, draws: FlowDraws) -> Tensor:
    """The mean squared error of the direction, a scalar with gradients. Padding takes no part in it."""
    config: FlowConfig = flow.config
    if batch.mel.shape[1:] != (config.ratio * batch.codes.shape[1], config.mel):
        raise ValueError(
            f"this flow wants mel [B, {config.ratio * batch.codes.shape[1]}, {config.mel}], not {list(batch.mel.shape)}"
        )
    if (batch.speakers is None) != (config.speaker == 0):
        raise ValueError("give speaker vectors exactly when the flow has a width for them")
    chunk = config.chunk if draws.chunked else None
    kept = torch.arange(batch.codes.shape[1], device=batch.codes.device) < batch.counts.unsqueeze(1)  # [B, n]
    mean = flow.encode(batch.codes, chunk=chunk, kept=kept)
    frames = kept.repeat_interleave(config.ratio, dim=1)  # [B, t]
    speakers = None if batch.speakers is None else flow.speakers(batch.speakers)
    known = torch.arange(batch.mel.shape[1], device=batch.mel.device) < draws.known.unsqueeze(1)  # [B, t]
    given = batch.mel * known.unsqueeze(2)
    return direction_loss(
        flow, batch.mel, frames, mean, speakers, given, draws.noise, draws.moments, draws.conditioned, chunk=chunk
    )


def direction_loss(
    flow: Flow,
    mel: Tensor,
    kept: Tensor,
    mean: Tensor,
    speakers: Tensor | None,
    known: Tensor,
    noise: Tensor,
    moments: Tensor,
    conditioned: Tensor,
    *,
    chunk: int | None,
    counted: Tensor | None = None,
) -> Tensor:
    """The loss of given conditions: mel, mean, known, noise [B, t, M], kept [B, t] bool, speakers [B, M] projected, the rest [B].

    counted: [B, t] bool, frames whose error counts, if not all that are kept.
    """
    at = moments[:, None, None]  # [B, 1, 1]
    point = (1.0 - (1.0 - SIGMA) * at) * noise + at * mel
    target = mel - (1.0 - SIGMA) * noise
    given = flow.conditions(mean, speakers, known) * conditioned[:, None, None]
    mask = flow.mask(0, mel.shape[1], chunk, kept)
    estimator = flow.decoder.estimator
    direction = estimator(torch.cat((point, given), dim=2), estimator.shifts(moments), mask)
    return counted_mean((direction - target).square(), kept if counted is None else counted)


def counted_mean(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of values [B, t, M] over the frames that are counted, [B, t] bool."""
    return (values * counted.unsqueeze(2)).sum() / (counted.sum() * values.shape[2])


def speech_loss(flow: Flow, crops: Crops, noise: Tensor, moments: Tensor, *, chunked: bool) -> tuple[Tensor, Tensor]:
    """Of crops of one voice: (mean squared error of the direction, mean distance of the encoder's mean), scalars with gradients.

    noise: [B, t, M] standard normal; moments: [B] in [0, 1). chunked: whether the chunk mask is on.
    """
    config = flow.config
    chunk = config.chunk if chunked else None
    kept = crops.kept()
    mean = flow.encode(crops.codes, chunk=chunk, kept=kept)
    frames = kept.repeat_interleave(config.ratio, dim=1)  # [B, t]
    counted = crops.counted(config.encoder.lookahead).repeat_interleave(config.ratio, dim=1)
    prior = counted_mean((mean.float() - crops.frames).abs(), counted)
    everything = torch.ones_like(moments, dtype=torch.bool)
    nothing = torch.zeros_like(crops.frames)
    direction = direction_loss(
        flow, crops.frames, frames, mean, None, nothing, noise, moments, everything, chunk=chunk, counted=counted
    )
    return direction, prior


def cosine_moments(rows: int, generator: torch.Generator) -> Tensor:
    """[rows] random moments as dense as the solver's steps are, on the generator's device."""
    return 1.0 - torch.cos(torch.rand(rows, generator=generator, device=generator.device) * (0.5 * math.pi))
