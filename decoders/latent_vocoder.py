"""Latents of the voice "joe" to 24 kHz sound, while they are still coming: HiFi-GAN, then a sample-rate converter, both streamed.

    frames (86.13 Hz, in deviations) -> latents -> HiFi-GAN, 22.05 kHz -> 24 kHz

Notable: nothing is computed twice and nothing is blended, so pieces joined are what one run gives (`hifigan_stream`). What is held back is
HiFi-GAN's look-ahead, 10.66 frames, and the converter's, 0.1: eleven frames, 128 ms. A frame lasts 278.64 samples, not a whole number; the
converter sees to it that n frames give round(278.64 n) samples in all.

Shapes: M latent channels (192), t frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decoders.hifigan_stream import GanState, StreamingGan
from decoders.vits import HOP, VITS_RATE_HZ
from duplex.audio import AGENT_RATE_HZ
from duplex.resample import LiveResampler


@dataclass(frozen=True, slots=True)
class LatentVocoderSizes:
    """As token2wav asks for them."""

    hold_frames: int
    """Frames that are held back until the final step."""
    frame_samples: float
    """Agent samples of a frame."""


@dataclass(slots=True)
class LatentVocoderState:
    """One reply on its way, owned by the caller."""

    gan: GanState
    rate: LiveResampler


class LatentVocoder:
    """`token2wav.MelToSound` on the decoder of a VITS voice. Holds no state of a reply; threads may share it."""

    def __init__(self, gan: StreamingGan, mean: Tensor, deviation: Tensor) -> None:
        """mean, deviation: [M]; a latent is mean + deviation * frame, as in the flow's file."""
        if mean.shape != (gan.channels,) or deviation.shape != (gan.channels,):
            raise ValueError(
                f"this voice has {gan.channels} latent channels, not those of {list(mean.shape)} and {list(deviation.shape)}"
            )
        self.gan = gan
        self._mean, self._deviation = (np.asarray(one.float().cpu().numpy(), np.float32)[:, None] for one in (mean, deviation))
        held = gan.lookahead + LiveResampler(VITS_RATE_HZ, AGENT_RATE_HZ).delay_s * VITS_RATE_HZ
        self.config = LatentVocoderSizes(ceil(held / HOP), HOP * AGENT_RATE_HZ / VITS_RATE_HZ)

    @classmethod
    def load(cls, split: Path, mean: Tensor, deviation: Tensor, threads: int = 1) -> LatentVocoder:
        """split: the folder written by `vits.split_vits`. Raises WeightsError when its decoder is missing or damaged."""
        return cls(StreamingGan.load(split / "decoder.onnx", threads), mean, deviation)

    def open(self, seed: int | None = None) -> LatentVocoderState:
        """A fresh state for one reply; nothing is drawn, so the seed does not matter."""
        return LatentVocoderState(self.gan.open(), LiveResampler(VITS_RATE_HZ, AGENT_RATE_HZ))

    def step(self, state: LatentVocoderState, mel: Tensor, final: bool = False) -> Tensor:
        """Frames [M, t] that follow -> the samples that can be known by now, [n] float32 at 24 kHz.

        Raises ValueError when the reply has ended.
        """
        frames = np.asarray(mel.float().cpu().numpy(), np.float32)
        samples = state.rate.push(self.gan.step(state.gan, frames * self._deviation + self._mean, final))
        if final:
            samples = np.concatenate((samples, state.rate.flush()))
        return torch.from_numpy(samples)
