"""Whose voice a recording is: the GE2E voice encoder of Resemblyzer, 256 numbers a recording.

Notable: only the published weights are used, read as data; the package around them needs a voice activity detector that no longer
imports beside a current setuptools. Silence is cut by level instead, and the rest follows the package: level, power mel, overlapping
windows of 1.6 s, the mean of their embeddings.

Wan et al. 2018, "Generalized End-to-End Loss for Speaker Verification"; checkpoint: Resemblyzer 0.1.4.

Legend: w windows, t frames of a window (160), m mel bands (40), d embedding (256).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn

from duplex.audio import USER_RATE_HZ, Samples
from duplex.checkpoint import fill, read_tensors
from duplex.mel_filters import mel_filters

Embedding = NDArray[np.float32]
"""[d], of length 1."""

MELS = 40
FRAME = 400  # samples: 25 ms
STEP = 160  # samples: 10 ms
WINDOW = 160  # frames of one embedding: 1.6 s
STRIDE = 77  # frames from one window to the next: 1.3 windows a second
LEAST_COVERED = 0.75  # of the last window; one with less sound is left out
LEVEL_DBFS = -30.0
SILENT_DB = -40.0  # below the loudest 30 ms


class VoiceEncoder(nn.Module):
    """Mel windows to embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    @classmethod
    def load(cls, path: Path) -> VoiceEncoder:
        """From Resemblyzer's `pretrained.pt`. Raises WeightsError."""
        tensors = read_tensors(path, nested=("model_state",))
        encoder = cls()
        kept = {name: value for name, value in tensors.items() if not name.startswith("similarity_")}  # of its training alone
        fill(encoder, kept, path, "the voice encoder")
        return encoder

    def forward(self, mels: Tensor) -> Tensor:
        """[w, t, m] -> [w, d], each of length 1."""
        _, (hidden, _) = self.lstm(mels)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)

    @torch.inference_mode()
    def embed(self, sound: Samples) -> Embedding:
        """[n] at 16 kHz -> [d]. Raises ValueError for a sound without any speech."""
        mean = self(torch.from_numpy(mel_windows(voiced(sound)))).mean(0)
        embedding: Embedding = nn.functional.normalize(mean, dim=0).numpy()
        return embedding


def voiced(sound: Samples) -> Samples:
    """The sound at the encoder's level, pauses cut down to 0.2 s. Raises ValueError when nothing is left."""
    size = 480  # 30 ms
    rows = sound[: len(sound) // size * size].reshape(-1, size)
    power = np.square(rows).mean(axis=1) if len(rows) else np.zeros(0)
    if not len(power) or power.max() <= 0:
        raise ValueError("there is no speech in this sound")
    loud = power > power.max() * 10 ** (SILENT_DB / 10)
    near = np.convolve(loud, np.ones(7), mode="same") > 0
    kept = rows[near].reshape(-1)
    gain = 10 ** (LEVEL_DBFS / 20) / np.sqrt(np.square(kept).mean())
    return np.asarray(kept * gain, np.float32)


def mel_windows(sound: Samples) -> NDArray[np.float32]:
    """[n] -> [w, t, m], w >= 1; the last one padded with silence."""
    frames = -(-(len(sound) + 1) // STEP)
    starts = list(range(0, max(1, frames - WINDOW + STRIDE + 1), STRIDE))
    covered = (len(sound) - starts[-1] * STEP) / (WINDOW * STEP)
    if covered < LEAST_COVERED and len(starts) > 1:
        starts.pop()
    padded = np.pad(sound, (0, max(0, (starts[-1] + WINDOW) * STEP - len(sound))))
    mel = power_mel(padded)  # [t', m]
    return np.stack([mel[start : start + WINDOW] for start in starts])


def power_mel(sound: Samples) -> NDArray[np.float32]:
    """[n] -> [1 + n // STEP, m], frames centred, power, no logarithm."""
    padded = np.pad(sound, FRAME // 2)
    window = np.hanning(FRAME + 1)[:-1]
    spectrum = np.fft.rfft(sliding_window_view(padded, FRAME)[::STEP] * window)
    power = np.square(np.abs(spectrum)).astype(np.float32)
    return np.asarray(power @ mel_filters(USER_RATE_HZ, FRAME, MELS), np.float32)
