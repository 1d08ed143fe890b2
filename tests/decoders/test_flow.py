"""Streaming of the flow: no split of the codes can be heard, conversations do not touch each other, bad input is told."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decoders.flow import Flow, FlowConfig, FlowMemory, FlowState, cache_bytes
from decoders.flow_checkpoint import TINY, tiny
from decoders.flow_encoder import FlowEncoderConfig
from decoders.flow_estimator import FlowEstimatorConfig

SMALL = dataclasses.replace(TINY, chunk=4, mel=6, speaker=5, vocabulary=50, max_frames=200)
LATENTS = FlowConfig(
    vocabulary=40,
    mel=12,
    ratio=4,
    speaker=0,
    chunk=3,
    steps=3,
    guidance=0.0,
    encoder=FlowEncoderConfig(width=24, heads=3, feed_forward=20, blocks=2, up_blocks=1, lookahead=1),
    estimator=FlowEstimatorConfig(channels=20, blocks=2, mid_stages=2, heads=3, head_width=4),
)
NO_LOOKAHEAD = dataclasses.replace(SMALL, ratio=1, chunk=2, guidance=0.5, encoder=dataclasses.replace(SMALL.encoder, lookahead=0))
CONFIGS = {"small": SMALL, "latents": LATENTS, "no look-ahead": NO_LOOKAHEAD}
FLOWS = {name: tiny(7, config) for name, config in CONFIGS.items()}


def voice(config: FlowConfig, prompt: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
    """A random voice with `prompt` codes."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(config.vocabulary, (prompt,), generator=generator)
    mel = torch.randn(prompt * config.ratio, config.mel, generator=generator)
    return codes, mel, torch.randn(config.speaker, generator=generator) if config.speaker else None


def some_codes(config: FlowConfig, count: int, seed: int = 1) -> Tensor:
    return torch.randint(config.vocabulary, (count,), generator=torch.Generator().manual_seed(seed))


def whole(flow: Flow, prompt: int, codes: Tensor) -> Tensor:
    """Offline: a fresh state, one long step."""
    return flow.step(flow.open(*voice(flow.config, prompt), cached=False), codes, final=True)


def in_pieces(flow: Flow, state: FlowState, codes: Tensor, cuts: list[int]) -> Tensor:
    """The replies to codes cut at these places, joined."""
    bounds = [0, *sorted(cut % (len(codes) + 1) for cut in cuts), len(codes)]
    *earlier, last = (codes[start:stop] for start, stop in itertools.pairwise(bounds))
    mels = [flow.step(state, piece) for piece in earlier]
    return torch.cat((*mels, flow.step(state, last, final=True)), dim=1)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    prompt=st.integers(0, 9),
    count=st.integers(0, 20),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    cached=st.booleans(),
)
def test_any_split_of_the_codes_gives_the_same_mel(name: str, prompt: int, count: int, cuts: list[int], cached: bool) -> None:
    flow = FLOWS[name]
    codes = some_codes(flow.config, count)
    state = flow.open(*voice(flow.config, prompt), cached=cached)
    mel = in_pieces(flow, state, codes, cuts)
    assert mel.shape == (flow.config.mel, count * flow.config.ratio)
    assert torch.allclose(mel, whole(flow, prompt, codes), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_splits_would_differ_if_the_mask_were_not_there(name: str) -> None:
    """The property above has teeth: full attention gives something else."""
    flow = FLOWS[name]
    codes = some_codes(flow.config, 20)
    full = flow.step(flow.open(*voice(flow.config, 5)), codes, final=True, full_attention=True)
    assert (full - whole(flow, 5, codes)).abs().max() > 1e-3


def test_frames_come_when_chunk_and_lookahead_are_complete() -> None:
    flow = FLOWS["small"]  # chunks of 4 codes, 3 of look-ahead, 2 frames per code
    state = flow.open(*voice(flow.config, 3))
    lengths = [flow.step(state, some_codes(flow.config, n)).shape[1] for n in (1, 2, 1, 3, 1, 9)]
    assert lengths == [
        0,
        0,
        2,
        0,
        8,
        16,
    ]  # 3 + 4 codes complete [0, 4): 1 code is the reply's; 11 complete [4, 8); 20 complete [8, 16)
    assert flow.step(state, some_codes(flow.config, 0), final=True).shape[1] == 8


@pytest.mark.parametrize("cached", [True, False])
def test_what_comes_later_never_changes_what_was_given(cached: bool) -> None:
    flow = FLOWS["small"]
    state = flow.open(*voice(flow.config, 6), cached=cached)
    first = flow.step(state, some_codes(flow.config, 13))
    assert first.shape[1] == 20
    kept = first.clone()
    flow.step(state, some_codes(flow.config, 9, seed=3))
    assert torch.equal(first, kept)
    more = torch.cat((some_codes(flow.config, 13), some_codes(flow.config, 12, seed=4)))
    assert torch.allclose(whole(flow, 6, more)[:, :20], kept, atol=1e-5)


def test_ten_interleaved_replies_are_bit_identical_to_each_alone() -> None:
    flow = FLOWS["small"]

    def pieces(number: int) -> list[Tensor]:
        return list(some_codes(flow.config, 18 + number, seed=number).split(3 + number % 4))

    def start(number: int) -> FlowState:
        return flow.open(*voice(flow.config, number, seed=number))

    alone = []
    for number in range(10):
        state = start(number)
        alone.append([flow.step(state, piece) for piece in pieces(number)])
    states = [start(number) for number in range(10)]
    together: list[list[Tensor]] = [[] for _ in states]
    for turn in range(max(len(pieces(number)) for number in range(10))):
        for number, state in enumerate(states):
            if turn < len(pieces(number)):
                together[number].append(flow.step(state, pieces(number)[turn]))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert sum(mel.shape[1] for mels in alone for mel in mels) > 200


def test_forks_of_a_voice_go_their_own_ways() -> None:
    flow = FLOWS["small"]
    prepared = flow.open(*voice(flow.config, 9))
    assert prepared.memory is not None and prepared.memory.encoder.layers[0].length == 4
    replies = [some_codes(flow.config, 12, seed) for seed in (1, 2, 3)]
    forks = [prepared.fork() for _ in replies]
    halves = [flow.step(fork, codes[:7]) for fork, codes in zip(forks, replies, strict=True)]
    mels = [
        torch.cat((half, flow.step(fork, codes[7:], final=True)), dim=1)
        for half, fork, codes in zip(halves, forks, replies, strict=True)
    ]
    for mel, codes in zip(mels, replies, strict=True):
        assert torch.allclose(mel, whole(flow, 9, codes), atol=1e-4)
    assert prepared.done == 4 and len(prepared.codes) == 9


def test_without_guidance_there_is_one_row() -> None:
    rows = []
    for name in ("small", "latents"):
        flow = FLOWS[name]
        hook = flow.decoder.estimator.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[0]))
        whole(flow, 0, some_codes(flow.config, 3))
        hook.remove()
    assert rows == [2, 2, 1, 1, 1]


