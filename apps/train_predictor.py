"""`duologue train predictor`: listens to its own conversations, learns from them, and writes weights and a model card.

    conversations as the agent heard them (apps.train_listened)  ->  what heads make of them that never heard them  ->  network  ->  weights

Each stage leaves its result in the work folder and is skipped when that is there, so the command may be stopped at any time and run
again; `train sentence-end`, whose heads are needed, uses the same conversations. flite's voices `slt` and `rms` are the bench's and are
never heard here.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from apps import train_listened
from apps.train_heads import FOLDS, fold_file, fold_of, texts
from apps.train_listened import SHARD, Listened
from duplex.errors import ConfigError, OutputError
from duplex.predictor import Ending
from duplex.predictor_net import FloorNet, NetConfig
from duplex.predictor_sentence_end import SentenceEnd
from duplex.predictor_trained import WEIGHTS, TrainedPredictor
from duplex.predictor_training import Examples, Judgement, Progress, TrainingConfig, examples, judge, train
from encoders.sound_heads import SoundHeads

HEARD_BY = ("bridge", "projector")
HELD = 0.08  # share of conversations kept for judging
MISSING = 0.1
"""Share of conversations in which no words are known."""
ENDLESS = 0.15
"""Share in which nobody says how likely a turn ends."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this training."""
    parser.add_argument("--work", type=Path, default=None, help="folder for speech, conversations and checkpoints")
    train_listened.add_arguments(parser)
    parser.add_argument("--epochs", type=int, default=TrainingConfig.epochs, help=f"passes (default: {TrainingConfig.epochs})")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go; the card lies beside them")
    parser.add_argument("--wait-while", type=Path, default=None, metavar="FILE", help="pause as long as this file exists")
    parser.add_argument("--dry-run", action="store_true", help="only say what it will cost")


