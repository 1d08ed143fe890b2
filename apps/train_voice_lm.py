"""`duologue train voice-lm`: teaches the edge voice's token LM and its output projector, and writes weights, card and learning curve.

Reads the work folder that `train corpus` and `train codes` filled. The time given is that of the whole command, loading included, but for
the last look at the kept replies, which takes seconds. It may be stopped and run again; `--stage hidden` goes on from the weights with
the first half of the layers as they are.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from agent import weight_cache
from decoders import pointer_lm_data as data
from decoders.pointer_lm import PointerLM, PointerLMConfig, count
from decoders.pointer_lm_training import Losses, PointerTrainingConfig, Progress, Run, judge, precision, train
from decoders.pointer_lm_weights import WEIGHTS, load, save
from decoders.training_ranks import join_ranks
from duplex.errors import ConfigError, OutputError

CODES_A_SECOND = {"cuda": 700_000, "cpu": 1_500}
"""Codes trained a second, roughly: an H200 (estimated), one thread of a laptop."""

CODE_S = 4 * 256 / 22_050
"""Length of a code."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this training."""
    usual = PointerTrainingConfig()
    parser.add_argument("--work", type=Path, default=None, help="folder of the replies, codes and checkpoints")
    parser.add_argument("--minutes", type=float, default=5.0, help="time to train (default: 5)")
    parser.add_argument(
        "--passes", type=float, default=usual.most_passes, help=f"end after so many even so (default: {usual.most_passes:g})"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where (default: the GPU where there is one)"
    )
    parser.add_argument(
        "--stage", choices=("joint", "hidden"), default="joint", help="hidden: go on from --out, half the layers frozen"
    )
    parser.add_argument("--no-hidden", action="store_true", help="leave the LLM's hidden states out")
    parser.add_argument("--rows", type=int, default=None, help=f"rows of a batch (default: {usual.rows}, on a CPU 4)")
    parser.add_argument("--length", type=int, default=usual.length, help=f"positions of a row (default: {usual.length})")
    parser.add_argument("--rate", type=float, default=None, help=f"peak learning rate (default: {usual.rate})")
    parser.add_argument("--layers", type=int, default=None, help="transformer layers of a network that is not the shipped one")
    parser.add_argument("--width", type=int, default=None, help="its width")
    parser.add_argument("--shards", type=int, default=None, help="read only so many shards")
    parser.add_argument("--follow", action="store_true", help="wait for the first codes; later ones are taken up as they come")
    parser.add_argument("--first-shards", type=int, default=4, help="how many to wait for (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    parser.add_argument("--no-compile", action="store_true", help="do not compile the layers on a GPU")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go; card and curve lie beside them")
    parser.add_argument("--dry-run", action="store_true", help="only say what it will cost")