@pytest.mark.parametrize(("cached", "frames"), [(True, [8, 8, 10]), (False, [8, 16, 26])])
def test_a_hop_runs_over_its_own_frames_only(cached: bool, frames: list[int]) -> None:
    flow = FLOWS["small"]
    seen = []
    state = flow.open(*voice(flow.config, 0), steps=1, cached=cached)
    hook = flow.decoder.estimator.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    for count in (7, 4, 2):
        flow.step(state, some_codes(flow.config, count))
    flow.step(state, some_codes(flow.config, 0), final=True)
    hook.remove()
    assert seen == frames


def test_steps_can_be_set_per_reply() -> None:
    flow = FLOWS["small"]
    codes = some_codes(flow.config, 9)
    mels = {steps: flow.step(flow.open(*voice(flow.config, 2), steps=steps), codes, final=True) for steps in (2, 5)}
    assert torch.equal(mels[2], flow.step(flow.open(*voice(flow.config, 2)), codes, final=True))
    assert not torch.allclose(mels[2], mels[5])
    with pytest.raises(ValueError, match="steps must be at least 1"):
        flow.open(*voice(flow.config, 2), steps=0)


def test_prompt_and_speaker_are_heard() -> None:
    flow = FLOWS["small"]
    codes = some_codes(flow.config, 9)
    prompt, mel, speaker = voice(flow.config, 4)
    assert speaker is not None
    plain = flow.step(flow.open(prompt, mel, speaker), codes, final=True)
    assert torch.allclose(flow.step(flow.open(prompt, mel, 3.0 * speaker), codes, final=True), plain, atol=1e-5)
    assert not torch.allclose(flow.step(flow.open(prompt, mel, -speaker), codes, final=True), plain, atol=1e-3)
    assert not torch.allclose(flow.step(flow.open(prompt, mel + 1.0, speaker), codes, final=True), plain, atol=1e-3)


def test_bfloat16_stays_near() -> None:
    flow = tiny(7, SMALL, dtype=torch.bfloat16)
    codes = some_codes(SMALL, 16)
    state = flow.open(*voice(SMALL, 5))
    mel = torch.cat((flow.step(state, codes[:9]), flow.step(state, codes[9:], final=True)), dim=1)
    exact = whole(FLOWS["small"], 5, codes)
    assert mel.dtype == torch.float32
    assert (mel - exact).abs().max() < 0.05 * exact.abs().max()


