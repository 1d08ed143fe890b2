"""Bringing a flow down to one or two steps: a student learns where its teacher's many small steps lead.

Notable: one walk of the teacher from noise to speech gives a lesson for every pair of its moments, so the student, whose network knows how
long a step is (`FlowEstimatorConfig.spans`), learns steps of all lengths at once and may later be run with 1, 2, 4 or 8. Its target is
paired with its noise, hence never an average of several answers; no second derivative is needed, and nothing can collapse. The encoder is
the teacher's and stays as it is. A student begins as its teacher: with the span's last layer at zero, any span is the direction itself.

Source: Luhman & Luhman 2021, "Knowledge Distillation in Iterative Generative Models", for paired targets; Boffi et al. 2024, "Flow map
matching", for pairs of moments.

Shapes: B rows, t frames, M channels, I input channels, k moments.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from decoders.flow import Flow, moments
from decoders.flow_speech import Crops
from decoders.flow_training import counted_mean


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a batch of crops looks like to the estimator; made once per batch."""

    given: Tensor
    """[B, t, I - M]"""
    mean: Tensor
    """[B, t, M], the encoder's."""
    mask: Tensor | None
    """As of `Flow.mask`."""
    counted: Tensor
    """[B, t] bool, frames whose error counts."""


def conditions(flow: Flow, crops: Crops, *, chunked: bool) -> Conditions:
    """Conditions of crops, with gradients if the flow's weights have any. chunked: whether the chunk mask is on."""
    config = flow.config
    chunk = config.chunk if chunked else None
    kept = crops.kept()
    mean = flow.encode(crops.codes, chunk=chunk, kept=kept)
    given = flow.conditions(mean, None, torch.zeros_like(mean))
    mask = flow.mask(0, mean.shape[1], chunk, kept.repeat_interleave(config.ratio, dim=1))
    counted = crops.counted(config.encoder.lookahead).repeat_interleave(config.ratio, dim=1)
    return Conditions(given, mean, mask, counted)


@functools.lru_cache(maxsize=16)
def times_on(device: torch.device, steps: int) -> Tensor:
    """The solver's moments, already there: [steps + 1]."""
    with torch.inference_mode(False):
        return moments(steps).to(device)


@torch.no_grad()
def walk(flow: Flow, seen: Conditions, noise: Tensor, steps: int, *, spans: bool) -> Tensor:
    """All points from noise [B, t, M] to speech: [steps + 1, B, t, M] float32.

    spans: whether the network is told how long its steps are (a student), or that they have no length (a teacher).
    """
    estimator, times = flow.decoder.estimator, times_on(noise.device, steps)
    lengths = times.diff()
    shifts = estimator.shifts(times[:-1], lengths if spans else None)
    points = [noise]
    for step, length in enumerate(lengths):
        inputs = torch.cat((points[-1].to(seen.given.dtype), seen.given), dim=2)
        direction = estimator(inputs, [shift[step : step + 1] for shift in shifts], seen.mask)
        points.append(points[-1] + length * direction.float())
    return torch.stack(points)


def draw_pairs(rows: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Beginning and end of each row's step as indexes of `steps` + 1 moments, [rows] int64 each, on the generator's device.

    Half of all steps go the whole way, a third one half of it, the rest a quarter: those of a flow that is run with 1, 2 or 4.
    steps: a multiple of 4.
    """
    assert steps % 4 == 0
    device = generator.device
    kind = torch.rand(rows, generator=generator, device=device)
    pieces = 1 + (kind >= 0.5).long() + 2 * (kind >= 5 / 6).long()  # 1, 2 or 4
    which = (torch.rand(rows, generator=generator, device=device) * pieces).long()
    length = steps // pieces
    return which * length, (which + 1) * length


def span_loss(student: Flow, seen: Conditions, points: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Mean squared error of the student's mean direction from the teacher's point begin to its point end, a scalar with gradients.

    points: [k, B, t, M] of `walk`; begin, end: [B] indexes of them.
    """
    times = times_on(points.device, len(points) - 1)
    rows = torch.arange(points.shape[1], device=points.device)
    here, there = points[begin, rows], points[end, rows]  # [B, t, M]
    span = times[end] - times[begin]  # [B]
    estimator = student.decoder.estimator
    inputs = torch.cat((here.to(seen.given.dtype), seen.given), dim=2)
    direction = estimator(inputs, estimator.shifts(times[begin], span), seen.mask)
    target = (there - here) / span[:, None, None]
    return counted_mean((direction.float() - target).square(), seen.counted)
