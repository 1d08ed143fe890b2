"""`duologue train tokenizer`: teach the speech tokenizer on the teacher's latents of the replies that `train corpus` wrote.

Everything stays on the device: the teacher speaks the replies there (nothing is stored but the replies' text), crops are cut there.
Written: W/tokenizer.safetensors, the weights with card and learning curve at --out, and W/teacher.safetensors, which `train codes` and
`train flow` use.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from apps.train_teacher import (
    add_shared_arguments,
    chosen_device,
    load_teacher,
    reply_shards,
    wait_for_hours,
    work_folder,
)
from decoders.speech_tokenizer import RATIO, SpeechTokenizer, SpeechTokenizerConfig
from decoders.speech_tokenizer_training import (
    Speech,
    TokenizerJudgement,
    TokenizerProgress,
    TokenizerTrainingConfig,
    judge_tokenizer,
    train_tokenizer,
)
from decoders.teacher import FRAMES_HZ, Taught, latents_only
from decoders.training_ranks import Ranks, join_ranks
from decoders.vits_net import VitsNet
from duplex.errors import ConfigError, InputError, OutputError

WEIGHTS = Path(__file__).resolve().parent.parent / "decoders" / "weights" / "tokenizer.safetensors"
HELD = 0.01  # share of the items, the last ones, kept for judging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this training."""
    add_shared_arguments(parser)
    parser.add_argument("--hours", type=float, default=30.0, help="hours of speech to learn from (default: 30)")
    parser.add_argument("--minutes", type=float, default=1.5, help="time to learn (default: 1.5)")
    parser.add_argument("--rows", type=int, default=None, help="crops per step (default: 256 on a GPU, 16 on a CPU)")
    parser.add_argument("--codes", type=int, default=64, help="codes per crop (default: 64, 3 s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of the crops (default: 0)")
    parser.add_argument("--wait", action="store_true", help="wait until there are replies for --hours, or no more will come")
    parser.add_argument("--wait-minutes", type=float, default=10.0, help="how long to wait at most (default: 10)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go; card and curve lie beside them")
    parser.add_argument(
        "--pack-teacher", type=Path, default=None, metavar="FILE", help="only pack the teacher into FILE (31 MB, fp16)"
    )