def held(memory: FlowMemory) -> int:
    """Bytes in use of all keys and values."""
    layers = [*memory.encoder.layers, *memory.encoder.up_layers]
    layers += [block for moment in memory.estimator for stage in moment.stages for block in stage.blocks]
    return sum(2 * kv.keys[:, :, : kv.length].numel() * kv.keys.element_size() for kv in layers if kv.keys is not None)


@pytest.mark.parametrize("name", CONFIGS)
def test_memory_is_what_was_said(name: str) -> None:
    flow = FLOWS[name]
    state = flow.open(*voice(flow.config, 4))
    flow.step(state, some_codes(flow.config, 14))
    assert state.memory is not None
    assert held(state.memory) == cache_bytes(flow.config, state.done * flow.config.ratio)
    flow.step(state, some_codes(flow.config, 1), final=True)
    assert state.memory is None


def test_memory_at_full_size() -> None:
    assert cache_bytes(FlowConfig(), 500) == pytest.approx(2.3e9, rel=0.01)
    assert cache_bytes(FlowConfig(), 500, torch.bfloat16) == pytest.approx(1.15e9, rel=0.01)
    assert cache_bytes(FlowConfig(guidance=0.0), 500, steps=1) == pytest.approx(129e6, rel=0.01)


@pytest.mark.parametrize("code", [50, 6561, -1])
def test_what_is_no_code_never_reaches_the_embedding(code: int) -> None:
    flow = FLOWS["small"]
    state = flow.open(*voice(flow.config, 5))
    with pytest.raises(ValueError, match=rf"code {code} at position 2 is no speech code: this flow knows 0 to 49"):
        flow.step(state, torch.tensor([3, 4, code]))
    codes = some_codes(flow.config, 9)
    assert torch.allclose(flow.step(state, codes, final=True), whole(flow, 5, codes), atol=1e-5)
    with pytest.raises(ValueError, match="no speech code"):
        flow.open(torch.tensor([1, code]), torch.zeros(4, 6), torch.ones(5))


def test_codes_must_be_whole_numbers_in_a_row() -> None:
    flow = FLOWS["small"]
    state = flow.open(*voice(flow.config, 0))
    for codes in (torch.zeros(1, 3, dtype=torch.int64), torch.zeros(3)):
        with pytest.raises(ValueError, match="whole numbers in one dimension"):
            flow.step(state, codes)


def test_prompt_must_fit() -> None:
    flow = FLOWS["small"]
    prompt, mel, speaker = voice(flow.config, 5)
    with pytest.raises(ValueError, match="9 mel frames for 5 codes; cut both so that there are 2 frames to a code"):
        flow.open(prompt, mel[:9], speaker)
    with pytest.raises(ValueError, match="must be \\[frames, 6\\]"):
        flow.open(prompt, mel.T, speaker)
    for wrong in (None, torch.ones(4), torch.full((5,), torch.nan)):
        with pytest.raises(ValueError, match="speaker vector of 5 finite numbers"):
            flow.open(prompt, mel, wrong)
    with pytest.raises(ValueError, match="one speaker only"):
        FLOWS["latents"].open(*voice(LATENTS, 3)[:2], torch.ones(5))


def test_a_reply_ends_once_and_fits_the_noise() -> None:
    flow = FLOWS["small"]
    state = flow.open(*voice(flow.config, 5))
    with pytest.raises(ValueError, match="prompt and reply have 101 codes, and this flow takes 100"):
        flow.step(state, some_codes(flow.config, 96))
    with pytest.raises(ValueError, match="full attention needs all codes"):
        flow.step(state, some_codes(flow.config, 2), full_attention=True)
    assert flow.step(state, some_codes(flow.config, 95), final=True).shape == (6, 190)
    with pytest.raises(ValueError, match="has ended"):
        flow.step(state, some_codes(flow.config, 1))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FlowConfig(chunk=0), "flow.chunk must be at least 1"),
        (lambda: FlowConfig(guidance=-0.1), "flow.guidance must be in 0 to 10"),
        (lambda: FlowConfig(speaker=-1), "flow.speaker must be at least 0"),
        (lambda: FlowEncoderConfig(width=20, heads=8), "flow.encoder.width must be a multiple of twice the heads"),
        (lambda: FlowEncoderConfig(lookahead=-1), "flow.encoder.lookahead must be at least 0"),
        (lambda: FlowEncoderConfig(blocks=0), "flow.encoder.blocks must be at least 1"),
        (lambda: FlowEstimatorConfig(channels=0), "flow.estimator.channels must be at least 1"),
        (lambda: FlowEstimatorConfig(blocks=-1), "flow.estimator.blocks must be at least 0"),
    ],
)
def test_sizes_are_checked(make: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()
