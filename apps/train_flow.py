"""`duologue train flow`: codes to latents, learnt from the teacher's speech, then brought down to few steps.

    replies -> [teacher, tokenizer] -> latents and codes, on the device -> directions -> few steps -> weights, card, picture

The speech is made anew at each start (seconds on a GPU) and never touches the disk. One reply in fifty is kept back; on those the report
compares the tokenizer's own decoder, the encoder's mean, the teacher flow and the shipped one at 1, 2, 4 and 10 steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch

from agent import weight_cache
from apps.train_flow_speech import KEPT_BACK, make_speech
from decoders import flow_voice
from decoders.flow import FlowConfig
from decoders.flow_judging import Judged, judge
from decoders.flow_polish import Polish
from decoders.flow_speech import Crops
from decoders.flow_trainer import TEACH, FlowTrainer, FlowTrainerConfig, Progress, begin, calm, judged, resume
from decoders.flow_voice import VOICE, VoiceFlow
from decoders.speech_tokenizer import SpeechTokenizer
from decoders.speech_tokenizer_training import SoundDistance
from decoders.training_ranks import join_ranks
from decoders.vits_net import VitsNet
from duplex.errors import ConfigError, InputError, OutputError

STEPS = (1, 2, 4, 10)
BYTES_PER_HOUR = 86.13 * 3600 * flow_voice.CHANNELS * 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this training."""
    usual = FlowTrainerConfig()
    parser.add_argument("--work", type=Path, default=None, help="folder of replies, tokenizer and checkpoints")
    parser.add_argument("--hours", type=float, default=40.0, help="most speech to learn from (default: 40)")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, the making of speech not counted (default: 4)")
    parser.add_argument("--distil", type=float, default=usual.distil_share, help="share of them for few steps (default: 0.3)")
    parser.add_argument("--polish", type=float, default=usual.polish_share, help="share of them for the sound (default: 0.2)")
    parser.add_argument(
        "--temperature", type=float, default=0.7, help="deviation of the noise that the sound is made from (default: 0.7)"
    )
    parser.add_argument("--rows", type=int, default=usual.rows, help="crops of a step (default: 128)")
    parser.add_argument("--length", type=int, default=usual.length, help="codes of a crop (default: 56)")
    parser.add_argument("--steps", type=int, default=VOICE.steps, help="steps that the file asks for (default: 1)")
    parser.add_argument("--device", default=None, help="cuda or cpu (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; no more than there are idle cores (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    parser.add_argument("--rate", type=float, default=usual.rate, help="highest learning rate (default: 0.001)")
    parser.add_argument("--polish-rate", type=float, default=usual.polish_rate, help="the same in the last part (default: 5e-05)")
    parser.add_argument("--start", type=Path, default=None, metavar="FILE", help="begin with these weights instead of random ones")
    parser.add_argument("--resume", action="store_true", help="go on from the work folder's checkpoint")
    parser.add_argument(
        "--out", type=Path, default=flow_voice.WEIGHTS, help="where the weights go; card and picture lie beside them"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what it will cost")


def run_training(args: argparse.Namespace, sizes: FlowConfig = VOICE) -> int:
    """Entry point; returns the exit code. sizes: of the flow."""
    if args.hours <= 0 or args.minutes <= 0 or args.steps < 1:
        raise ConfigError("Give more than 0 hours, more than 0 minutes and at least 1 step.")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    work = args.work or weight_cache.home() / "train-voice"
    shares, crops = (args.distil, args.polish), (args.rows, args.length)
    config = FlowTrainerConfig(60 * args.minutes, *shares, *crops, args.rate, polish_rate=args.polish_rate, seed=args.seed)
    if device.type == "cpu":  # where judging takes as long as ten steps
        config = dataclasses.replace(config, tell_s=150.0, save_s=150.0)
    activations = args.rows * args.length * 0.8e-3  # GB; in fp32 0.63 MB of a code are kept for the gradients
    print(
        f"{args.minutes:g} min of training on {device.type}, after the making of up to {args.hours:g} h of speech (about a second each "
        f"on a GPU); about {args.hours * BYTES_PER_HOUR / 1e9:.1f} GB for the speech and {activations:.1f} GB for a step; 150 MB on "
        "disk. It may be stopped and run again with --resume.",
        flush=True,
    )
    if args.dry_run:
        return 0
    ranks = join_ranks(device)
    device = ranks.device(device)
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    else:
        torch.set_float32_matmul_precision("high")
        torch.backends.cuda.enable_cudnn_sdp(False)  # makes a plan for every shape, and knows no gradient of a bias
    shards = sorted((work / "replies").glob("*.safetensors"))
    if not shards:
        raise InputError(f"There are no replies in {work / 'replies'}; run `duologue train corpus` first.")
    tokenizer = SpeechTokenizer.load(work / "tokenizer.safetensors", device)
    mean, deviation = tokenizer.mean.float(), tokenizer.deviation.float()
    began = time.monotonic()
    speech, held = make_speech(shards, tokenizer, args.hours, device)
    print(f"{len(speech) * 4 / 86.13 / 3600:.2f} h of speech after {time.monotonic() - began:.0f} s", flush=True)
    checkpoint = work / "flow.pt"
    if args.resume and checkpoint.exists():
        trainer = resume(checkpoint, sizes, config, device)
    else:
        start = flow_voice.load(args.start).flow if args.start else None
        trainer = begin(sizes, config, device, start)
    try:
        polish = None
        if config.polish_share:
            teacher = VitsNet.load(work / "teacher.safetensors", device)
            polish = Polish(SoundDistance(teacher, device), mean, deviation, args.temperature)
        trainer.run(speech, held, checkpoint, polish, _tell, ranks=ranks)
        ranks.end()
        if not ranks.first:
            return 0
        temperature = args.temperature if polish else calm(trainer.average, held, args.steps, spans=trainer.part != TEACH)
        table = report(trainer, tokenizer, held, temperature)
        print("\n" + table, flush=True)
        shipped = VoiceFlow(trainer.average, mean, deviation)
        flow_voice.save(shipped, args.out, args.steps, temperature)
        args.out.with_suffix(".md").write_text(_card(args, trainer, len(speech), table, device, temperature), encoding="utf-8")
        draw_curve(trainer.curve, args.out.with_suffix(".png"))
    except OSError as error:
        raise OutputError(f"The training's files could not be written: {error}.") from error
    print(f"wrote {args.out}")
    return 0


def report(trainer: FlowTrainer, tokenizer: SpeechTokenizer, held: Crops, temperature: float) -> str:
    """The comparison on replies kept back, as a table in Markdown."""
    chunk = trainer.average.config.chunk * trainer.average.config.ratio
    counted = held.counted(trainer.average.config.encoder.lookahead).repeat_interleave(trainer.average.config.ratio, dim=1)
    with torch.no_grad():
        own = tokenizer.normalize(tokenizer.decode(flow_voice.split(held.codes)).float())
    rows: list[tuple[str, Judged]] = [("tokenizer's own decoder", judge(own, held.frames, counted, chunk))]
    rows.append(("flow: the encoder's mean alone", judged(trainer.average, held, 0, spans=False)))
    if trainer.teacher is not None and trainer.config.distil_share:
        rows += [(f"teacher flow, {steps} steps", judged(trainer.teacher, held, steps, spans=False)) for steps in STEPS]
    spans = trainer.part != TEACH
    rows += [(f"shipped flow, {steps} steps", judged(trainer.average, held, steps, spans=spans)) for steps in STEPS]
    for steps in STEPS:
        calmed = judged(trainer.average, held, steps, spans=spans, temperature=temperature)
        rows.append((f"shipped flow, {steps} steps, noise x {temperature:g}", calmed))
    lines = [f"| {name} | {one.error:.3f} | {one.liveliness:.3f} | {one.joins:.3f} |" for name, one in rows]
    return "\n".join(["| frames of | error | liveliness | joins |", "|---|---|---|---|", *lines])


def draw_curve(curve: list[Progress], path: Path) -> None:
    """The learning curve as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for part in dict.fromkeys(one.part for one in curve):
        points = [one for one in curve if one.part == part]
        axes.plot([one.spent for one in points], [one.loss for one in points], label=f"loss: {part}")
    axes.plot([one.spent for one in curve], [one.held for one in curve], "k.", label="error of 2 steps, kept-back replies")
    axes.set(xlabel="seconds of training", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, bbox_inches="tight")
    pyplot.close(figure)


def _tell(progress: Progress) -> None:
    print(
        f"{progress.spent:.0f} s, {progress.part}, step {progress.step}: loss {progress.loss:.4f}, prior {progress.prior:.4f}, "
        f"two steps on kept-back replies {progress.held:.4f}",
        flush=True,
    )


def _card(args: argparse.Namespace, trainer: FlowTrainer, codes: int, table: str, device: torch.device, temperature: float) -> str:
    start = f" --start {args.start.name}" if args.start else ""
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"a CPU, {args.threads} thread(s)"
    size = sum(weight.numel() for weight in trainer.average.parameters())
    return f"""# The flow of the voice

{size:,} parameters, fp16: speech codes (21.53 Hz, five digits) to latents of the voice "joe" (192 channels, 86.13 Hz), in chunks of
{trainer.average.config.chunk} codes with {trainer.average.config.encoder.lookahead} of look-ahead; made for {args.steps} step(s)
from noise of deviation {temperature:g}.

* Made by: `duologue train flow --hours {args.hours:g} --minutes {args.minutes:g} --distil {args.distil:g}
  --polish {args.polish:g} --rows {args.rows} --length {args.length} --rate {args.rate:g}
  --polish-rate {args.polish_rate:g} --seed {args.seed}{start}` on {machine}
* Data: {codes * 4 / 86.13 / 3600:.1f} h spoken by the teacher, the VITS voice "joe"; one reply in {KEPT_BACK} kept back
* Method: conditional flow matching and a distance on the encoder's mean, distillation along the teacher's walk, and the log-mel
  distance of the sound of one pass, for the shares of the time that the command names; `--start` begins with an older file

On the kept-back replies, with the chunk mask (error: root mean square, in deviations of a channel; liveliness: change from frame to
frame, as a share of the true one; joins: change where chunks meet against elsewhere, as a share of the true one):

{table}

* Limits: one English voice; it knows only what the tokenizer's codes hold.
* Licence: Apache-2.0 for the weights. The voice "joe" was fine-tuned by its publisher from "lessac", whose Blizzard 2013 data has terms of
  its own.
"""
