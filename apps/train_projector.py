"""`duologue train projector`: makes its own speech, teaches the input projector, and writes weights, a model card and the learning curve.

    texts, Whisper's encoder (--pack, needs the weights)  ->  speech (programs, joe)  ->  CTC  ->  weights, card, curve
          `->  words, pronunciations, what comes after what  ------------------------------------------'

Each stage leaves its result in the work folder and is skipped when that is there, so the command may be stopped at any time and run again.
What `--pack` writes is all that the later stages need, so they can run on another machine that has a GPU and none of the weights.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent import weight_cache, weights
from apps import train_projector_language, train_projector_texts
from apps.recorded_prompts import prompts
from apps.train_projector_language import Language
from apps.train_projector_speech import HELD_EVERY, PROMPTS, SpeechConfig, keep_prompts, speak
from apps.train_projector_texts import Texts
from duplex.checkpoint import read_tensors
from duplex.errors import ConfigError, OutputError, WeightsError
from encoders import speech_projector
from encoders.speech_batches import Batches, Spoken
from encoders.speech_projector import SpeechProjectorConfig
from encoders.speech_projector_recipe import ON_A_CPU, ProjectorTrainingConfig
from encoders.speech_projector_training import Progress, Training, distance
from encoders.word_lattice import spelt
from encoders.word_ngrams import FIRST
from encoders.word_search import WordSearch

WEIGHTS = Path(speech_projector.__file__).parent / "weights" / "projector.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this training."""
    parser.add_argument("--work", type=Path, default=None, help="folder for texts, speech and checkpoints")
    parser.add_argument("--pack", action="store_true", help="only write the texts and Whisper's encoder into the work folder")
    parser.add_argument("--sentences", type=int, default=80_000, help="texts to gather, at most (default: 80000)")
    parser.add_argument("--minutes", type=float, default=5.0, help="time for learning (default: 5)")
    parser.add_argument("--speech-seconds", type=float, default=90.0, help="time for speaking (default: 90)")
    parser.add_argument("--passes", type=int, default=1, help="how often joe says each text (default: 1)")
    parser.add_argument("--threads", type=int, default=10, help="programs that speak side by side (default: 10)")
    parser.add_argument(
        "--batch",
        type=float,
        default=None,
        metavar="S",
        help=f"seconds of sound per step (default: {ProjectorTrainingConfig.batch_s:g}, on a CPU {ON_A_CPU.batch_s:g})",
    )
    parser.add_argument("--begin", type=Path, default=None, metavar="FILE", help="begin with these weights of an earlier training")
    parser.add_argument("--flite", default=None, metavar="PROGRAM", help="flite, where it is not on the path")
    parser.add_argument("--teacher", type=Path, default=None, help="the packed voice joe, in place of the fetched one")
    parser.add_argument("--wordnet", type=Path, default=train_projector_texts.WORDNET, help="WordNet's data files, for texts")
    parser.add_argument("--fortunes", type=Path, default=train_projector_texts.FORTUNES, help="the fortunes, for texts")
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to learn (default: the GPU, if any)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go; card and curve lie beside them")
    parser.add_argument("--dry-run", action="store_true", help="only say what it will cost")


