"""The timeline picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apps.timeline import draw_timeline
from tests.apps.test_transcript_lines import EVENTS


def test_the_picture_is_drawn_for_any_length(tmp_path: Path) -> None:
    for seconds in (0.0, 1.0, 45.0):
        path = tmp_path / f"{seconds}.png"
        noise = np.random.default_rng(0).standard_normal(int(seconds * 16_000)).astype(np.float32)
        draw_timeline(path, noise, np.zeros(int(seconds * 24_000), np.float32), EVENTS, "title")
        assert path.stat().st_size > 5000