def run_training(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    if args.conversations < SHARD or args.sentences < 20 or args.epochs < 1:
        raise ConfigError(f"Train on at least {SHARD} conversations, 20 sentences and 1 epoch.")
    hours = train_listened.hours(args, HEARD_BY)
    print(
        f"{train_listened.cost(args, HEARD_BY)} {args.epochs} epochs of {hours:.1f} h: about {args.epochs * hours * 0.8 / 60:.0f} min of "
        f"learning on one thread (three times that on an old CPU). It may be stopped and run again."
    )
    if args.dry_run:
        return 0
    torch.set_num_threads(1)
    work = train_listened.work_folder(args)
    waiter = Waiter(args.wait_while)
    try:
        work.mkdir(parents=True, exist_ok=True)
        train_listened.need_speakers(args, work, HEARD_BY)
        heads = {name: _fold_heads(work, name) for name in HEARD_BY}
        data = [
            _examples(one, heads[name])
            for name in HEARD_BY
            for file in train_listened.shards(args, work, name, waiter)
            for one in train_listened.load(file)
        ]
        data = [data[index] for index in np.random.default_rng(args.seed).permutation(len(data))]
        count = max(round(len(data) * HELD), 1)
        config = TrainingConfig(epochs=args.epochs, seed=args.seed)
        checkpoint = work / f"predictor-{args.conversations}-{args.epochs}-{args.seed}.pt"
        net = train(data[count:], NetConfig(), config, checkpoint, _tell, waiter)
        found = judge(net, data[:count])
        print(
            f"\non {count} conversations kept back: turn ends {found.turn_end_auc:.3f}, interruptions {found.interruption_auc:.3f} (AUC)"
        )
        TrainedPredictor(net, found.ends_surely, found.ends_hardly).save(args.out)
        args.out.with_suffix(".md").write_text(_card(args, net, found, len(data), data), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"The training's files could not be written: {error}.") from error
    print(f"wrote {args.out}; `duologue bench floor` tells whether it is better than the rules")
    return 0


class Waiter:
    """Waits as long as a file exists, so that something else can be measured undisturbed."""

    def __init__(self, file: Path | None) -> None:
        self.file = file

    def __call__(self) -> None:
        while self.file is not None and self.file.exists():
            time.sleep(1.0)


def _fold_heads(work: Path, heard_by: str) -> list[tuple[SentenceEnd, SoundHeads]]:
    """For each fold those that were not taught on it. Raises ConfigError where `train sentence-end` did not leave them."""
    if not all(fold_file(work, fold, name).is_file() for fold in range(FOLDS) for name in ("words", heard_by)):
        raise ConfigError(
            f"The heads whose odds the predictor learns from are not in {work}; run `duologue train sentence-end` first."
        )
    return [
        (SentenceEnd.load(fold_file(work, fold, "words")), SoundHeads.load(fold_file(work, fold, heard_by)))
        for fold in range(FOLDS)
    ]


def _examples(one: Listened, heads: Sequence[tuple[SentenceEnd, SoundHeads]]) -> Examples:
    """A conversation as tensors; in some of them no words are known, or nobody says how likely a sentence ends. heads: of each fold."""
    rng = np.random.default_rng((one.seed, 1))
    wordless, endless = rng.random() < MISSING, rng.random() < ENDLESS
    of_fold = [heads[fold_of(text)] for text in texts(one)]
    told = [
        (None, None) if r.states is None else sounds.tell(r.states) for r, (_, sounds) in zip(one.readings, of_fold, strict=True)
    ]
    ends = [
        None if r.state is None else Ending(words.probability(torch.from_numpy(r.state)), learnt=True).heard(over)
        for r, (words, _), (over, _) in zip(one.readings, of_fold, told, strict=True)
    ]
    ticks = []
    for tick, index in enumerate(one.reading):
        known = index >= 0 and not wordless
        read = known and not endless and one.read[tick]
        heard = one.heard(tick, ends[index] if read else None, told[index][1] if known else None)
        ticks.append(replace(heard, transcript="", fresh=False) if wordless else heard)
    return examples((one.sound / np.float32(32767)).astype(np.float32), one.labels, one.events, ticks)


def _tell(progress: Progress) -> None:
    print(f"step {progress.step} of {progress.steps}, loss {progress.loss:.4f}, {progress.seconds:.0f} s", flush=True)


def _card(args: argparse.Namespace, net: FloorNet, found: Judgement, count: int, data: list[Examples]) -> str:
    ticks = sum(len(one.labels) for one in data)
    size = sum(p.numel() for p in net.parameters())
    return f"""# The duplex predictor

{size:,} parameters, fp16: two causal convolutions over log-mel, one transformer layer, a softmax over wait, respond, yield and
keep-through-backchannel, every 80 ms.

* Made by: `duologue train predictor --conversations {args.conversations} --sentences {args.sentences} --epochs {args.epochs}
  --seed {args.seed}`
* Data: {count} built conversations ({ticks * 0.08 / 3600:.1f} h), {HELD:.0%} of them kept back; spoken by flite's voices awb and
  kal16, as they are and high, by three of espeak-ng's and by the VITS voice "joe" in two manners, and by people: actors of the games
  "Flight of the Amazon Queen" and "Drascula", with their own silences made longer; with rooms, noise, telephone, echo residue, other
  voices and sounds. flite's slt and rms and the actors of "Beneath a Steel Sky" were never heard.
  The words are those that Whisper tiny.en or the input projector made of it, the odds of a turn's end and of who only listens those of the
  heads on their states and on Qwen2.5-Coder-0.5B's (`duologue train sentence-end`) that were not taught on the sentence.
* Kept-back conversations of the same voices: turn ends against pauses {found.turn_end_auc:.3f}, interruptions against other sounds
  {found.interruption_auc:.3f} (area under the curve over all ticks). Figures on voices never heard: `duologue bench floor`, docs/floor.md.
* Limits: English; people, but acting. Of real conversations it has heard none.
* Licence: Apache-2.0 for the weights. The voice "joe" was fine-tuned by its publisher from "lessac", whose Blizzard 2013 data has terms of
  its own; flite's voices are free for any use, and the games may be used, changed and given away, but not sold by themselves.
"""