def run_training(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    device = "cuda" if args.device == "auto" and torch.cuda.is_available() else "cpu" if args.device == "auto" else args.device
    args.batch = args.batch or (ON_A_CPU.batch_s if device == "cpu" else ProjectorTrainingConfig.batch_s)
    if args.minutes <= 0 or args.sentences < 100 or args.batch < 20:
        raise ConfigError("Train for more than 0 minutes, on at least 100 sentences, with at least 20 s of sound per step.")
    print(
        f"{args.sentences} sentences: about {args.sentences / 16_000:.0f} min to gather (--pack, once), {args.speech_seconds / 60:.1f} min "
        f"of speaking, {args.minutes:g} min of learning on {device}; about {args.sentences * 3 * 32 / 1e6 * args.passes:.1f} GB on disk "
        f"and, while it learns, as much and {args.batch / 75:.0f} GB more in the device's memory. It may be stopped and run again."
    )
    if args.dry_run:
        return 0
    work = args.work or weight_cache.home() / "train-projector"
    try:
        work.mkdir(parents=True, exist_ok=True)
        _pack(args, work)
        if args.pack:
            return 0
        _learn(args, work, device)
    except OSError as error:
        raise OutputError(f"The training's files could not be written: {error}.") from error
    return 0


def _tell(text: str) -> None:
    print(text, flush=True)


def _pack(args: argparse.Namespace, work: Path) -> None:
    """Texts and Whisper's encoder, where they are missing."""
    texts, whisper = work / "projector-texts.safetensors", work / "whisper-encoder.safetensors"
    if whisper.exists() and texts.exists():
        return
    where = weights.locate("edge")
    if not whisper.exists():
        tensors = read_tensors(where["whisper-tiny-en"])
        kept = {n: t.half().contiguous() for n, t in tensors.items() if n.startswith("encoder.") and "positional" not in n}
        save_file(kept, whisper)
    if not texts.exists():
        torch.set_num_threads(1)
        found = train_projector_texts.gather(args.sentences, args.seed, args.wordnet, args.fortunes)
        recorded = [
            (tidied, samples) for text, samples in prompts(False) if (tidied := train_projector_texts.tidy(text)) is not None
        ]
        keep_prompts(work / "speech", list(range(len(found), len(found) + len(recorded))), [samples for _, samples in recorded])
        found += [text for text, _ in recorded]
        train_projector_texts.prepare(found, where["vits-joe-split"], where["vits-joe-config"], texts, _tell)
    _tell(f"packed {texts} ({texts.stat().st_size / 1e6:.0f} MB) and {whisper} ({whisper.stat().st_size / 1e6:.0f} MB)")


def _speech(args: argparse.Namespace, work: Path, texts: Texts, device: str) -> Spoken:
    from decoders.vits_net import VitsNet

    teacher = None
    try:
        source = args.teacher or weights.locate("edge")["vits-joe-split"]
        teacher = VitsNet.load(source, device)
    except (WeightsError, ConfigError) as error:
        _tell(f"joe does not speak: {error}")
    config = SpeechConfig(args.speech_seconds, args.threads, 600.0 if device == "cuda" else 30.0, args.passes, args.seed)
    return speak(texts, work / "speech", teacher, config, _tell, device, args.flite)


def _learn(args: argparse.Namespace, work: Path, device: str) -> None:
    texts = train_projector_texts.load(work / "projector-texts.safetensors")
    spoken = _speech(args, work, texts, device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    voices = {name: spoken.voice.count(name) for name in dict.fromkeys(spoken.voice)}
    _tell(f"{spoken.hours():.1f} h of speech: {', '.join(f'{name} {count}' for name, count in voices.items())} sentences")
    whisper = load_file(work / "whisper-encoder.safetensors")
    recipe = ON_A_CPU if device == "cpu" else ProjectorTrainingConfig()
    config = replace(recipe, seconds=args.minutes * 60, batch_s=args.batch, seed=args.seed)
    if args.begin is not None:
        config = replace(config, adapt_from=0.0)
    phones = max((int(one.max()) + 1 for one in spoken.phones if len(one)), default=1)
    training = Training(whisper, SpeechProjectorConfig(phones=phones), config, device)
    checkpoint = work / f"projector-{args.seed}.pt"
    if training.resume(checkpoint):
        _tell(f"going on after {training.seconds:.0f} s, step {training.step}")
    elif args.begin is not None:
        training.begin(speech_projector.restore(args.begin, read_tensors(args.begin), whisper)[0])
        _tell(f"beginning with {args.begin}")
    batches = Batches(spoken, training.pick)
    training.run(batches, checkpoint, _say)
    training.use_average()
    training.net.eval()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    language = train_projector_language.learn(texts, HELD_EVERY)
    kept = speech_projector.save(args.out, training.net, language.lexicon, language.ngrams)
    found = _judge(training, batches, texts, language)
    for line in found:
        _tell(line)
    args.out.with_suffix(".md").write_text(_card(args, training, spoken, texts, language, found, kept), encoding="utf-8")
    _curve(training.history, args.out.with_suffix(".png"))
    _tell(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB); `duologue bench ears` tells how well it hears")


def _say(progress: Progress) -> None:
    _tell(
        f"step {progress.step}, {progress.seconds:.0f} s, CTC {progress.loss:.3f} a phone, {progress.speed:.0f} s of sound a second"
    )


def _judge(training: Training, spoken: Batches, texts: Texts, language: Language, batches: int = 12) -> list[str]:
    """Phone and word errors on texts that were kept back, by the training's voices, plain and spoilt."""
    lines = []
    search = WordSearch(language.lexicon, language.ngrams)
    for plain in (True, False):
        errors: dict[str, int] = defaultdict(int)
        shown = ""
        for _ in range(batches):
            for row in training.read(spoken, plain)[:64]:
                said = " ".join(texts.texts[text] for text in row.texts)
                best = search.best(search.step(search.open(), row.odds))
                heard = "" if best is None else "".join(text for _, text, _ in spelt(best.words(), language.lexicon))
                words = plain_words(said)
                errors["phones"] += distance(row.meant, row.phones())
                errors["of phones"] += len(row.meant)
                errors["words"] += distance(words, plain_words(heard))
                errors["of words"] += len(words)
                shown = f"{said} -> {heard}"
        lines.append(
            f"{'plain' if plain else 'spoilt'} sound, {errors['of words']} words of texts kept back: "
            f"{errors['phones'] / max(errors['of phones'], 1):.1%} of phones and "
            f"{errors['words'] / max(errors['of words'], 1):.1%} of words wrong"
        )
        _tell(f"  such as: {shown}")
    return lines


def plain_words(text: str) -> list[str]:
    """Words without case and marks."""
    return "".join(c for c in text.lower().replace("-", " ") if c.isalnum() or c in " '").split()


def _card(
    args: argparse.Namespace,
    training: Training,
    spoken: Spoken,
    texts: Texts,
    language: Language,
    found: list[str],
    kept: dict[str, Tensor],
) -> str:
    size = sum(value.numel() for name, value in kept.items() if name.startswith("net."))
    lines = "\n".join(f"* {line}" for line in found)
    voices = ", ".join(dict.fromkeys(spoken.voice))
    people = (
        "Half of Asterisk's recorded prompts (one woman, CC BY-SA 3.0) were learnt from; the other half is the bench's."
        if PROMPTS in spoken.voice
        else "Nobody's recorded voice was learnt from."
    )
    sizes = training.net.config
    begun = "" if args.begin is None else f" --begin {args.begin.name}"
    where = torch.cuda.get_device_name() if training.device.type == "cuda" else "a CPU"
    return f"""# The input projector

{size:,} values, fp16: on Whisper tiny.en's encoder, {sizes.encoder_layers} layers in windows that see 320 ms ahead,
{sizes.sound_layers} transformer layers at 25 Hz that are read as {sizes.phones} phones. Whisper's layers are OpenAI's as published and
not in this file; beside each of their linear layers stand two thin ones that are (LoRA, rank {sizes.rank}).
With them {len(language.lexicon.words) - FIRST:,} words in {len(language.lexicon.phones):,} pronunciations, and how likely each is after two
others (trigrams, Kneser-Ney), from the texts below.

* Made by: `duologue train projector --sentences {args.sentences} --speech-seconds {args.speech_seconds:g} --passes {args.passes}
  --minutes {args.minutes:g} --batch {args.batch:g} --seed {args.seed}{begun}`, {training.step} steps on {where}
* Data: {spoken.hours():.1f} h of speech made for it from {len(texts)} sentences (templates of what people say to an agent, the questions
  and texts of the voice's corpus, WordNet's example sentences and definitions, fortunes); voices: {voices}.
  flite's slt and rms were never heard. {people}
  Speed, throat, room, noise, line and level were changed at each hearing.
{lines}
* Figures on voices and people never heard: `duologue bench ears`.
* Limits: English; words that are in none of the texts are heard as others; but for what is said above, synthetic voices only. What it
  knows of people comes from Whisper.
* Licence: Apache-2.0 for the weights; Whisper's are MIT. The voice "joe" was fine-tuned by its publisher from "lessac", whose Blizzard 2013
  data has terms of its own; flite's voices are free for any use; WordNet's licence asks that its name be kept.
"""


def _curve(history: list[tuple[float, ...]], file: Path) -> None:
    """The learning curve as a picture, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _tell("no matplotlib: no picture of the learning curve")
        return
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([row[0] for row in history], [row[1] for row in history])
    axes.set_xlabel("seconds")
    axes.set_ylabel("CTC, nats per phone")
    axes.set_ylim(bottom=0)
    figure.savefig(file, dpi=100)
