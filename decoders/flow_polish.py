"""The last part of a flow's training: what one pass makes is heard, through the vocoder, beside the true sound.

Notable: the distance of latents counts every channel alike, and most of what is left of it is the teacher's own noise. The distance of
log-mel spectra counts what is heard. So the whole flow, from noise at the temperature it will be run with, is taught by short pieces of
sound, with a part of the distance of all frames beside it, which keeps them where the vocoder knows its way.

Shapes: B rows, n codes, t = n * R frames, M channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from decoders.flow import Flow
from decoders.flow_distillation import conditions, times_on
from decoders.flow_speech import Crops
from decoders.flow_training import counted_mean


@dataclass(frozen=True, slots=True)
class Polish:
    """How frames are heard."""

    distance: Callable[[Tensor, Tensor], Tensor]
    """Latents [B, k, M] made and true -> a scalar; `speech_tokenizer_training.SoundDistance`."""
    mean: Tensor
    """[M] of each channel."""
    deviation: Tensor
    """[M]"""
    temperature: float
    """Deviation of the noise that the flow is run with."""
    sound_codes: int = 10
    """Length of what is made to sound; 10 are 0.46 s."""
    sound_rows: int = 48
    """Most crops that are made to sound; the vocoder needs more memory than the flow."""
    frames_weight: float = 0.3
    """Of the distance of all frames, in deviations."""

    def __call__(
        self, flow: Flow, crops: Crops, noise: Tensor, generator: torch.Generator, *, chunked: bool
    ) -> tuple[Tensor, Tensor]:
        """(loss, distance of the frames), scalars with gradients. noise: [B, t, M] standard normal; generator: on the device."""
        config = flow.config
        frames = one_pass(flow, crops, self.temperature * noise, chunked=chunked)
        counted = crops.counted(config.encoder.lookahead)
        distance = counted_mean((frames - crops.frames).abs(), counted.repeat_interleave(config.ratio, dim=1))
        codes = min(self.sound_codes, int(counted.sum(1).min()))
        if not codes:
            return self.frames_weight * distance, distance
        room = counted.sum(1) - codes + 1  # [B]
        start = (torch.rand(len(room), generator=generator, device=room.device) * room).long()
        places = config.ratio * start.unsqueeze(1) + torch.arange(config.ratio * codes, device=room.device)  # [B, k]
        index = places.unsqueeze(2).expand(-1, -1, config.mel)
        heard = slice(self.sound_rows)
        made, true = (self.mean + self.deviation * each.gather(1, index)[heard] for each in (frames, crops.frames))
        return self.distance(made, true) + self.frames_weight * distance, distance


def one_pass(flow: Flow, crops: Crops, start: Tensor, *, chunked: bool) -> Tensor:
    """Frames [B, t, M] float32 by one step from noise [B, t, M] to the end, with gradients."""
    seen = conditions(flow, crops, chunked=chunked)
    estimator = flow.decoder.estimator
    times = times_on(start.device, 1)  # 0 and 1
    inputs = torch.cat((start.to(seen.given.dtype), seen.given), dim=2)
    return start + estimator(inputs, estimator.shifts(times[:1], times.diff()), seen.mask).float()
