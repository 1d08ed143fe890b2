"""Spectrograms for the documentation: a tone lies at its frequency and its time, and the picture is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps.bench_voice_pictures import RANGE_DB, TOP_HZ, Pair, draw, spectrogram
from duplex.errors import OutputError


@pytest.mark.parametrize("rate", [16_000, 22_050, 24_000])
def test_a_tone_lies_where_it_sounds(rate: int) -> None:
    tone = np.sin(np.arange(rate) * 2 * np.pi * 2_000 / rate)
    sound = np.concatenate([np.zeros(rate), tone]).astype(np.float32)
    picture = spectrogram(sound, rate)
    assert abs(picture.shape[1] * 0.005 - 2.0) < 0.03
    row = picture[:, 300].argmax()
    assert abs(row / picture.shape[0] * TOP_HZ - 2_000) < 30
    assert picture[row, 300] > -1
    assert picture[:, 100].max() == -RANGE_DB


def test_a_picture_is_written(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    pair = Pair("A long text that does not fit above its picture, so that it must be cut somewhere.", (("one", noise, 16_000),) * 2)
    draw([pair, pair], tmp_path / "voice.png")
    assert (tmp_path / "voice.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="could not be written"):
        draw([pair], tmp_path / "nowhere" / "voice.png")
