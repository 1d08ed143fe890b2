"""The flow as a graph: the frames of torch's own form, however the codes come."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoders.flow_checkpoint import tiny
from decoders.flow_graph import GraphFlow
from tests.decoders.test_flow_voice import FLOW, SMALL, fresh, speech

GRAPH = GraphFlow(FLOW)
NOTHING = torch.arange(0), torch.zeros(0, 192)


@settings(max_examples=20, deadline=None)
@given(pieces=st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_it_gives_the_frames_of_the_flow(pieces: list[int]) -> None:
    codes = speech(sum(pieces))
    wanted = FLOW.step(fresh(FLOW), codes, final=True)  # type: ignore[arg-type]
    state = GRAPH.open(*NOTHING)
    parts = [GRAPH.step(state, piece, index == len(pieces) - 1) for index, piece in enumerate(codes.split(pieces))]
    made = torch.cat(parts, dim=1)
    assert made.shape == wanted.shape and torch.allclose(made, wanted, atol=2e-5)
    whole = GRAPH.step(GRAPH.open(*NOTHING), codes, True)
    assert torch.equal(made, whole)  # to the bit: every run is one chunk


@pytest.mark.parametrize("steps", [1, 3])
def test_with_other_steps(steps: int) -> None:
    codes = speech(31)
    wanted = FLOW.step(FLOW.open(*NOTHING, steps=steps), codes, final=True)
    made = GraphFlow(FLOW, steps)
    assert torch.allclose(made.step(made.open(*NOTHING), codes, True), wanted, atol=2e-5)


def test_with_calmer_noise() -> None:
    torch_form = tiny(2, dataclasses.replace(SMALL, temperature=0.3))
    made, codes = GraphFlow(torch_form), speech(12)
    frames = made.step(made.open(*NOTHING), codes, True)
    assert torch.allclose(frames, torch_form.step(torch_form.open(*NOTHING), codes, final=True), atol=2e-5)
    assert not torch.allclose(frames, tiny(2, SMALL).step(torch_form.open(*NOTHING), codes, final=True), atol=0.1)


def test_frames_come_with_seven_codes_and_every_five() -> None:
    state = GRAPH.open(*NOTHING)
    lengths = [GRAPH.step(state, code).shape[1] for code in speech(18).split(1)]
    assert [index + 1 for index, length in enumerate(lengths) if length] == [7, 12, 17] and max(lengths) == 20


def test_a_fork_goes_its_own_way() -> None:
    state = GRAPH.open(*NOTHING)
    GRAPH.step(state, speech(18))
    other = state.fork()
    one = GRAPH.step(state, speech(9, 1), True)
    GRAPH.step(other, speech(13, 2))
    again = GRAPH.open(*NOTHING)
    GRAPH.step(again, speech(18))
    assert torch.equal(one, GRAPH.step(again, speech(9, 1), True))


def test_memories_stay_small() -> None:
    state = GRAPH.open(*NOTHING)
    sizes = []
    for piece in speech(80).split(5):
        GRAPH.step(state, piece)
        sizes.append(sum(np.asarray(memory).nbytes for memory in state.memories.values()))
    assert len(set(sizes[4:])) == 1


def test_misuse_is_told() -> None:
    state = GRAPH.open(*NOTHING)
    with pytest.raises(ValueError, match="knows 0 to 4374"):
        GRAPH.step(state, torch.tensor([4375]))
    with pytest.raises(ValueError, match="takes no voice prompt"):
        GRAPH.open(torch.arange(1), torch.zeros(4, 192))
    GRAPH.step(state, speech(3), True)
    with pytest.raises(ValueError, match="has ended"):
        GRAPH.step(state, speech(1))
    short = GraphFlow(tiny(0, dataclasses.replace(SMALL, max_frames=40)))
    with pytest.raises(ValueError, match="more than 10 codes"):
        short.step(short.open(*NOTHING), speech(11))
    with pytest.raises(ValueError, match="chunk by chunk alone"):
        GraphFlow(tiny(0, dataclasses.replace(SMALL, window=0)))
