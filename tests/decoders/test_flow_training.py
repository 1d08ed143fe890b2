"""The flow's loss: padding takes no part, draws can be repeated, and a few steps of training lower it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from decoders.flow import Flow
from decoders.flow_checkpoint import TINY, tiny
from decoders.flow_training import FlowBatch, FlowDraws, FlowTrainingConfig, draw, flow_loss

SMALL = dataclasses.replace(TINY, chunk=3, mel=6, speaker=5, vocabulary=30)


def batch_of(counts: list[int], seed: int = 0) -> FlowBatch:
    generator = torch.Generator().manual_seed(seed)
    most = max(counts)
    return FlowBatch(
        codes=torch.randint(SMALL.vocabulary, (len(counts), most), generator=generator),
        counts=torch.tensor(counts),
        mel=torch.randn(len(counts), most * SMALL.ratio, SMALL.mel, generator=generator),
        speakers=torch.randn(len(counts), 5, generator=generator),
    )


def row(batch: FlowBatch, draws: FlowDraws, index: int) -> tuple[FlowBatch, FlowDraws]:
    """One row without its padding."""
    count = int(batch.counts[index])
    pick = slice(index, index + 1)
    assert batch.speakers is not None
    alone = FlowBatch(batch.codes[pick, :count], batch.counts[pick], batch.mel[pick, : 2 * count], batch.speakers[pick])
    return alone, FlowDraws(
        draws.noise[pick, : 2 * count], draws.moments[pick], draws.conditioned[pick], draws.known[pick], draws.chunked
    )


@pytest.fixture
def flow() -> Flow:
    return tiny(3, SMALL)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_padded_batch_is_the_mean_of_its_rows(flow: Flow, chunked: bool) -> None:
    batch = batch_of([9, 4, 7])
    draws = draw(FlowTrainingConfig(chunked=float(chunked)), batch, torch.Generator().manual_seed(2))
    assert draws.chunked == chunked
    alone: list[Tensor] = [flow_loss(flow, *row(batch, draws, index)) for index in range(3)]
    wanted = sum(float(loss) * count for loss, count in zip(alone, batch.counts.tolist(), strict=True)) / 20
    assert float(flow_loss(flow, batch, draws)) == pytest.approx(wanted, rel=1e-5)


def test_training_goes_on_after_a_conversation_has_used_the_weights() -> None:
    other = dataclasses.replace(
        SMALL, encoder=dataclasses.replace(SMALL.encoder, width=20)
    )  # a width no other test has made tables for
    flow = tiny(3, other)
    flow.step(flow.open(torch.arange(0), torch.zeros(0, 6), torch.ones(5)), torch.arange(9), final=True)
    flow.requires_grad_(True).train()
    batch = batch_of([4, 3])
    flow_loss(flow, batch, draw(FlowTrainingConfig(), batch, torch.Generator().manual_seed(1))).backward()
    assert flow.input_embedding.weight.grad is not None


def test_masks_matter_to_the_loss(flow: Flow) -> None:
    batch = batch_of([9, 9])
    draws = draw(FlowTrainingConfig(unconditioned=0.0), batch, torch.Generator().manual_seed(2))
    losses = [float(flow_loss(flow, batch, dataclasses.replace(draws, chunked=chunked))) for chunked in (True, False)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


def test_draws_repeat_and_keep_their_proportions() -> None:
    batch = batch_of([10] * 400)
    one, other = (draw(FlowTrainingConfig(), batch, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one.noise, other.noise) and torch.equal(one.known, other.known)
    assert 0.75 < one.conditioned.float().mean() < 0.85
    assert one.known.max() <= 6 and 0.3 < (one.known > 0).float().mean() < 0.55
    assert one.moments.min() >= 0.0 and one.moments.max() < 1.0
    assert one.moments.median() == pytest.approx(1 - 0.5**0.5, abs=0.06)
    chunked = [draw(FlowTrainingConfig(), batch_of([2]), torch.Generator().manual_seed(seed)).chunked for seed in range(60)]
    assert 15 < sum(chunked) < 45


def test_training_lowers_the_loss_and_reaches_every_weight(flow: Flow) -> None:
    flow.requires_grad_(True).train()
    batch = batch_of([8, 6])
    draws = draw(FlowTrainingConfig(unconditioned=0.0), batch, torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = flow_loss(flow, batch, draws)
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert [name for name, weight in flow.named_parameters() if weight.grad is None] == []


def test_what_does_not_fit_is_told(flow: Flow) -> None:
    batch = batch_of([4, 3])
    draws = draw(FlowTrainingConfig(), batch, torch.Generator())
    with pytest.raises(ValueError, match="speaker vectors"):
        flow_loss(flow, dataclasses.replace(batch, speakers=None), draws)
    with pytest.raises(ValueError, match="wants mel"):
        flow_loss(flow, dataclasses.replace(batch, mel=batch.mel[:, :4]), draws)
    with pytest.raises(ValueError, match="no whole number of frames"):
        dataclasses.replace(batch, mel=batch.mel[:, :7])
    with pytest.raises(ValueError, match="counts must be in 1 to 4"):
        dataclasses.replace(batch, counts=torch.tensor([4, 0]))
    with pytest.raises(ValueError, match=r"flow_training\.prompted must be in 0 to 1"):
        FlowTrainingConfig(prompted=1.5)
