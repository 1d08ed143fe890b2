"""The voice's flow: its file, its digits, and that streaming with a window is the same as offline."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decoders.flow import Flow, FlowConfig, cache_bytes
from decoders.flow_checkpoint import tiny
from decoders.flow_speech import Crops
from decoders.flow_training import speech_loss
from decoders.flow_voice import VOICE, VoiceFlow, load, save, split
from decoders.speech_tokenizer import digits_to_index
from duplex.errors import WeightsError

SMALL = dataclasses.replace(
    VOICE,
    window=7,
    steps=2,
    encoder=dataclasses.replace(VOICE.encoder, width=16, heads=2, feed_forward=16),
    estimator=dataclasses.replace(VOICE.estimator, channels=16, heads=2, head_width=8),
)


def speech(length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOICE.vocabulary, (length,), generator=torch.Generator().manual_seed(seed))


def fresh(flow: Flow, **how: bool) -> object:
    return flow.open(torch.arange(0), torch.zeros(0, flow.config.mel), **how)


FLOW = tiny(2, SMALL)
with torch.no_grad():  # so that long steps matter here as they do once it is trained
    torch.nn.init.normal_(FLOW.decoder.estimator.span_mlp.linear_2.weight, std=0.1, generator=torch.Generator().manual_seed(0))


@settings(max_examples=20, deadline=None)
@given(pieces=st.lists(st.integers(0, 9), min_size=1, max_size=14))
def test_streaming_with_a_window_is_offline(pieces: list[int]) -> None:
    codes = speech(sum(pieces))
    state = fresh(FLOW)
    parts = [FLOW.step(state, piece) for piece in codes.split(pieces)]  # type: ignore[arg-type]
    streamed = torch.cat([*parts, FLOW.step(state, codes[:0], final=True)], dim=1)  # type: ignore[arg-type]
    whole = FLOW.step(fresh(FLOW), codes, final=True)  # type: ignore[arg-type]
    anew = FLOW.step(fresh(FLOW, cached=False), codes, final=True)  # type: ignore[arg-type]
    assert streamed.shape == whole.shape == (192, 4 * len(codes))
    assert torch.allclose(streamed, whole, atol=2e-5) and torch.allclose(streamed, anew, atol=2e-5)


def test_seven_codes_give_the_first_chunk() -> None:
    state = fresh(FLOW)
    lengths = [FLOW.step(state, code).shape[1] for code in speech(17).split(1)]  # type: ignore[arg-type]
    assert [index + 1 for index, length in enumerate(lengths) if length] == [7, 12, 17]


def test_what_lies_before_the_window_is_forgotten_and_costs_nothing() -> None:
    state = fresh(FLOW)
    sizes = []
    for piece in speech(100).split(5):
        FLOW.step(state, piece)  # type: ignore[arg-type]
        layers = [*state.memory.encoder.layers, *state.memory.encoder.up_layers]  # type: ignore[attr-defined]
        blocks = [block for moment in state.memory.estimator for stage in moment.stages for block in stage.blocks]  # type: ignore[attr-defined]
        sizes.append({layer.length for layer in [*layers, *blocks]})
    assert sizes[4:] == [{7, 28}] * 16
    assert cache_bytes(SMALL, 4000) == cache_bytes(SMALL, 400) < cache_bytes(dataclasses.replace(SMALL, window=0), 400)


def test_a_fork_goes_its_own_way() -> None:
    state = fresh(FLOW)
    FLOW.step(state, speech(20))  # type: ignore[arg-type]
    other = state.fork()  # type: ignore[attr-defined]
    one = FLOW.step(state, speech(9, 1))  # type: ignore[arg-type]
    FLOW.step(other, speech(30, 2))
    again = fresh(FLOW)
    FLOW.step(again, speech(20))  # type: ignore[arg-type]
    assert torch.equal(one, FLOW.step(again, speech(9, 1)))  # type: ignore[arg-type]


def test_a_code_is_the_sum_of_its_digits() -> None:
    codes = torch.arange(VOICE.vocabulary)
    digits = split(codes)
    assert torch.equal(digits_to_index(digits), codes)
    table, begins = FLOW.input_embedding.weight, (0, 7, 12, 17, 22)
    wanted = sum(table[digits[:, place].long() + begin] for place, begin in enumerate(begins))
    assert torch.allclose(FLOW.input_embedding(codes), wanted, atol=1e-5)


def test_a_file_brings_back_the_flow(tmp_path: Path) -> None:
    mean, deviation = torch.randn(192), torch.rand(192)
    save(VoiceFlow(FLOW, mean, deviation), tmp_path / "flow.safetensors", steps=3, temperature=0.7)
    back = load(tmp_path / "flow.safetensors")
    assert back.flow.config == dataclasses.replace(SMALL, steps=3, temperature=0.7)
    assert torch.equal(back.mean, mean) and torch.equal(back.deviation, deviation)
    for name, value in FLOW.state_dict().items():
        assert torch.allclose(back.flow.state_dict()[name], value, atol=1e-3)


def test_another_file_is_told(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, tmp_path / "flow.safetensors")
    with pytest.raises(WeightsError, match="no flow of this voice"):
        load(tmp_path / "flow.safetensors")
    with pytest.raises(WeightsError, match="is missing"):
        load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("chunked", [True, False])
def test_short_replies_in_a_long_batch_are_learnt_as_if_alone(chunked: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    frames, noise = (torch.randn(2, 160, 192, generator=generator) for _ in range(2))
    crops = Crops(speech(80).reshape(2, 40), torch.tensor([6, 40]), frames, torch.tensor([False, False]))
    moments = torch.tensor([0.3, 0.6])
    both = speech_loss(FLOW, crops, noise, moments, chunked=chunked)
    short = Crops(crops.codes[:1, :6], torch.tensor([6]), frames[:1, :24], torch.tensor([False]))
    long = Crops(crops.codes[1:], torch.tensor([40]), frames[1:], torch.tensor([False]))
    one = speech_loss(FLOW, short, noise[:1, :24], moments[:1], chunked=chunked)
    other = speech_loss(FLOW, long, noise[1:], moments[1:], chunked=chunked)
    for loss, a, b in zip(both, one, other, strict=True):
        assert float(loss) == pytest.approx((6 * float(a) + 40 * float(b)) / 46, rel=1e-4)


def test_sizes_that_contradict_each_other_are_told() -> None:
    with pytest.raises(ValueError, match=r"flow\.levels .* make 4375 codes"):
        dataclasses.replace(SMALL, vocabulary=6561)
    with pytest.raises(ValueError, match=r"flow\.window must be at least 0"):
        FlowConfig(window=-1)
    with pytest.raises(ValueError, match="takes no voice prompt"):
        FLOW.open(speech(1), torch.zeros(4, 192))
