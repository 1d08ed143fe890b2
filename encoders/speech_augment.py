"""Training sound on the GPU: finished utterances laid into a turn, in other throats, rooms, lines and noises, a whole batch at a time.

Everything is a tensor operation over [B, n] samples: no loop over rows, no worker processes. Speed (with it pitch and formants) is
changed by reading the recording faster, the throat by bending the spectrum's frequency axis, rooms and lines by products of spectra.

Legend: B rows, n samples (16 kHz), t mel frames, b FFT bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from duplex.audio import USER_RATE_HZ
from encoders.mel import FFT_SAMPLES, HOP_SAMPLES, POWER_FLOOR, filter_bank

ROOM_SAMPLES = 6400


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """How often, and how much."""

    speed: float = 1.18
    """A recording is read at 1 / speed to speed times its rate."""
    throat: float = 1.13
    """The frequency axis is bent by up to this factor, up or down."""
    room_p: float = 0.5
    """Share of rows in a room."""
    noise_p: float = 0.65
    """Share of rows with audible noise."""
    noise_db: tuple[float, float] = (3.0, 32.0)
    """Its signal-to-noise ratio."""
    line_p: float = 0.15
    """Share of rows over a telephone line (300 to 3400 Hz)."""
    clip_p: float = 0.05
    """Share of rows that are overdriven."""
    quietest_db: float = -34.0
    """Peak of the quietest rows."""

    def eased(self, part: float) -> AugmentConfig:
        """The same done less often and with less noise; part: from 0 for hardly at all to 1 for all of it."""
        least, most = self.noise_db
        return replace(
            self,
            room_p=part * self.room_p,
            noise_p=part * self.noise_p,
            noise_db=(least + (1 - part) * max(most - least, 0.0) * 0.8, most),
            line_p=part * self.line_p,
            clip_p=part * self.clip_p,
        )


@dataclass(frozen=True, slots=True)
class SoundBank:
    """Recordings on the device."""

    sound: Tensor
    """[n] int16, all of them, one after the other."""
    starts: Tensor
    """[r] where each begins."""
    lengths: Tensor
    """[r] samples."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where in a batch's turns the recordings lie; drawn on the CPU, so that laying them never waits for the device."""

    first: NDArray[np.int64]
    """[B] recordings."""
    second: NDArray[np.int64]
    """[B] recordings that follow, -1 for none."""
    speed: NDArray[np.float64]
    """[B] how much faster than recorded."""
    lead: NDArray[np.float64]
    """[B] samples before the first."""
    at2: NDArray[np.float64]
    """[B] where the second begins."""
    counted: NDArray[np.int64]
    """[B] samples up to which the row counts: its end and the silence in which the last token may be said."""
    samples: int
    """n, a multiple of 1.28 s."""


def plan(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    lengths: NDArray[np.int64],
    speed: float,
    rng: np.random.Generator,
    tail_s: float = 0.55,
) -> Layout:
    """Turns of one or two recordings with silence before, between and after. lengths: [r] samples of all recordings; speed: the most."""
    rows = len(first)
    fast = np.exp(rng.uniform(-math.log(speed), math.log(speed), rows))
    lead, gap = rng.uniform(0.02, 0.6, rows) * USER_RATE_HZ, rng.uniform(0.1, 0.9, rows) * USER_RATE_HZ
    at2 = lead + lengths[first] / fast + gap
    end = np.where(second >= 0, at2 + lengths[second] / fast, at2 - gap) + tail_s * USER_RATE_HZ
    block = round(1.28 * USER_RATE_HZ)
    samples = -(-int(end.max()) // block) * block
    return Layout(first, second, fast, lead, at2, np.minimum(end.astype(np.int64), samples), samples)


def lay(bank: SoundBank, layout: Layout) -> Tensor:
    """[B, n] float sound."""
    device = bank.sound.device

    def column(x: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(x.astype(np.float32)).to(device)[:, None]

    time = torch.arange(layout.samples, device=device)[None, :]
    speed = column(layout.speed)
    first, second = torch.from_numpy(layout.first).to(device), torch.from_numpy(layout.second).to(device)
    return _read(bank, first, (time - column(layout.lead)) * speed) + _read(bank, second, (time - column(layout.at2)) * speed)


def _read(bank: SoundBank, which: Tensor, at: Tensor) -> Tensor:
    """[B] recordings at [B, n] fractional places -> [B, n], cubic between samples, 0 outside (and for -1)."""
    chosen = which.clamp(min=0)
    lengths, starts = bank.lengths[chosen][:, None], bank.starts[chosen][:, None]
    whole = at.floor()
    f = at - whole
    inside = (at >= 0) & (at < lengths - 1) & (which >= 0)[:, None]
    whole = whole.long()

    def sample(offset: int) -> Tensor:
        return bank.sound[starts + (whole + offset).clamp(min=0).minimum(lengths - 1)].float() / 32768.0

    a, b, c, d = sample(-1), sample(0), sample(1), sample(2)
    read = b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))
    return torch.where(inside, read, 0.0)


