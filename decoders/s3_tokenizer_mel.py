"""What the speech tokenizer hears: Whisper's log-mel spectrogram with 128 bands, and its cutting into windows.

Notable: the clamp to eight decades below the loudest value looks at the whole utterance, so this front-end is not causal; a voice
sample is always there as a whole. Long sound is cut into windows of 30 s that share 4 s with their neighbour; each gives up half
of what is shared, so codes joined are as many as one pass would give.

Legend: n samples at 16 kHz, t mel frames (100 per second), m mel bands (128), b FFT bins (201), p codes (25 per second).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from duplex.audio import USER_RATE_HZ
from duplex.mel_filters import mel_filters

FFT_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
FRAMES_PER_CODE = 4
POWER_FLOOR = 1e-10
DECADES = 8.0  # kept below the loudest value

WINDOW_FRAMES = 3000  # 30 s, the longest pass
OVERLAP_FRAMES = 400  # 4 s shared by neighbours


def log_mel(samples: Tensor, bands: int = 128) -> Tensor:
    """[n] samples at 16 kHz in [-1, 1] -> [m, t] with t = floor(n / 160), as Whisper large-v3 has it.

    Raises ValueError below 201 samples: the spectrum is centred and reflects the edges.
    """
    if samples.ndim != 1 or len(samples) <= FFT_SAMPLES // 2:
        raise ValueError(f"a log-mel needs mono sound of more than {FFT_SAMPLES // 2} samples, not {tuple(samples.shape)}")
    window = torch.hann_window(FFT_SAMPLES, device=samples.device)
    spectrum = torch.stft(samples.float(), FFT_SAMPLES, HOP_SAMPLES, window=window, center=True, return_complex=True)  # [b, t + 1]
    power = spectrum[:, :-1].abs().square()  # [b, t]
    bank = torch.tensor(mel_filters(USER_RATE_HZ, FFT_SAMPLES, bands), device=samples.device)  # [b, m]
    logs = (bank.T @ power).clamp(min=POWER_FLOOR).log10()  # [m, t]
    return (torch.maximum(logs, logs.max() - DECADES) + 4.0) / 4.0


def code_count(frames: int) -> int:
    """Codes of `frames` mel frames: halved twice, rounded up each time."""
    return -(-frames // FRAMES_PER_CODE)


def tokenize_windows(mel: Tensor, one_pass: Callable[[Tensor], Tensor]) -> Tensor:
    """[m, t] -> [p] codes with p = code_count(t), by passes over at most 30 s.

    one_pass: [m, t'] -> [code_count(t')] codes. Of a window's codes those within 2 s of a cut are dropped, as its neighbour has
    them with sound on both sides.
    """
    frames = mel.shape[1]
    if frames <= WINDOW_FRAMES:
        return one_pass(mel)
    kept, margin = [], OVERLAP_FRAMES // 2 // FRAMES_PER_CODE  # 50 codes
    start = 0
    while True:
        end = min(start + WINDOW_FRAMES, frames)
        codes = one_pass(mel[:, start:end])
        kept.append(codes[margin if start else 0 : None if end == frames else -margin])
        if end == frames:
            return torch.cat(kept)
        start += WINDOW_FRAMES - OVERLAP_FRAMES
