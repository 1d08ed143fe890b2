"""Teaching the pointer LM: five digits and the pointer's advance by cross entropy, on packed rows, until a time budget is used up.

Notable: the learning rate follows the share of the time that has passed, so a run ends well however fast the machine is. Hidden states
are left out for some documents, so one set of weights speaks with them and without. Whatever can go wrong on a machine that was never
tried falls back: compiling to plain layers, a loss that is no number to the last checkpoint with half the rate.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from decoders import pointer_lm_data as data
from decoders.pointer_lm import PointerLM, PointerLMConfig
from decoders.pointer_lm_data import Batch, Material, Shelf, Stock
from decoders.training_ranks import ALONE, Ranks
from duplex.errors import WeightsError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PointerTrainingConfig:
    """How the network is taught."""

    seconds: float = 300.0
    """Time to train; a run that goes on adds its time to that of the runs before it."""
    most_steps: int | None = None
    """Steps after which it ends even so."""
    most_passes: float = 8.0
    """Passes over the replies after which it ends even so: on 87 hours, 23 passes did worse on kept replies than 7."""
    rows: int = 128
    """Rows of a batch."""
    length: int = 512
    """Positions of a row; longer replies are left out."""
    rate: float = 1.5e-3
    """Peak learning rate."""
    least_rate: float = 0.02
    """Share of it that is left at the end."""
    warm_up: float = 0.03
    """Share of the time in which it rises."""
    decay: float = 0.05
    """Weight decay of the matrices."""
    clip: float = 1.0
    """Longest gradient."""
    hidden: float = 0.7
    """Share of documents whose hidden states are given."""
    plain: float = 0.15
    """Share of replies in the plain layout."""
    cut: float = 0.3
    """Share of replies with several sentences that are cut into two sequences."""
    noise: float = 0.02
    """Share of codes that are told a wrong code before them, as the network's own will sometimes be."""
    frozen: bool = False
    """Whether the first half of the layers and the reading of codes stay as they are."""
    seed: int = 0
    """Of the first weights and of the order."""
    save_every_s: float = 60.0
    """Time between checkpoints."""
    tell_every_s: float = 5.0
    """Time between reports."""
    judge_every_s: float = 30.0
    """Time between looks at the replies that were kept."""
    read_every_s: float = 10.0
    """Least time between looks for shards that have come."""
    compile: bool = True
    """Whether layers are compiled on a GPU."""

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.most_passes <= 0 or self.rows < 1 or self.length < 16:
            raise ValueError("training needs more than 0 seconds and passes, 1 row and rows of 16 positions")
        for name in ("hidden", "plain", "cut", "noise", "warm_up", "least_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in 0 to 1, not {getattr(self, name)}")


@dataclass(slots=True)
class Losses:
    """Mean losses in nats per code."""

    digits: tuple[float, ...]
    """Of each digit."""
    advance: float
    """Of the pointer's advance."""
    advance_right: float
    """Share of codes whose likeliest advance is the true one."""
    codes: int = 0
    """Codes looked at."""

    @property
    def total(self) -> float:
        """All digits and the advance."""
        return sum(self.digits) + self.advance


@dataclass(slots=True)
class Progress:
    """Where training is."""

    step: int
    seconds: float
    of_seconds: float
    loss: float
    """Running mean, nats per code."""
    codes: int
    """Codes seen so far."""
    epochs: float
    rate: float
    replies: int
    """Replies that are there."""


@dataclass(slots=True)
class Run:
    """What a checkpoint keeps beside the weights."""

    step: int = 0
    seconds: float = 0.0
    codes: int = 0
    epochs: float = 0.0
    slower: float = 1.0
    """Factor on the rate, halved after each loss that was no number."""
    curve: list[list[float]] = field(default_factory=list)
    """[seconds, codes, running loss, loss on kept replies or nan]"""


def losses(net: PointerLM, material: Material, one: Batch) -> tuple[Tensor, Tensor]:
    """Nats [q + 1] per code of each digit and of the advance, with gradients, and the share [] of right advances."""
    replies = material.replies
    embeddings = material.table[replies.tokens[one.tokens]]
    hidden = None if replies.hidden is None else replies.hidden[one.tokens]
    text = net.projector(embeddings, hidden, one.given)
    x = net.embed(one.kinds, one.text_at, text, one.code_at, one.features)
    states = net.states(x, one.positions, one.documents).flatten(0, 1).index_select(0, one.code_at)
    scores = net.chain(states, one.digits)
    targets = (*one.digits.unbind(1), one.advance)
    each = torch.stack([F.cross_entropy(score.float(), target) for score, target in zip(scores, targets, strict=True)])
    return each, (scores[-1].argmax(1) == one.advance).float().mean()


