"""Figures of frames: zero for the truth, dull for a mean, and joins that are found."""

from __future__ import annotations

import pytest
import torch

from decoders.flow_judging import join_step, judge


def test_the_truth_is_right_and_a_mean_is_dull() -> None:
    true = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(0))
    counted = torch.ones(3, 40, dtype=torch.bool)
    found = judge(true, true, counted, 8)
    assert (found.error, found.liveliness, found.joins) == (0.0, 1.0, 1.0)
    half = judge(0.5 * true, true, counted, 8)
    assert half.liveliness == pytest.approx(0.5) and half.error == pytest.approx(0.5 * float(true.square().mean().sqrt()))


def test_what_does_not_count_is_not_seen() -> None:
    true = torch.randn(2, 40, 5)
    wrong = true.clone()
    wrong[:, 30:] += 9.0
    counted = torch.arange(40).expand(2, -1) < 30
    assert judge(wrong, true, counted, 8) == judge(true, true, counted, 8)


def test_a_step_where_chunks_meet_is_found() -> None:
    smooth = torch.randn(60, 4).cumsum(0)
    stepped = smooth + 10.0 * (torch.arange(60) // 12 % 2).unsqueeze(1)
    assert 0.7 < join_step(smooth, 12) < 1.4
    assert join_step(stepped, 12) > 4.0
    assert join_step(stepped, 11) < 1.6
    with pytest.raises(ValueError, match="no join"):
        join_step(smooth, 60)
