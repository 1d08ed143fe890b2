"""Teaching the pointer LM at a toy size: it learns, goes on where it was stopped, and documents do not see each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from decoders import pointer_lm_data as data
from decoders import pointer_lm_weights
from decoders.pointer_lm import PointerLM, PointerLMConfig
from decoders.pointer_lm_training import PointerTrainingConfig, Progress, Run, judge, losses, split, train
from duplex.errors import WeightsError
from tests.decoders import voice_replies

CONFIG = PointerLMConfig(width=32, layers=2, heads=2, mlp=64, head_width=16, llm_width=8)
QUICK = PointerTrainingConfig(
    seconds=600,
    most_steps=60,
    rows=1,
    length=256,
    rate=1e-2,
    tell_every_s=0.0,
    judge_every_s=1.0,
    save_every_s=0.2,
    read_every_s=0.0,
)


def material(folder: Path, learnable: bool = True) -> data.Material:
    voice_replies.write(folder, replies=24, learnable=learnable)
    return data.load(folder, torch.device("cpu"), held=0.1)


def test_it_learns_what_can_be_learnt_and_goes_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    held = material(tmp_path / "work")
    shelf = data.Shelf(tmp_path / "work", torch.device("cpu"), held=0.1)
    net = PointerLM(CONFIG)
    told: list[Progress] = []
    kept_at: list[int] = []
    checkpoint = tmp_path / "net.pt"

    def keep(net: PointerLM, run: Run) -> None:
        kept_at.append(run.step)

    _, kept = split(held, QUICK, CONFIG)
    before = judge(net, held, kept, QUICK, hidden=False, plain=False)
    run, _, _ = train(shelf, net, QUICK, checkpoint, told.append, keep)
    after = judge(net, held, kept, QUICK, hidden=False, plain=False)
    assert told and kept_at and run.step == 60
    assert before.total > 9.5
    assert after.total < 0.75 * before.total
    assert after.digits[0] < 0.7 * before.digits[0]  # a function of the phone
    again = PointerLM(CONFIG)
    more, _, _ = train(shelf, again, replace(QUICK, most_steps=70), checkpoint, told.append, lambda _, run: None)
    assert more.step == 70 and more.codes > run.codes
    assert judge(again, held, kept, QUICK, hidden=False, plain=False).total < 1.1 * after.total
    ended, _, _ = train(shelf, again, replace(QUICK, most_steps=None, seconds=1e-3), checkpoint, told.append, lambda _, run: None)
    assert 70 <= ended.step <= 71  # by the clock
    passes, _, _ = train(
        shelf, again, replace(QUICK, most_steps=None, most_passes=ended.epochs + 1e-6), checkpoint, told.append, keep
    )
    assert 70 <= passes.step <= 72  # by the passes
    with pytest.raises(WeightsError, match="no checkpoint that training can go on from"):
        train(shelf, PointerLM(replace(CONFIG, layers=3)), QUICK, checkpoint, told.append, lambda _, run: None)


def test_shards_that_come_later_are_taken_up(tmp_path: Path) -> None:
    held = material(tmp_path / "work")
    late = tmp_path / "work" / "codes" / "001.safetensors"
    late.rename(tmp_path / "late")
    shelf = data.Shelf(tmp_path / "work", torch.device("cpu"), held=0.1)
    first = shelf.read()
    assert 0 < len(first.whole) < len(held.whole)
    counts: list[int] = []

    def tell(progress: Progress) -> None:
        counts.append(progress.replies)
        if progress.step == 2:
            (tmp_path / "late").rename(late)

    _, grown, kept = train(shelf, PointerLM(CONFIG), replace(QUICK, most_steps=40), tmp_path / "net.pt", tell, lambda _, run: None)
    assert counts[0] == len(first.whole) and counts[-1] == len(held.whole)
    assert torch.equal(grown.replies.codes, held.replies.codes) and torch.equal(grown.replies.pointer, held.replies.pointer)
    assert grown.replies.hidden is not None and held.replies.hidden is not None
    assert torch.equal(grown.replies.hidden, held.replies.hidden)
    assert len(kept.whole) == int(held.kept.sum())


def test_what_a_document_gets_is_the_same_alone_and_packed(tmp_path: Path) -> None:
    held = material(tmp_path)
    torch.manual_seed(0)
    net = PointerLM(CONFIG).eval()
    with torch.no_grad():  # otherwise hidden states count for nothing at first
        net.projector.linear.weight.normal_()
    stock = data.stock(CONFIG, held.replies, held.whole, 256, torch.Generator().manual_seed(0))
    whole = stock.whole.tolist()
    lengths = (stock.positions.offsets[1:] - stock.positions.offsets[:-1]).tolist()
    rows = data.pack(lengths, whole, 256)
    assert max(map(len, rows)) > 1
    with torch.no_grad():
        one = data.batch(CONFIG, stock, data.packed(rows), 256, 1.0, 0.0)
        other = data.batch(CONFIG, stock, data.packed([[index] for row in rows for index in row]), 256, 1.0, 0.0)
        assert torch.equal(one.digits, other.digits)
        (packed, right), (alone, right_alone) = losses(net, held, one), losses(net, held, other)
    torch.testing.assert_close(packed, alone)
    assert float(right) == float(right_alone)


def test_half_precision_gives_nearly_the_same_loss(tmp_path: Path) -> None:
    held = material(tmp_path)
    torch.manual_seed(0)
    net = PointerLM(CONFIG).eval()
    stock = data.stock(CONFIG, held.replies, held.whole, 256, torch.Generator().manual_seed(0))
    one = data.batch(CONFIG, stock, data.packed([[0, 1]]), 256, 1.0, 0.0)
    exact, _ = losses(net, held, one)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = losses(net, held, one)
    torch.autograd.backward(rough.sum())
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.02)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


def test_later_positions_change_nothing_before() -> None:
    torch.manual_seed(0)
    net = PointerLM(CONFIG).eval()
    x, places, documents = torch.randn(1, 12, 32), torch.arange(12)[None], torch.zeros(1, 12, dtype=torch.long)
    changed = x.clone()
    changed[:, 7:] += 1.0
    with torch.no_grad():
        torch.testing.assert_close(net.states(x, places, documents)[:, :7], net.states(changed, places, documents)[:, :7])


def test_hidden_states_count_only_where_they_are_given(tmp_path: Path) -> None:
    held = material(tmp_path)
    net = PointerLM(CONFIG).eval()
    rows = data.packed([[0], [1]])
    stock = data.stock(CONFIG, held.replies, held.whole, 256, torch.Generator().manual_seed(0))

    def loss(hidden: float) -> float:
        with torch.no_grad():
            return float(losses(net, held, data.batch(CONFIG, stock, rows, 256, hidden, 0.0))[0].sum())

    assert loss(0.0) == loss(1.0)  # that half starts at zero
    with torch.no_grad():
        net.projector.linear.weight.normal_()
    assert loss(0.0) != loss(1.0)
    assert held.replies.hidden is not None
    held.replies.hidden.zero_()
    net.projector.mean.zero_()
    assert loss(0.0) == loss(1.0)


def test_frozen_layers_stay(tmp_path: Path) -> None:
    material(tmp_path / "work")
    shelf, net = data.Shelf(tmp_path / "work", torch.device("cpu"), held=0.1), PointerLM(CONFIG)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train(shelf, net, replace(QUICK, most_steps=2, frozen=True), tmp_path / "net.pt", lambda _: None, lambda _, run: None)
    same = {name for name, value in net.state_dict().items() if torch.equal(value, before[name])}
    assert {"features", "kinds", "blocks.0.qkv.weight", "blocks.0.up.weight"} <= same
    assert not {"blocks.1.qkv.weight", "projector.linear.weight", "chain.drawn"} & same


def test_the_file_gives_the_same_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = PointerLM(CONFIG).half().float()
    net.projector.mean.fill_(70_000.0)  # above float16
    file = tmp_path / "voice_lm.safetensors"
    pointer_lm_weights.save(net, file)
    loaded = pointer_lm_weights.load(file)
    assert loaded.config == CONFIG
    for name, value in net.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError):
        pointer_lm_weights.load(file)
