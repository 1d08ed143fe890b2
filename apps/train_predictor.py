"""`duologue train predictor`: makes its own conversations, learns from them, and writes weights and a model card.

    speech (flite, joe; read by the agent's ears and LLM)  ->  conversations as tensors  ->  network  ->  weights, card

Each stage leaves its result in the work folder and is skipped when that is there, so the command may be stopped at any time and run
again. flite's voices `slt` and `rms` are the bench's and are never heard here.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from agent import weight_cache, weights
from agent.build import build_parts, session_config
from agent.profiles import load_profile
from apps.train_speech import need_flite
from apps.train_stock import WordsReader, make_stock, training_voices
from duplex.errors import ConfigError, OutputError
from duplex.predictor_net import FloorNet, NetConfig
from duplex.predictor_trained import WEIGHTS, TrainedPredictor
from duplex.predictor_training import Examples, Judgement, Progress, TrainingConfig, examples, judge, train
from duplex.scenario import ScenarioConfig, Stock
from duplex.scenario_builder import Builder
from duplex.scenario_hearing import hear, with_words
from duplex.vad import Vad

SHARD = 50  # conversations per file
HELD = 0.08  # share of conversations kept for judging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this training."""
    parser.add_argument("--work", type=Path, default=None, help="folder for speech, conversations and checkpoints")
    parser.add_argument("--conversations", type=int, default=1000, help="how many are built, about 20 s each (default: 1000)")
    parser.add_argument("--sentences", type=int, default=128, help="sentences each voice speaks (default: 128)")
    parser.add_argument("--epochs", type=int, default=TrainingConfig.epochs, help=f"passes (default: {TrainingConfig.epochs})")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go; the card lies beside them")
    parser.add_argument("--wait-while", type=Path, default=None, metavar="FILE", help="pause as long as this file exists")
    parser.add_argument("--dry-run", action="store_true", help="only say what it will cost")


def run_training(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    if args.conversations < SHARD or args.sentences < 20 or args.epochs < 1:
        raise ConfigError(f"Train on at least {SHARD} conversations, 20 sentences and 1 epoch.")
    need_flite()
    hours = args.conversations * 20 / 3600
    minutes = (args.sentences * 2.2, args.conversations * 0.4, args.epochs * hours * 7)
    print(
        f"{args.conversations} conversations ({hours:.1f} h), {args.epochs} epochs: about {minutes[0] / 60:.0f} min of speaking and "
        f"reading, "
        f"{minutes[1] / 60:.0f} min of building and {minutes[2] / 60:.0f} min of learning on one thread; about "
        f"{hours * 35 + 100:.0f} MB on disk. It may be stopped and run again."
    )
    if args.dry_run:
        return 0
    torch.set_num_threads(1)
    work = args.work or weight_cache.home() / "train-predictor"
    waiter = Waiter(args.wait_while)
    try:
        work.mkdir(parents=True, exist_ok=True)
        shards = _shards(args, work, waiter)
        data = [one for shard in shards for one in _load(shard)]
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


def _stock(args: argparse.Namespace, work: Path, waiter: Waiter) -> Stock:
    profile = load_profile("edge", ["thinker.chat.sentence_end=odds"])  # which is what the network is given where it decides
    waiter()
    parts = build_parts(profile)
    torch.set_num_threads(1)
    where = weights.locate(profile)
    voices = training_voices(args.sentences, where["vits-joe-split"], where["vits-joe-config"])
    reader = WordsReader(parts, session_config(profile).response.system_prompt)
    return make_stock("training", voices, work / "stock", reader, lambda text: print(text, flush=True))


def _shards(args: argparse.Namespace, work: Path, waiter: Waiter) -> list[Path]:
    """Files of conversations as tensors; the missing ones are made."""
    count = args.conversations // SHARD
    files = [work / f"conversations-{args.sentences}-{args.seed}-{index:03}.npz" for index in range(count)]
    missing = [index for index, file in enumerate(files) if not file.exists()]
    if not missing:
        return files
    stock = _stock(args, work, waiter)
    vad = Vad(weights.locate("edge")["silero-vad"])
    began = time.monotonic()
    for done, index in enumerate(missing):
        made = []
        for place in range(SHARD):
            waiter()
            seed = args.seed * 1_000_000 + index * SHARD + place
            scenario = Builder(stock, ScenarioConfig(clean=place % 8 == 0)).conversation(seed)
            made.append(examples(scenario, with_words(scenario, hear(scenario, vad), seed)))
        _save(files[index], made)
        left = (time.monotonic() - began) / (done + 1) * (len(missing) - done - 1)
        print(f"conversations {(index + 1) * SHARD} of {count * SHARD}, {left / 60:.0f} min left", flush=True)
    return files


def _save(file: Path, made: list[Examples]) -> None:
    part = file.with_suffix(".part.npz")
    lengths = np.array([len(one.labels) for one in made])
    joined = {name: np.concatenate([getattr(one, name) for one in made]) for name in ("mel", "beside", "labels", "weights")}
    np.savez(part, allow_pickle=False, lengths=lengths, **joined)
    os.replace(part, file)


def _load(file: Path) -> list[Examples]:
    with np.load(file, allow_pickle=False) as kept:
        ends = np.cumsum(kept["lengths"])[:-1]
        parts = [np.split(kept[name], ends) for name in ("mel", "beside", "labels", "weights")]
    return [Examples(*one) for one in zip(*parts, strict=True)]


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
  kal16 and by the VITS voice "joe" in two manners, with rooms, noise, telephone, echo residue, other voices and sounds. flite's slt and
  rms were never heard.
  The words are those that Whisper tiny.en made of it, the odds of a sentence's end those of Qwen2.5-Coder-0.5B.
* Kept-back conversations of the same voices: turn ends against pauses {found.turn_end_auc:.3f}, interruptions against other sounds
  {found.interruption_auc:.3f} (area under the curve over all ticks). Figures on voices never heard: `duologue bench floor`, docs/floor.md.
* Limits: English, synthetic voices only, invented sentences. Of real conversations it has heard none.
* Licence: Apache-2.0 for the weights. The voice "joe" was fine-tuned by its publisher from "lessac", whose Blizzard 2013 data has terms of
  its own; flite's voices are free for any use.
"""
