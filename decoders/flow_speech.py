"""Speech that a voice's flow learns from: codes and latents of many replies, end to end in two big tensors, cut into random crops.

Notable: everything lies on the training device, and a batch of crops is three gathers with no wait for the device. A crop whose reply goes
on behind it says so: its last codes would look ahead to nothing, so they are given to the networks but do not count.

Shapes: N codes in all, B crops, n codes of a crop, R frames per code, M channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Crops:
    """Pieces of replies, filled up at their ends to one length."""

    codes: Tensor
    """[B, n] int64; any code in the padding."""
    counts: Tensor
    """[B] int64, codes of each crop."""
    frames: Tensor
    """[B, n * R, M], latents in deviations from their channel's mean."""
    unfinished: Tensor
    """[B] bool, whether the reply goes on behind the crop."""

    def kept(self) -> Tensor:
        """[B, n] bool, False in the padding."""
        return torch.arange(self.codes.shape[1], device=self.codes.device) < self.counts.unsqueeze(1)

    def counted(self, lookahead: int) -> Tensor:
        """[B, n] bool, codes that saw all that they look ahead to."""
        seen = self.counts - self.unfinished * lookahead
        return torch.arange(self.codes.shape[1], device=self.codes.device) < seen.unsqueeze(1)


@dataclass(frozen=True, slots=True)
class SpeechStore:
    """Replies end to end."""

    codes: Tensor
    """[N] int16"""
    frames: Tensor
    """[N, R * M] fp16"""
    offsets: Tensor
    """[replies + 1] int64: reply i has codes offsets[i] to offsets[i + 1]."""
    channels: int
    """M"""

    def __len__(self) -> int:
        return len(self.codes)

    def crops(self, rows: int, length: int, generator: torch.Generator) -> Crops:
        """Random crops; any code is as likely to be in one as any other, but for those near a reply's ends. generator: on the device."""
        place = torch.randint(len(self.codes), (rows,), generator=generator, device=self.codes.device)
        reply = torch.searchsorted(self.offsets, place, right=True) - 1
        begin, end = self.offsets[reply], self.offsets[reply + 1]
        start = torch.maximum(torch.minimum(place - length // 2, end - length), begin)
        return self.cut(start, end, length)

    def beginnings(self, length: int, most: int) -> Crops:
        """The first codes of up to `most` replies that are at least so long."""
        long = (self.offsets.diff() >= length).nonzero().flatten()[:most]
        if not len(long):
            raise ValueError(f"no reply has {length} codes; give more speech, or shorter crops")
        return self.cut(self.offsets[long], self.offsets[long + 1], length)

    def cut(self, start: Tensor, end: Tensor, length: int) -> Crops:
        """Crops from start [B], of replies that end at end [B]."""
        counts = (end - start).clamp(max=length)
        index = (start.unsqueeze(1) + torch.arange(length, device=start.device)).clamp(max=len(self.codes) - 1)  # [B, n]
        frames = self.frames[index].float().unflatten(2, (-1, self.channels)).flatten(1, 2)  # [B, n, R M] -> [B, n R, M]
        return Crops(self.codes[index].long(), counts, frames, start + length < end)


def store(parts: Iterable[tuple[Tensor, Tensor, Tensor]], mean: Tensor, deviation: Tensor) -> SpeechStore:
    """Join (codes [N], latents [N * R, M], codes of each reply [replies]), each where it shall stay. mean, deviation: [M] of each channel.

    Replies without codes are left out. Raises ValueError when there is no speech at all, or a part does not fit.
    """
    codes, frames, counts, channels = [], [], [], len(mean)
    for part_codes, latents, part_counts in parts:
        said, ratio = int(part_counts.sum()), len(latents) // max(len(part_codes), 1)
        if len(part_codes) != said or len(latents) != ratio * said or latents.shape[1] != channels:
            raise ValueError(
                f"{len(part_codes)} codes, latents {list(latents.shape)} and replies of {said} codes do not fit together"
            )
        if not len(part_codes):
            continue
        codes.append(part_codes.to(torch.int16))
        frames.append(((latents.float() - mean) / deviation).half().reshape(len(part_codes), -1))
        counts.append(part_counts[part_counts > 0].to(part_codes.device))
    if not codes:
        raise ValueError("there is no speech to learn from")
    offsets = torch.cat((counts[0].new_zeros(1), torch.cat(counts).cumsum(0)))
    return SpeechStore(torch.cat(codes), torch.cat(frames), offsets, channels)