def split(material: Material, config: PointerTrainingConfig, net_config: PointerLMConfig) -> tuple[Stock, Stock]:
    """The replies to learn from, and those that are kept."""
    if bool(material.kept.all()):
        raise WeightsError("every reply with codes is kept for judging; training needs more of them")
    generator = torch.Generator().manual_seed(config.seed)
    learn, kept = (material.whole.take(part) for part in (~material.kept, material.kept))
    if not len(kept):
        kept = learn.take(torch.arange(1, device=learn.tokens.device))
    return (
        data.stock(net_config, material.replies, learn, config.length, generator),
        data.stock(net_config, material.replies, kept, config.length, generator),
    )


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 products on a GPU, float32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def judge(
    net: PointerLM, material: Material, kept: Stock, config: PointerTrainingConfig, *, hidden: bool, plain: bool, most: int = 8
) -> Losses:
    """Losses on the kept replies, of which the first that fill `most` batches are taken."""
    device = material.table.device
    lengths = (kept.positions.offsets[1:] - kept.positions.offsets[:-1]).tolist()
    rows = data.packed(data.pack(lengths, (kept.plain if plain else kept.whole).tolist(), config.length)).to(device)
    rows = torch.cat((rows, rows.new_full((-len(rows) % config.rows, rows.shape[1]), -1)))  # every batch has one shape
    sums, right, count = torch.zeros(len(net.config.levels) + 1, device=device), torch.zeros((), device=device), 0
    net.train(False)
    with torch.no_grad(), precision(device):
        for start in range(0, min(len(rows), most * config.rows), config.rows):
            one = data.batch(net.config, kept, rows[start : start + config.rows], config.length, float(hidden), 0.0)
            each, hits = losses(net, material, one)
            sums += each * len(one.code_at)
            right += hits * len(one.code_at)
            count += len(one.code_at)
    net.train()
    means = (sums / max(count, 1)).tolist()
    return Losses(tuple(means[:-1]), means[-1], float(right) / max(count, 1), count)