def run_training(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    began = time.monotonic()
    if args.minutes <= 0 or args.passes <= 0 or (args.rows is not None and args.rows < 1) or args.length < 64:
        raise ConfigError("Train for more than 0 minutes and passes, with 1 row or more of at least 64 positions.")
    device = torch.device("cuda" if args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available()) else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda, but PyTorch finds no GPU here.")
    work = args.work or weight_cache.home() / "train-voice"
    cost(args, device, work)
    if args.dry_run:
        return 0
    ranks = join_ranks(device)
    device = ranks.device(device)
    if args.follow and not ranks.alone:
        raise ConfigError("Several GPUs train together on shards that are all there; leave out --follow.")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cuda.enable_cudnn_sdp(False)  # its masked attention is the one that differs most between versions
    torch.manual_seed(args.seed)
    until = began + args.minutes * 60
    if args.follow:
        wait(work, args.first_shards, until)
    shelf = data.Shelf(work, device, hidden=not args.no_hidden, most=args.shards)
    config = training(args, device)
    net = network(args, shelf.llm_width(), device)
    print(f"{count(net):,} weights, {config.rows} rows of {config.length} positions a step", flush=True)
    checkpoint = work / f"voice-lm-{args.stage}-{net.config.width}-{net.config.layers}-{args.seed}.pt"
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        run, material, kept = train(shelf, net, config, checkpoint, tell, lambda done, _: save(done, args.out), until, ranks)
        ranks.end()
        if not ranks.first:
            return 0
        if not run.step:
            raise ConfigError("No time was left to train after loading; give more --minutes.")
        save(net, args.out)
        found = judged(net, material, kept, config)
        args.out.with_suffix(".md").write_text(card(args, net, material, run, found, device), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"The training's files could not be written: {error}.") from error
    draw(run, args.out.with_suffix(".png"))
    for name, losses in found.items():
        print(f"{name}: {described(losses)}")
    if device.type == "cuda":
        print(f"most GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    print(f"wrote {args.out} after {time.monotonic() - began:.0f} s")
    return 0


def wait(work: Path, shards: int, until: float) -> None:
    """Until so many shards have codes, or no more will come."""
    while time.monotonic() < until and not (work / "codes" / "DONE").exists():
        if len(list((work / "codes").glob("*.safetensors"))) >= shards:
            return
        time.sleep(0.5)


def cost(args: argparse.Namespace, device: torch.device, work: Path) -> None:
    """Say what it takes."""
    seconds = args.minutes * 60
    print(
        f"training for {seconds:.0f} s on {device.type}: about {seconds * CODES_A_SECOND[device.type] / 1e6:.1f} million codes; reads "
        f"{work}, needs its hidden states in memory (1.8 kB an LLM token) and 10 GB more on a GPU; writes 30 MB and a checkpoint "
        "of 180 MB. It may be stopped and run again.",
        flush=True,
    )


def training(args: argparse.Namespace, device: torch.device) -> PointerTrainingConfig:
    """The settings of this run."""
    usual = PointerTrainingConfig()
    hidden = args.stage == "hidden"
    return PointerTrainingConfig(
        seconds=args.minutes * 60,
        most_passes=args.passes,
        rows=args.rows or (usual.rows if device.type == "cuda" else 4),
        length=args.length,
        rate=args.rate or usual.rate * (0.3 if hidden else 1.0),
        hidden=0.0 if args.no_hidden else 1.0 if hidden else usual.hidden,
        frozen=hidden,
        seed=args.seed,
        compile=not args.no_compile,
    )


def network(args: argparse.Namespace, llm_width: int, device: torch.device) -> PointerLM:
    """A fresh network, or that of `--out` for the second stage."""
    if args.stage == "hidden":
        return load(args.out).to(device).requires_grad_(True)
    shipped = PointerLMConfig()
    layers, width = args.layers or shipped.layers, args.width or shipped.width
    heads = max(width // 64, 1)
    return PointerLM(
        PointerLMConfig(width=width, layers=layers, heads=heads, mlp=4 * width, head_width=width // 2, llm_width=llm_width)
    ).to(device)


def judged(net: PointerLM, material: data.Material, kept: data.Stock, config: PointerTrainingConfig) -> dict[str, Losses]:
    """Losses on the kept replies in every way of reading them."""
    with precision(material.table.device):
        found = {"groups, without hidden states": judge(net, material, kept, config, hidden=False, plain=False)}
        if material.replies.hidden is not None:
            found["groups, with hidden states"] = judge(net, material, kept, config, hidden=True, plain=False)
        found["all text first, without hidden states"] = judge(net, material, kept, config, hidden=False, plain=True)
    return found


def described(losses: Losses) -> str:
    """Losses in words."""
    digits = " ".join(f"{value:.3f}" for value in losses.digits)
    return (
        f"{losses.total:.3f} nats per code (digits {digits}, advance {losses.advance:.3f}); {losses.advance_right:.1%} of the advances "
        f"right; {losses.codes:,} codes"
    )


def tell(progress: Progress) -> None:
    """One line."""
    speed = progress.codes / max(progress.seconds, 1e-9)
    print(
        f"voice-lm step {progress.step}, {progress.seconds:.0f} of {progress.of_seconds:.0f} s, loss {progress.loss:.4f} nats per code, "
        f"{progress.epochs:.2f} passes over {progress.replies:,} replies, {speed / 1000:.1f} k codes/s, rate {progress.rate:.1e}",
        flush=True,
    )


def draw(run: Run, file: Path) -> None:
    """The learning curve; without it the training still counts."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 4))
        million = [codes / 1e6 for _, codes, _, _ in run.curve]
        axes.plot(million, [loss for _, _, loss, _ in run.curve], label="training")
        looked = [(codes / 1e6, held) for _, codes, _, held in run.curve if held == held]
        axes.plot([x for x, _ in looked], [y for _, y in looked], "o-", label="kept replies, with hidden states")
        axes.set_xlabel("codes seen, millions")
        axes.set_ylabel("loss, nats per code")
        axes.set_title("Voice LM")
        axes.legend()
        axes.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(file, dpi=110)
        pyplot.close(figure)
    except Exception as error:
        print(f"the learning curve could not be drawn: {error}")


def card(
    args: argparse.Namespace, net: PointerLM, material: data.Material, run: Run, found: dict[str, Losses], device: torch.device
) -> str:
    """The model card."""
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "a CPU"
    c = net.config
    lines = "\n".join(f"* {name}: {described(losses)}" for name, losses in found.items())
    hours = len(material.replies.codes) * CODE_S / 3600
    command = f"duologue train voice-lm --minutes {args.minutes:g} --passes {args.passes:g} --stage {args.stage} --seed {args.seed}"
    return f"""# The edge voice's token LM and output projector

{count(net):,} weights, fp16: an output projector (Linear on concat(token embedding, hidden state)), {c.layers} transformer layers of
width {c.width}, and heads that write a code as {len(c.levels)} digits, then how far the pointer goes on along the phones.

* Made by: `{command}{" --no-hidden" if args.no_hidden else ""}`, on {machine}: {run.seconds:.0f} s, {run.step:,} steps,
  {run.epochs:.1f} passes, {run.codes / 1e6:.0f} million codes.
* Data: {len(material.whole):,} replies of the LLM ({hours:.1f} h) as the VITS voice "joe" says them, in codes of the edge
  speech tokenizer; the last 1 % of each shard kept back.
* Loss on the replies that were kept back:
{lines}
* Limits: English, one synthetic voice. It can only be as good as its teacher and the tokenizer.
* Licence: Apache-2.0 for the weights. The voice "joe" was fine-tuned by its publisher from "lessac", whose Blizzard 2013 data has terms of
  its own; the LLM is Qwen2.5-Coder-0.5B-Instruct (Apache-2.0).
"""
