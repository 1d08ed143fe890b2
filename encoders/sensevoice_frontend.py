"""SenseVoice's features: Kaldi filter bank, seven frames stacked every sixth, mean and variance normalised; offline and as a stream.

Notable: low frame rate (LFR) stacking looks three frames to each side, so feature k is complete 60 k + 55 ms after the stream began,
and each of the stream's ends is repeated where it has no neighbours. The stream hands out what is complete; `tail` what the clip's end
would add. Both are one gather over the same rows, so they agree bit for bit.

Legend: n samples, t filter-bank frames (100 per second, 80 bands), k features (t / 6, 16.67 per second, 560 = 7 x 80).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from duplex import fbank
from duplex.audio import Samples
from duplex.errors import WeightsError
from duplex.fbank import FbankConfig, FbankState, Features

FBANK = FbankConfig(window="hamming", scale=32768.0, shrink_short=True)
STACKED_FRAMES = 7
STRIDE_FRAMES = 6
SIDE_FRAMES = STACKED_FRAMES // 2
FEATURES = STACKED_FRAMES * FBANK.bands  # 560

_STATISTICS = re.compile(r"<(AddShift|Rescale)>\s+(\d+)\s+(\d+)\s+<LearnRateCoef>\s+\S+\s+\[([^\][<>]*)\]")


@dataclass(frozen=True, slots=True)
class Cmvn:
    """Global statistics: features become `(x + shift) * scale`."""

    shift: Features
    """[560] the negative means."""
    scale: Features
    """[560] one over the standard deviations."""

    def __call__(self, stacked: Features) -> Features:
        """[k, 560] -> [k, 560] normalised."""
        return (stacked + self.shift) * self.scale


@dataclass(slots=True)
class FrontendState:
    """What a stream of features remembers; owned by the caller."""

    fbank: FbankState = field(default_factory=FbankState)
    """The stream of frames below."""
    frames: Features = field(default_factory=lambda: np.empty((0, FBANK.bands), np.float32))
    """The newest frames, from the first that feature `made` reads on (at most 6)."""
    made: int = 0
    """Features handed out so far; feature `made` is the next one."""


def features(samples: Samples, cmvn: Cmvn) -> Features:
    """[n] samples in [-1, 1] at 16 kHz -> [ceil(t / 6), 560] normalised; none when there is no whole frame (below 257 samples)."""
    return cmvn(stack(fbank.fbank(samples, FBANK)))


def stack(frames: Features) -> Features:
    """[t, 80] -> [ceil(t / 6), 560]; feature k holds frames 6 k - 3 to 6 k + 3, the first and last frame standing in beyond the ends."""
    return _gather(frames, 0, 0, -(-len(frames) // STRIDE_FRAMES))


def feed(state: FrontendState, samples: Samples, cmvn: Cmvn) -> Features:
    """Take [n] samples that follow what was fed before; return the [k, 560] features that became complete, normalised."""
    frames = np.concatenate((state.frames, fbank.feed(state.fbank, samples, FBANK)))
    first = state.fbank.made - len(frames)
    until = max(state.made, (state.fbank.made + STRIDE_FRAMES - SIDE_FRAMES - 1) // STRIDE_FRAMES)  # the last reads frame 6 k + 3
    ready = _gather(frames, first, state.made, until)
    state.made = until
    state.frames = frames[max(0, STRIDE_FRAMES * until - SIDE_FRAMES - first) :].copy()
    return cmvn(ready)


def tail(state: FrontendState, cmvn: Cmvn) -> Features:
    """The [k, 560] features that `feed` still owes if the clip ends here (0 to 2 of them). The state is left as it is."""
    first = state.fbank.made - len(state.frames)
    return cmvn(_gather(state.frames, first, state.made, -(-state.fbank.made // STRIDE_FRAMES)))


def _gather(frames: Features, first: int, begin: int, end: int) -> Features:
    """Features [begin, end) out of [t, 80] frames, of which row 0 is frame `first` of the stream."""
    centres = STRIDE_FRAMES * np.arange(begin, max(begin, end))
    rows = np.clip(centres[:, None] + np.arange(-SIDE_FRAMES, SIDE_FRAMES + 1), 0, first + len(frames) - 1) - first  # [k, 7]
    return frames[rows].reshape(-1, FEATURES)  # [k, 7, 80] -> [k, 560]


def read_cmvn(path: Path) -> Cmvn:
    """The statistics in a Kaldi nnet text file, `am.mvn`. Raises WeightsError unless it holds one shift and one scale of 560 numbers."""
    try:
        text = path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read ({type(error).__name__}); fetch the weights again.") from error
    found: dict[str, Features] = {}
    try:
        for name, rows, columns, numbers in _STATISTICS.findall(text):
            vector = np.array(numbers.split(), np.float32)
            if name in found or not int(rows) == int(columns) == len(vector) == FEATURES or not np.isfinite(vector).all():
                raise ValueError(f"{name} must appear once and have {FEATURES} finite numbers")
            found[name] = vector
        if missing := {"AddShift", "Rescale"} - found.keys():
            raise ValueError(f"{' and '.join(sorted(missing))} missing or cut short")
    except ValueError as error:
        raise WeightsError(f"{path} is not the am.mvn of SenseVoiceSmall ({error}); fetch the weights again.") from error
    return Cmvn(found["AddShift"], found["Rescale"])
