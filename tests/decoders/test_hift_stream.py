"""HiFT in pieces: the published seams to the letter, and better ones by default."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decoders.hift import HiFT, HiFTState
from decoders.hift_checkpoint import tiny
from tests.decoders.test_hift import INFO, MEL, TENSORS, apart, mini

FRAME = 480


def play(model: HiFT, cuts: Sequence[int], seed: int | None = 0, mel: Tensor = MEL) -> list[Tensor]:
    """Samples of each piece of `mel` between neighbouring cuts."""
    state = model.open(seed)
    last = len(cuts) - 2
    return [model.step(state, mel[:, a:b], index == last) for index, (a, b) in enumerate(itertools.pairwise(cuts))]


@pytest.fixture(scope="module")
def model() -> HiFT:
    made = mini()
    made.fuse()
    return made


@pytest.fixture(scope="module")
def small() -> HiFT:
    return tiny(1)


@pytest.fixture(scope="module")
def published() -> HiFT:
    return mini(seams="upstream")


def test_published_stream(published: HiFT) -> None:
    """As near as the rounding of the phase lets it be; see test_hift.test_whole_path_within_the_rounding_of_its_phase."""
    pieces = play(published, INFO["outputs/stream/cuts"], None)
    for index, piece in enumerate(pieces):
        assert apart(piece, TENSORS[f"outputs/stream/wavs/{index}"][0]) < 2e-3


def test_the_published_streams_tolerance_tells_seams_apart(model: HiFT, published: HiFT) -> None:
    theirs = torch.cat([TENSORS[f"outputs/stream/wavs/{index}"][0] for index in range(3)])
    assert apart(torch.cat(play(model, INFO["outputs/stream/cuts"], None)), theirs) > 0.1
    assert apart(torch.cat(play(published, [0, 50, 100], None)), theirs) > 0.1


def test_published_whole(published: HiFT) -> None:
    assert apart(play(published, [0, 100], None)[0], TENSORS["outputs/zero_noise/wav"][0]) < 2e-3


def test_whole_is_the_published_waveform(model: HiFT) -> None:
    assert apart(play(model, [0, 100], None)[0], TENSORS["outputs/zero_noise/wav"][0]) < 2e-3


def error_db(ours: Tensor, theirs: Tensor) -> float:
    return 10 * math.log10(float((ours - theirs).square().sum() / theirs.square().sum()))


@pytest.mark.parametrize("seed", [None, 3])
def test_continuous_seams_are_unheard(model: HiFT, seed: int | None) -> None:
    """Around each seam the stream is the whole passage to -50 dB, and its level to 0.02 dB."""
    cuts = [0, 26, 50, 76, 100]
    whole, stream = play(model, [0, 100], seed)[0], torch.cat(play(model, cuts, seed))
    for cut in cuts[1:-1]:
        seam = slice((cut - 12) * FRAME, cut * FRAME)
        assert error_db(stream[seam], whole[seam]) < -50
        level = float(stream[seam].square().mean() / whole[seam].square().mean())
        assert abs(10 * math.log10(level)) < 0.02


def test_published_seams_are_heard(model: HiFT, published: HiFT) -> None:
    """What the default is better than: spectra around the seams, against the same passage in one piece."""

    def distance(made: HiFT) -> float:
        whole, stream = play(made, [0, 100], None)[0], torch.cat(play(made, [0, 26, 50, 76, 100], None))
        window = torch.hann_window(512)
        a, b = (
            torch.stft(x, 512, 128, window=window, return_complex=True).abs().clamp(min=1e-4).log10() * 20 for x in (whole, stream)
        )
        near = [slice((cut - 12) * FRAME // 128, (cut + 4) * FRAME // 128) for cut in (26, 50, 76)]
        return float(torch.cat([(a - b)[:, part].abs().flatten() for part in near]).mean())

    assert distance(model) < 0.1 < 2 < distance(published)


def test_excitation_and_noise_do_not_depend_on_the_split(small: HiFT) -> None:
    """Apart from the unseen future, any split gives the same sound: pieces of 10 frames as of 1."""
    tens, ones = (torch.cat(play(small, list(range(0, 101, step)), 5)) for step in (10, 1))
    whole = play(small, [0, 100], 5)[0]
    assert error_db(tens, whole) < -40
    assert error_db(ones, whole) < -40
    assert error_db(torch.cat(play(small, [0, 50, 100], 6)), whole) > -30  # another seed is another noise


splits = st.lists(st.integers(0, 40), max_size=6).map(sorted)


@settings(max_examples=25, deadline=None)
@given(cuts=splits, upstream=st.booleans())
def test_any_split_has_all_samples_and_no_click(cuts: list[int], upstream: bool) -> None:
    model = UPSTREAM if upstream else CONTINUOUS
    pieces = play(model, [0, *cuts, 40, 40], 2, MEL[:, :40])
    stream = torch.cat(pieces)
    assert len(stream) == 40 * FRAME
    assert torch.isfinite(stream).all()
    sent = 0
    for piece, cut in zip(pieces[:-1], [*cuts, 40], strict=False):
        sent += len(piece)
        assert sent == max(0, cut - 8) * FRAME
    if not upstream:
        assert float(stream.diff().abs().max()) <= 1.05 * JUMP


CONTINUOUS = tiny(1)
UPSTREAM = tiny(1)
UPSTREAM.config = mini(seams="upstream").config
JUMP = float(play(CONTINUOUS, [0, 40], 2, MEL[:, :40])[0].diff().abs().max())


def test_nothing_in_nothing_out(small: HiFT) -> None:
    for made in (small, UPSTREAM):
        state = made.open(0)
        assert len(made.step(state, MEL[:, :0], False)) == 0
        assert len(made.step(state, MEL[:, :0], True)) == 0


def test_one_frame_is_enough(small: HiFT) -> None:
    for made in (small, UPSTREAM):
        assert len(made.step(made.open(0), MEL[:, :1], True)) == FRAME


def test_interleaved_conversations_are_bit_identical_to_each_alone(small: HiFT) -> None:
    mels = [MEL.roll(3 * index, 1) for index in range(10)]
    alone = [torch.cat(play(small, [0, 20, 55, 100], seed, mel)) for seed, mel in enumerate(mels)]
    states: list[HiFTState] = [small.open(seed) for seed in range(10)]
    pieces: list[list[Tensor]] = [[] for _ in mels]
    for a, b in ((0, 20), (20, 55), (55, 100)):
        for index in reversed(range(10)):
            pieces[index].append(small.step(states[index], mels[index][:, a:b], b == 100))
    assert all(torch.equal(torch.cat(parts), whole) for parts, whole in zip(pieces, alone, strict=True))


def test_future_never_changes_the_past(small: HiFT) -> None:
    other = MEL.clone()
    other[:, 60:] = 0
    first, second = play(small, [0, 30, 60, 100]), play(small, [0, 30, 60, 100], mel=other)
    assert torch.equal(torch.cat(first[:2]), torch.cat(second[:2]))


def test_state_stays_small(small: HiFT) -> None:
    state = small.open(0)
    for begin in range(0, 100, 10):
        small.step(state, MEL[:, begin : begin + 10], False)
        assert state.mel.shape[1] <= 26 and len(state.source) <= 26 * FRAME


def test_misuse_is_told(small: HiFT) -> None:
    state = small.open(0)
    with pytest.raises(ValueError, match="80, t"):
        small.step(state, MEL.T, False)
    small.step(state, MEL[:, :4], True)
    with pytest.raises(ValueError, match="fresh state"):
        small.step(state, MEL[:, :4], False)
