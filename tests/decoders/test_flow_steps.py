"""Replies that take their chunks together get the frames that each gets alone; here without a graph."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from decoders import flow_checkpoint
from decoders.flow import Flow
from decoders.flow_steps import SharedFlow

CODES = 300


@pytest.fixture(scope="module")
def flow() -> Flow:
    return flow_checkpoint.tiny(3)


def reply(seed: int, count: int) -> Tensor:
    return torch.randint(0, 6561, (count,), generator=torch.Generator().manual_seed(seed))


def prompt(seed: int, codes: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + seed)
    return reply(seed + 50, codes), torch.randn(2 * codes, 80, generator=generator), torch.randn(192, generator=generator)


def alone(flow: Flow, number: int, prompt_codes: int, pieces: list[int]) -> list[Tensor]:
    state, codes = flow.open(*prompt(number, prompt_codes)), reply(number, sum(pieces))
    parts = list(codes.split(pieces))
    return [flow.step(state, part, index == len(parts) - 1) for index, part in enumerate(parts)]


PLANS = [(63, [15, 20, 30, 50, 7]), (0, [28, 25, 25, 25, 3]), (113, [15, 60, 1, 40, 25]), (25, [3, 100, 100, 80, 20])]


def test_together_is_as_alone(flow: Flow) -> None:
    expected = [alone(flow, number, codes, pieces) for number, (codes, pieces) in enumerate(PLANS)]
    shared = SharedFlow(flow, 8, CODES)
    voices = [shared.open(*prompt(number, codes)) for number, (codes, _) in enumerate(PLANS)]
    states = [voice.fork() for voice in voices]
    replies = [reply(number, sum(pieces)).split(pieces) for number, (_, pieces) in enumerate(PLANS)]
    for index in range(5):
        made = shared.step_together(states, [parts[index] for parts in replies], [index == 4] * len(states))
        for number, frames in enumerate(made):
            assert frames.shape == expected[number][index].shape
            if frames.numel():
                assert (frames - expected[number][index]).abs().max() < 1e-4
    with pytest.raises(ValueError, match="ended"):
        shared.step(states[0], replies[0][0])


def test_beyond_its_room_a_reply_goes_on_alone(flow: Flow) -> None:
    number, codes, pieces = 3, *PLANS[3]
    shared = SharedFlow(flow, 2, 130)
    state = shared.open(*prompt(number, codes)).fork()
    parts = reply(number, sum(pieces)).split(pieces)
    made = [shared.step(state, part, index == len(parts) - 1) for index, part in enumerate(parts)]
    for ours, theirs in zip(made, alone(flow, number, codes, pieces), strict=True):
        assert ours.shape == theirs.shape and (not ours.numel() or (ours - theirs).abs().max() < 1e-4)


def test_without_a_free_slot_too_and_slots_come_back(flow: Flow) -> None:
    shared = SharedFlow(flow, 2, CODES)
    voice = shared.open(*prompt(0, 63))
    states = [voice.fork() for _ in range(3)]
    assert [state.slot is None for state in states] == [False, True, True]
    pieces = PLANS[0][1]
    parts = reply(0, sum(pieces)).split(pieces)
    expected = alone(flow, 0, 63, pieces)
    for state in states:
        for index, part in enumerate(parts):
            frames = shared.step(state, part, index == len(parts) - 1)
            assert frames.shape == expected[index].shape and (not frames.numel() or (frames - expected[index]).abs().max() < 1e-4)
    del state, states
    gc.collect()
    again = voice.fork()
    assert again.slot is not None
    assert (shared.step(again, parts[0]) - expected[0]).abs().max() < 1e-4


def test_without_guidance_and_in_bfloat16(flow: Flow) -> None:
    single = flow_checkpoint.tiny(3, replace(flow.config, guidance=0.0), dtype=torch.bfloat16)
    state, shared = single.open(*prompt(1, 30)), SharedFlow(single, 2, CODES)
    other, codes = shared.open(*prompt(1, 30)), reply(1, 60)
    ours, theirs = shared.step(other, codes), single.step(state, codes)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()


def test_wrong_codes_change_nothing(flow: Flow) -> None:
    shared = SharedFlow(flow, 2, CODES)
    state = shared.open(*prompt(0, 63))
    with pytest.raises(ValueError, match="no speech code"):
        shared.step(state, torch.tensor([7000]))
    assert len(state.plain.codes) == 63
    with pytest.raises(ValueError, match="replies is 0"):
        SharedFlow(flow, 0, CODES)