def run_training(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    if args.hours <= 0 or args.minutes <= 0 or args.codes < 8 or (args.rows is not None and args.rows < 1):
        raise ConfigError("Train the tokenizer for some minutes on some hours, with at least 1 row of 8 codes.")
    work, device = work_folder(args), chosen_device(args)
    gigabytes = args.hours * 3600 * FRAMES_HZ * 192 * 2 / 1e9
    print(
        f"tokenizer: {args.hours:g} h of latents ({gigabytes:.1f} GB on {device}, plus about {8 if device.type == 'cuda' else 1} GB to "
        f"learn), {args.minutes:g} min of learning; about 120 MB on disk in {work}. It may be stopped and run again.",
        flush=True,
    )
    if args.dry_run:
        return 0
    try:
        work.mkdir(parents=True, exist_ok=True)
        if args.pack_teacher is not None:
            load_teacher(args, work, device).pack(args.pack_teacher)
            print(f"wrote {args.pack_teacher}")
            return 0
        ranks = join_ranks(device)
        if args.wait and not ranks.alone:
            raise ConfigError("Several GPUs train together on shards that are all there; leave out --wait.")
        return _train(args, work, ranks.device(device), ranks)
    except OSError as error:
        raise OutputError(f"The training's files could not be written: {error}.") from error


def _train(args: argparse.Namespace, work: Path, device: torch.device, ranks: Ranks) -> int:
    with ranks.first_first():
        teacher = load_teacher(args, work, device)
    if args.wait:
        wait_for_hours(work, args.hours, args.wait_minutes * 60)
    speech, held = _speech(work, args.hours, teacher, device)
    cuda = device.type == "cuda"
    config = TokenizerTrainingConfig(
        seconds=args.minutes * 60, rows=args.rows or (256 if cuda else 16), codes=args.codes, seed=args.seed
    )
    if not cuda:
        config = replace(config, sound_rows=2)
    sizes = SpeechTokenizerConfig(channels=teacher.config.channels)
    checkpoint = work / f"tokenizer-{args.hours:g}-{args.seed}.pt"
    net, curve = train_tokenizer(speech, teacher, sizes, config, checkpoint, _tell, lambda text: print(text, flush=True), ranks)
    ranks.end()
    if not ranks.first:
        return 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    net.save(args.out)
    shipped = SpeechTokenizer.load(args.out, device)  # judged as it is shipped: in fp16
    found = judge_tokenizer(shipped, held, teacher, min(args.codes, held.codes()))
    print(_figures(found), flush=True)
    args.out.with_suffix(".md").write_text(_card(args, net, found, speech, held, device), encoding="utf-8")
    shipped.save(work / "tokenizer.safetensors")
    _draw(args.out.with_suffix(".png"), curve)
    print(f"wrote {args.out} and {work / 'tokenizer.safetensors'}; next: `duologue train codes`", flush=True)
    return 0


def _speech(work: Path, hours: float, teacher: VitsNet, device: torch.device) -> tuple[Speech, Speech]:
    """What to learn from and what is kept back, spoken by the teacher."""
    parts: list[Taught] = []
    began, there = time.monotonic(), 0.0
    for shard in reply_shards(work):
        if there >= hours:
            break
        parts.append(latents_only(shard, device, teacher))
        there += parts[-1].hours()
        took = time.monotonic() - began
        print(f"spoken {there:.2f} h in {took:.1f} s, {there * 3600 / max(took, 1e-6):.0f} times real time", flush=True)
    if not parts or not there:
        raise InputError(f"There are no replies to learn from in {work / 'replies'}; run `duologue train corpus` first.")
    latents = torch.cat([one.latents for one in parts])
    phones = torch.cat([one.frame_phones() for one in parts])
    sizes = torch.cat([one.code_offsets.diff() for one in parts])
    ends = sizes.cumsum(0)
    kept_items = min(round(len(sizes) * (1 - HELD)), len(sizes) - 1)
    cut = int(ends[max(kept_items, 1) - 1]) * RATIO
    return Speech(latents[:cut], phones[:cut]), Speech(latents[cut:], phones[cut:])


def _tell(progress: TokenizerProgress) -> None:
    losses = ", ".join(f"{name} {value:.4f}" for name, value in progress.losses.items())
    print(
        f"tokenizer step {progress.step}, {progress.seconds:.0f} of {progress.budget:.0f} s, {losses}, {progress.steps_per_s:.1f} steps/s",
        flush=True,
    )


def _figures(found: TokenizerJudgement) -> str:
    digits = " ".join(f"{value:.2f}" for value in found.digit_perplexity)
    return (
        f"kept back: latents {found.l1:.3f} (L1, normalised), log-mel {found.mel:.3f}, phones {found.phone_accuracy:.1%}; digits used "
        f"{digits} of 7 5 5 5 5, joint code {found.code_perplexity:.0f} of 4375 ({found.codes_used} met)"
    )


def _card(
    args: argparse.Namespace, net: SpeechTokenizer, found: TokenizerJudgement, speech: Speech, held: Speech, device: torch.device
) -> str:
    size = sum(parameter.numel() for parameter in net.parameters())
    hours, kept = (one.codes() * RATIO / FRAMES_HZ / 3600 for one in (speech, held))
    digits = ", ".join(f"{value:.2f}" for value in found.digit_perplexity)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    return f"""# The speech tokenizer

{size:,} parameters, fp16: VITS latents (192 at 86.13 Hz) to codes at 21.53 Hz, five digits each (levels 7, 5, 5, 5, 5), and back.
`decoders/speech_tokenizer.py` says how. A conversation needs the meaning of its codes only; the encoder made the targets of the voice LM
and of the flow.

* Made by: `duologue train tokenizer --hours {args.hours:g} --minutes {args.minutes:g} --seed {args.seed}` on {where}
* Data: {hours:.1f} h of the VITS voice "joe" speaking the LLM's own replies (`duologue train corpus`); the last {kept:.2f} h kept back.
* Kept back: normalised latents {found.l1:.3f} (L1), log-mel of the sound {found.mel:.3f} nepers, phone of each frame right in
  {found.phone_accuracy:.1%}.
* Use of the codes there: perplexity of the digits {digits} (of 7, 5, 5, 5, 5), of the joint code {found.code_perplexity:.0f} (of 4,375;
  {found.codes_used} met).
* Limits: one voice, English.
* Licence: Apache-2.0 for the weights. The voice "joe" was fine-tuned by its publisher from "lessac", whose Blizzard 2013 data has terms of
  its own.
"""


def _draw(path: Path, curve: list[list[float]]) -> None:
    """The learning curve; a machine without matplotlib goes without it."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for index, name in enumerate(("latents", "log-mel of the sound", "phones (nats)"), 1):
        axes.plot([row[0] for row in curve], [row[index] for row in curve], label=name)
    axes.set(xlabel="seconds of learning", ylabel="loss", yscale="log", title="Speech tokenizer")
    axes.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