def spoil(sound: Tensor, config: AugmentConfig, rng: torch.Generator) -> Tensor:
    """[B, n] clean -> [B, n] as a microphone might give it, [-1, 1]."""
    device = sound.device
    batch, n = sound.shape

    def draw(low: float, high: float, *more: int) -> Tensor:
        return torch.rand((batch, *more), device=device, generator=rng) * (high - low) + low

    size = n + ROOM_SAMPLES
    hz = torch.linspace(0, USER_RATE_HZ / 2, size // 2 + 1, device=device)
    spectrum = torch.fft.rfft(sound, size)
    spectrum = spectrum * torch.fft.rfft(_rooms(batch, config, draw, rng, device), size)
    waves = torch.cos(math.pi * torch.arange(1, 4, device=device)[:, None] * (hz / hz[-1]).sqrt()[None, :])  # [3, b]
    colour_db = draw(-4.0, 4.0, 3) @ waves
    dull = draw(0, 1) < 0.1
    cut = torch.where(dull, draw(2500, 6500), 1e6)[:, None]
    colour_db = colour_db - 30 * ((hz / cut).clamp(min=1.0)).log2().clamp(max=3)
    spectrum = spectrum * 10 ** (colour_db / 20)

    white = torch.randn(batch, size, device=device, generator=rng)
    slope = draw(0.0, 1.1)[:, None]
    noise = torch.fft.irfft(torch.fft.rfft(white) * (hz.clamp(min=40) / 1000) ** -slope, size)
    babble = sum(torch.roll(sound, (row, 16000 * row + 7001 * row), (0, 1)) for row in (1, 2, 3, 5))
    assert isinstance(babble, Tensor)
    noise[:, :n] = torch.where((draw(0, 1) < 0.3)[:, None], _unit(babble) + 0.1 * _unit(noise[:, :n]), noise[:, :n])
    swell = 1 + draw(0, 0.8)[:, None] * torch.sin(
        draw(0.5, 4)[:, None] * torch.linspace(0, n / USER_RATE_HZ, size, device=device) * 2 + draw(0, 6)[:, None]
    )
    noise = _unit(noise[:, :n] * swell[:, :n])

    heard = torch.fft.irfft(spectrum, size)[:, :n]
    loud = heard.pow(2).sum(1).div((heard.abs() > 1e-3).sum(1).clamp(min=1600)).sqrt()[:, None].clamp(min=1e-4)
    snr = torch.where(draw(0, 1) < config.noise_p, draw(*config.noise_db), draw(35.0, 65.0))[:, None]
    heard = heard + noise * loud * 10 ** (-snr / 20)

    line = draw(0, 1) < config.line_p
    edges = torch.fft.rfftfreq(n, 1 / USER_RATE_HZ, device=device)
    band = ((edges > 280) & (edges < 3450)).float()
    heard = torch.fft.irfft(torch.fft.rfft(heard) * torch.where(line[:, None], band[None, :], 1.0), n)
    heard = heard / heard.abs().amax(1, keepdim=True).clamp(min=1e-4)
    drive = torch.where(draw(0, 1) < config.clip_p, draw(2.0, 8.0), 1.0)[:, None]
    heard = (heard * drive).clamp(-1, 1)
    heard = heard * 10 ** (draw(config.quietest_db, 0.0)[:, None] / 20)
    return heard + torch.randn(batch, n, device=device, generator=rng) * 2e-5


def _rooms(batch: int, config: AugmentConfig, draw: object, rng: torch.Generator, device: torch.device) -> Tensor:
    """[B, ROOM_SAMPLES] impulse responses: the direct sound and decaying noise; a lone direct sound for rows in no room."""
    assert callable(draw)
    time = torch.arange(ROOM_SAMPLES, device=device)[None, :] / USER_RATE_HZ
    decay = torch.exp(-6.9 * time / draw(0.12, 0.9)[:, None])
    tail = torch.randn(batch, ROOM_SAMPLES, device=device, generator=rng) * decay * (time > draw(0.001, 0.008)[:, None])
    tail = tail / tail.pow(2).sum(1, keepdim=True).sqrt()
    strength = torch.where(draw(0, 1) < config.room_p, 10 ** (-draw(-3.0, 16.0) / 20), 0.0)[:, None]
    tail = tail * strength
    tail[:, 0] += 1.0
    return tail


def _unit(x: Tensor) -> Tensor:
    return x / x.pow(2).mean(1, keepdim=True).sqrt().clamp(min=1e-5)


class MelBank(torch.nn.Module):
    """`encoders.mel.log_mel` for batches on any device, with a throat that may be longer or shorter."""

    bank: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.from_numpy(filter_bank().copy()).float())
        self.register_buffer("window", torch.hann_window(FFT_SAMPLES))

    def forward(self, sound: Tensor, throat: Tensor | None = None) -> Tensor:
        """[B, n] -> [B, n / 160, 80] log10 mel power. throat: [B] factors of the frequency axis."""
        spectrum = torch.stft(
            sound, FFT_SAMPLES, HOP_SAMPLES, window=self.window, center=True, pad_mode="reflect", return_complex=True
        )
        power = (spectrum.real**2 + spectrum.imag**2).transpose(1, 2)[:, : sound.shape[1] // HOP_SAMPLES]  # [B, t, b]
        if throat is not None:
            bins = power.shape[2]
            at = (torch.arange(bins, device=sound.device)[None, :] * throat[:, None]).clamp(max=bins - 1.001)  # [B, b]
            low = at.floor()
            part = (at - low)[:, None, :]
            index = low.long()[:, None, :].expand(-1, power.shape[1], -1)
            power = power.gather(2, index) * (1 - part) + power.gather(2, index + 1) * part
        return torch.log10((power @ self.bank).clamp(min=POWER_FLOOR))


def mask_patches(mel: Tensor, rng: torch.Generator) -> Tensor:
    """[B, t, 80] -> with up to two bands and two stretches (up to 0.3 s) of each row at its floor: what is missing must be guessed."""
    batch, t, bands = mel.shape
    device = mel.device

    def patch(size: int, most: int) -> Tensor:
        width = torch.rand(batch, 1, device=device, generator=rng) * most
        start = torch.rand(batch, 1, device=device, generator=rng) * (size - width)
        place = torch.arange(size, device=device)[None, :]
        return (place >= start) & (place < start + width)

    hidden = (patch(bands, 14) | patch(bands, 14))[:, None, :] | (patch(t, 30) | patch(t, 30))[:, :, None]
    return torch.where(hidden, mel.amin((1, 2), keepdim=True), mel)


def resample_exact(sound: Tensor, rate_from: int, rate_to: int) -> Tensor:
    """[B, n] at one rate -> [B, n'] at another, by cutting or padding the spectrum; rows end in silence, so wrapping round does no harm."""
    step = rate_from // math.gcd(rate_from, rate_to)
    sound = functional.pad(sound, (0, -sound.shape[1] % (2 * step)))
    n = sound.shape[1] // step * (rate_to // math.gcd(rate_from, rate_to))
    spectrum = torch.fft.rfft(sound)[:, : n // 2 + 1]
    spectrum = functional.pad(spectrum, (0, n // 2 + 1 - spectrum.shape[1]))
    return torch.fft.irfft(spectrum, n) * (n / sound.shape[1])
