"""Crops of speech: what lies where, and what counts."""

from __future__ import annotations

import pytest
import torch

from decoders.flow_speech import SpeechStore, store

RATIO, CHANNELS = 4, 3


def made(counts: list[int]) -> SpeechStore:
    """Code i of all is i, and its frames are i, i + 0.25, i + 0.5, i + 0.75 in every channel."""
    total = sum(counts)
    codes = torch.arange(total)
    frames = (torch.arange(total * RATIO) / RATIO).unsqueeze(1).expand(-1, CHANNELS)
    half = len(counts) // 2
    first = sum(counts[:half])
    parts = [
        (codes[:first], frames[: first * RATIO], torch.tensor(counts[:half])),
        (codes[first:], frames[first * RATIO :], torch.tensor(counts[half:])),
    ]
    return store(parts, torch.zeros(CHANNELS), torch.ones(CHANNELS))


def test_crops_stay_within_their_reply_and_carry_its_frames() -> None:
    counts = [10, 0, 30, 3, 25]
    speech = made(counts)
    assert len(speech) == 68 and speech.offsets.tolist() == [0, 10, 40, 43, 68]
    crops = speech.crops(200, 8, torch.Generator().manual_seed(1))
    assert crops.frames.shape == (200, 32, CHANNELS)
    starts = set()
    for row in range(200):
        count = int(crops.counts[row])
        codes = crops.codes[row, :count]
        start, end = int(codes[0]), int(codes[-1]) + 1
        starts.add(start)
        assert codes.tolist() == list(range(start, end))
        reply = next(index for index in range(4) if start < int(speech.offsets[index + 1]))
        assert end <= int(speech.offsets[reply + 1]) and count == min(8, int(speech.offsets[reply + 1] - speech.offsets[reply]))
        assert bool(crops.unfinished[row]) == (end < int(speech.offsets[reply + 1]))
        assert crops.frames[row, : count * RATIO, 0].tolist() == [start + place / RATIO for place in range(count * RATIO)]
    assert {0, 2, 32, 40, 60} <= starts  # beginnings, ends, and a reply shorter than a crop


def test_codes_that_looked_ahead_to_nothing_do_not_count() -> None:
    speech = made([10, 3])
    crops = speech.cut(torch.tensor([0, 2, 10]), torch.tensor([10, 10, 13]), 8)
    assert crops.unfinished.tolist() == [True, False, False] and crops.counts.tolist() == [8, 8, 3]
    assert crops.counted(2).sum(1).tolist() == [6, 8, 3]
    assert crops.kept().sum(1).tolist() == [8, 8, 3]


def test_beginnings_are_those_of_long_replies() -> None:
    crops = made([10, 3, 12]).beginnings(9, 5)
    assert crops.codes[:, 0].tolist() == [0, 13] and crops.codes.shape == (2, 9)


def test_latents_are_measured_in_deviations() -> None:
    latents = torch.randn(8, CHANNELS, dtype=torch.float16)
    mean, deviation = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 2.0, 4.0])
    speech = store([(torch.arange(2), latents, torch.tensor([2]))], mean, deviation)
    crops = speech.beginnings(2, 1)
    assert torch.allclose(crops.frames[0] * deviation + mean, latents.float(), atol=0.01)


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        store([(torch.arange(2), torch.zeros(8, 3), torch.tensor([1]))], torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="no speech to learn from"):
        store([(torch.arange(0), torch.zeros(0, 3), torch.tensor([0]))], torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="no reply has 90 codes"):
        made([10, 10]).beginnings(90, 1)
