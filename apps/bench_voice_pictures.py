"""Spectrograms of a voice beside its teacher's, for the documentation: one line a reply, the teacher on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from duplex.audio import Samples
from duplex.errors import OutputError

WINDOW_S, STEP_S = 0.025, 0.005
TOP_HZ = 8_000
RANGE_DB = 70.0


@dataclass(frozen=True, slots=True)
class Pair:
    """One reply by both."""

    text: str
    sounds: tuple[tuple[str, Samples, int], ...]
    """(name, [n], rate), left to right."""


def spectrogram(sound: Samples, rate_hz: int) -> NDArray[np.float32]:
    """[f, t] in dB below the loudest, frequencies from 0 to TOP_HZ, a column every 5 ms."""
    size, step = round(WINDOW_S * rate_hz), round(STEP_S * rate_hz)
    padded = np.pad(sound, (size // 2, size))
    spectrum = np.abs(np.fft.rfft(sliding_window_view(padded, size)[::step] * np.hanning(size), n=2048))
    kept = spectrum[:, : round(TOP_HZ * 2048 / rate_hz)].T
    level = 20 * np.log10(np.maximum(kept, 1e-9) / max(float(kept.max()), 1e-9))
    return np.asarray(np.maximum(level, -RANGE_DB), np.float32)


def draw(pairs: Sequence[Pair], path: Path) -> None:
    """Write the picture. Raises OutputError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = max(len(pair.sounds) for pair in pairs)
    figure, grid = pyplot.subplots(len(pairs), columns, figsize=(6.0 * columns, 1.9 * len(pairs)), squeeze=False, sharey=True)
    for line, pair in zip(grid, pairs, strict=True):
        longest = max(len(sound) / rate for _, sound, rate in pair.sounds)
        for axes, (name, sound, rate) in zip(line, pair.sounds, strict=False):
            shown = (0.0, len(sound) / rate, 0.0, TOP_HZ / 1000)
            axes.imshow(spectrogram(sound, rate), origin="lower", aspect="auto", extent=shown, cmap="magma", vmin=-RANGE_DB, vmax=0)
            axes.set_xlim(0.0, longest)
            axes.set_title(f"{name}: {_short(pair.text)}", fontsize=7, loc="left")
            axes.tick_params(labelsize=6)
        line[0].set_ylabel("kHz", fontsize=7)
    for axes in grid[-1]:
        axes.set_xlabel("s", fontsize=7)
    figure.tight_layout(pad=0.6)
    try:
        figure.savefig(path, dpi=90)
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        pyplot.close(figure)


def _short(text: str, most: int = 64) -> str:
    return text if len(text) <= most else text[: most - 1].rsplit(" ", 1)[0] + " …"