def train(
    shelf: Shelf,
    net: PointerLM,
    config: PointerTrainingConfig,
    checkpoint: Path,
    tell: Callable[[Progress], None],
    keep: Callable[[PointerLM, Run], None],
    until: float | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Run, Material, Stock]:
    """Teach `net` in place; goes on from `checkpoint` when it is there, and leaves the newest state in it.

    Shards that come while it trains are taken up at the next pass. tell, keep: called at each report, and with each checkpoint to
    write the weights out. until: `time.monotonic()` at which this run ends, `config.seconds` from now if None. ranks: those that train
    together on shards that are all there; the first one's clock counts, and it alone tells and saves. Returns the material and the kept
    replies, too. Raises WeightsError for a checkpoint or data that do not fit.
    """
    optimizer = _optimizer(net, config)
    run = _resume(checkpoint, net, optimizer) if checkpoint.exists() else Run()
    material = shelf.read()
    learn, kept = split(material, config, net.config)
    if not run.step:
        _measure(net, material)
    before, began = run.seconds, ranks.agreed(time.monotonic())
    until = began + config.seconds if until is None else ranks.agreed(until)
    told = saved = judged = read = began
    running, recent = math.nan, list[Tensor]()
    compiled = _compile(net, shelf.device) if config.compile else False
    net.train()
    while True:
        if ranks.alone and time.monotonic() - read > config.read_every_s and shelf.waiting():
            del material, learn, kept  # the largest of it is not there twice
            material, read = shelf.read(), time.monotonic()
            learn, kept = split(material, config, net.config)
        rows = _pass(learn, config, np.random.default_rng((config.seed, run.step)), ranks.count * config.rows).to(shelf.device)
        rows = rows[: len(rows) // ranks.count * ranks.count][ranks.index :: ranks.count]
        for start in range(0, len(rows) - config.rows + 1, config.rows):
            now = ranks.agreed(time.monotonic())
            run.seconds = before + now - began
            passed = run.seconds / max(before + until - began, 1e-3)
            passed = max(passed, run.epochs / config.most_passes, run.step / config.most_steps if config.most_steps else 0.0)
            if passed >= 1.0:
                if ranks.first:
                    _save(checkpoint, net, optimizer, run)
                return run, material, kept
            rate = config.rate * run.slower * _share(passed, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            try:
                loss, codes = _step(net, material, learn, rows[start : start + config.rows], optimizer, config, ranks)
            except Exception as error:
                if not compiled or not ranks.alone or isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                log.warning("compiled layers failed (%s); going on without compiling", str(error).splitlines()[:1])
                compiled = _plain(net)
                continue
            recent.append(loss)
            run.step, run.codes, run.epochs = run.step + 1, run.codes + ranks.count * codes, run.epochs + config.rows / len(rows)
            if len(recent) < 10 and now - told < config.tell_every_s:
                continue
            mean = float(ranks.mean(torch.stack(recent).mean()))
            recent.clear()
            if not math.isfinite(mean):
                run = _step_back(checkpoint, net, optimizer, run)
                continue
            running = mean if math.isnan(running) else 0.8 * running + 0.2 * mean
            if now - told >= config.tell_every_s:
                told, held = now, math.nan
                of_seconds, replies = before + until - began, len(material.whole)
                if ranks.first:
                    tell(Progress(run.step, run.seconds, of_seconds, running, run.codes, run.epochs, rate, replies))
                if now - judged >= config.judge_every_s:
                    judged = now
                    held = judge(net, material, kept, config, hidden=material.replies.hidden is not None, plain=False, most=1).total
                run.curve.append([run.seconds, run.codes, running, held])
            if ranks.first and now - saved >= config.save_every_s:
                saved = now
                _save(checkpoint, net, optimizer, run)
                keep(net, run)


def _pass(learn: Stock, config: PointerTrainingConfig, order: np.random.Generator, least: int) -> Tensor:
    """Rows of one pass over the replies in random order, [rows, documents]; at least so many of them."""
    lengths = (learn.positions.offsets[1:] - learn.positions.offsets[:-1]).tolist()
    rows = data.packed(data.pack(lengths, data.epoch(learn, config.plain, config.cut, order), config.length))
    rows = rows[torch.from_numpy(order.permutation(len(rows)))]
    return rows if len(rows) >= least else rows[torch.arange(least) % len(rows)]


def _step(
    net: PointerLM,
    material: Material,
    learn: Stock,
    rows: Tensor,
    optimizer: torch.optim.Optimizer,
    config: PointerTrainingConfig,
    ranks: Ranks,
) -> tuple[Tensor, int]:
    """One update. Returns its loss [] on the device, and how many codes this process's part was of."""
    one = data.batch(net.config, learn, rows, config.length, config.hidden, config.noise)
    optimizer.zero_grad(set_to_none=True)
    with precision(rows.device):
        each, _ = losses(net, material, one)
        loss = each.sum()
    torch.autograd.backward(loss)
    ranks.average_gradients(net.parameters())
    torch.nn.utils.clip_grad_norm_([p for p in net.parameters() if p.grad is not None], config.clip)
    optimizer.step()
    return loss.detach(), len(one.code_at)


def _share(passed: float, config: PointerTrainingConfig) -> float:
    """Share of the peak rate after a share of the time: up in a line, down in a line."""
    if passed < config.warm_up:
        return 0.02 + 0.98 * passed / config.warm_up
    left = (1.0 - passed) / (1.0 - config.warm_up) if config.warm_up < 1.0 else 1.0
    return config.least_rate + (1.0 - config.least_rate) * max(left, 0.0)


def _optimizer(net: PointerLM, config: PointerTrainingConfig) -> torch.optim.Optimizer:
    if config.frozen:
        for name, parameter in net.named_parameters():
            half = any(name.startswith(f"blocks.{index}.") for index in range(net.config.layers // 2))
            parameter.requires_grad_(not (half or name in ("features", "kinds")))
    named = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in named if parameter.ndim == 2 and name.endswith("weight")]
    others = [parameter for name, parameter in named if not (parameter.ndim == 2 and name.endswith("weight"))]
    groups = [{"params": matrices, "weight_decay": config.decay}, {"params": others, "weight_decay": 0.0}]
    fused = next(net.parameters()).device.type == "cuda"
    return torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.95), fused=fused)


def _measure(net: PointerLM, material: Material, most: int = 50_000) -> None:
    """Give the projector the means and deviations of what it reads, from rows spread over everything."""
    tokens = material.replies.tokens
    chosen = torch.linspace(0, len(tokens) - 1, min(len(tokens), most), device=tokens.device).long()
    hidden = material.replies.hidden
    net.projector.measure(material.table[tokens[chosen]], None if hidden is None else hidden[chosen])


def _compile(net: PointerLM, device: torch.device) -> bool:
    """Compile the layers, which share one piece of code, where there is a GPU; the work comes with the first step. Whether it was done."""
    if device.type != "cuda":
        return False
    for block in net.blocks:
        block.compile(dynamic=False)
    return True


def _plain(net: PointerLM) -> bool:
    """Take the compiled layers back."""
    for block in net.blocks:
        block._compiled_call_impl = None
    return False


def _save(file: Path, net: PointerLM, optimizer: torch.optim.Optimizer, run: Run) -> None:
    part = file.with_suffix(".part")
    torch.save(
        {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "run": asdict(run), "config": asdict(net.config)}, part
    )
    os.replace(part, file)


def _resume(file: Path, net: PointerLM, optimizer: torch.optim.Optimizer) -> Run:
    try:
        kept = torch.load(file, weights_only=True, map_location=net.kinds.device)
        net.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
        return Run(**kept["run"])
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, EOFError, UnpicklingError) as error:
        raise WeightsError(f"{file} is no checkpoint that training can go on from ({error}); delete it to begin anew.") from error


def _step_back(checkpoint: Path, net: PointerLM, optimizer: torch.optim.Optimizer, run: Run) -> Run:
    """After a loss that is no number: the newest good state, and half the rate."""
    if not checkpoint.exists() or run.slower < 0.02:
        raise WeightsError("the loss is no number and there is no good state to go back to; train with a lower --rate")
    log.warning("the loss is no number at step %d; back to the last checkpoint with half the rate", run.step)
    kept = _resume(checkpoint, net, optimizer)
    kept.seconds, kept.slower = run.seconds, run.slower * 0.5
    return kept
