"""`duologue train sentence-end`: teach where the user's sentence ends, by the LLM's last state and by what the recognisers' layers heard.

    texts (what people say to an agent)  ->  the LLM reads each once: its state after every word
    conversations (apps.train_listened)  ->  both recognisers hear them, the LLM reads: the states of all three
      both  ->  heads, cards, curve

Hearing is the slow part. What was read and heard is kept in the work folder, so the command may be stopped at any time and run again.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray

from agent.build import build_parts, session_config
from agent.chat import Chat
from agent.chat_template import Message
from agent.profiles import load_profile
from apps import train_listened
from apps.train_corpus_questions import questions
from apps.train_heads import FOLDS, fold_file, heard_places
from apps.train_projector_texts import templates, tidy
from duplex.errors import ConfigError, OutputError
from duplex.predictor_sentence_end import WEIGHTS
from duplex.scenario_probe import area
from duplex.scenario_texts import FILLERS, choose, sentences
from encoders.projector_ears import STATES as PROJECTOR_STATES
from encoders.sound_heads import FOLDER, weights_of
from encoders.sound_heads_training import HeadTraining, HeardPlaces, Places, judged, scores, train_heads
from encoders.whisper_ears import STATES as WHISPER_STATES

INPUTS = {"bridge": WHISPER_STATES, "projector": PROJECTOR_STATES}
"""Who hears the conversations, and how many states of the newest sound are looked at."""
SHARD = 200  # texts per file
POOL = 4000  # so many texts are drawn at least, so that more of them begin with the same ones
HELD = 0.08  # share of the texts that is kept for judging, beside the questions of templates that are never trained on


@dataclass(frozen=True, slots=True)
class Read:
    """What the LLM made of some texts."""

    places: Places
    odds: NDArray[np.float32]
    """[n] log of its own P(sentence ends here)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this training."""
    parser.add_argument("--work", type=Path, default=None, help="folder for what was read and heard")
    parser.add_argument("--texts", type=int, default=1600, help="sentences that the LLM reads (default: 1600)")
    train_listened.add_arguments(parser)
    parser.add_argument("--epochs", type=int, default=HeadTraining.epochs, help=f"passes (default: {HeadTraining.epochs})")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS, help="where the head on the LLM's states goes; card and curve lie beside it"
    )
    parser.add_argument("--sounds", type=Path, default=FOLDER, help="folder for the heads on the recognisers' states")
    parser.add_argument("--dry-run", action="store_true", help="only say what it will cost")


def run_training(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    if args.texts < 2 * SHARD or args.epochs < 1:
        raise ConfigError(f"Train on at least {2 * SHARD} texts for 1 epoch.")
    print(
        f"{args.texts} sentences: about {args.texts * 0.12 / 60:.0f} min of reading on one thread (three times that on an old CPU), "
        f"{args.texts * 0.018:.0f} MB on disk. {train_listened.cost(args, INPUTS)} Then 10 min of learning. "
        "It may be stopped and run again."
    )
    if args.dry_run:
        return 0
    torch.set_num_threads(1)
    work = train_listened.work_folder(args)
    try:
        work.mkdir(parents=True, exist_ok=True)
        train_listened.need_speakers(args, work, INPUTS)
        read = _read_all(args, work)
        count = max(round(len(read) * HELD), 1)
        learnt, held, unseen = _joined(read[count:-1]), _joined(read[:count]), read[-1]
        heard, back = _heard(args, work)
        for name, one in heard.items():
            print(f"{name}: {len(one.over)} silences, {len(one.listening)} sounds over the agent's voice", flush=True)
        config = HeadTraining(epochs=args.epochs, seed=args.seed)
        heads, curve = train_heads(learnt.places, heard, held.places, back, config, _tell)
        _folds(args, work, learnt.places, held.places, config)
        heads.words.save(args.out)
        for name, sounds in heads.sounds.items():
            sounds.save(args.sounds / weights_of(name).name)
        told = [
            (
                name,
                area(scores(heads.words, one.places), one.places.ends),
                area(one.odds.astype(np.float64), one.places.ends),
                len(one.places),
            )
            for name, one in (("sentences kept back", held), ("questions of unseen templates", unseen))
        ]
        for name, found, own, n in told:
            print(f"{name}, {n} places: {found:.4f} (AUC); the LLM's own odds {own:.4f}")
        known = judged(heads, held.places, back)
        for name in heads.sounds:
            figures = ", ".join(f"{what} {value:.4f}" for what, value in known[name].items())
            print(f"what {name} heard of sentences kept back (AUC): {figures}")
        args.out.with_suffix(".md").write_text(_card(args, len(learnt.places), told), encoding="utf-8")
        for name in heads.sounds:
            file = args.sounds / weights_of(name).with_suffix(".md").name
            file.write_text(_sounds_card(args, name, heard[name], back[name], known[name]), encoding="utf-8")
        _draw(args.out.with_suffix(".png"), curve)
    except OSError as error:
        raise OutputError(f"The training's files could not be written: {error}.") from error
    except ValueError as error:
        raise ConfigError(f"Nothing can be learnt from that: {error}; give more --conversations.") from error
    print(f"wrote {args.out} and {args.sounds}; `duologue bench floor` tells what they are worth")
    return 0


def _folds(args: argparse.Namespace, work: Path, learnt: Places, held: Places, config: HeadTraining) -> None:
    """For `train predictor`: heads that were not taught on what they tell of, so that it learns how far heads can be believed."""
    for fold in range(FOLDS):
        print(f"heads that never heard some of the sentences, for what they make of these ({fold + 1} of {FOLDS})", flush=True)
        heard, back = _heard(args, work, fold)
        heads, _ = train_heads(learnt, heard, held, back, config, _tell)
        heads.words.save(fold_file(work, fold, "words"))
        for name, sounds in heads.sounds.items():
            sounds.save(fold_file(work, fold, name))


def _heard(
    args: argparse.Namespace, work: Path, without: int | None = None
) -> tuple[dict[str, HeardPlaces], dict[str, HeardPlaces]]:
    """What each recogniser heard: to be learnt from, and kept back."""
    heard, back = dict[str, HeardPlaces](), dict[str, HeardPlaces]()
    for name, places in INPUTS.items():
        files = train_listened.shards(args, work, name, train_listened.never)
        heard[name], back[name] = heard_places((one for file in files for one in train_listened.load(file)), places, without)
    return heard, back


def said(count: int, seed: int) -> list[str]:
    """`count` sentences as people say them to an agent: questions, requests, statements and small talk, some with a hesitation."""
    random, rng = Random(f"sentence ends {seed}"), np.random.default_rng(seed)
    third, built = count // 3, sentences("training")
    found = [asked.text for asked in questions(third, seed)]
    found += [text for text in map(tidy, templates(rng, third)) if text is not None]
    while len(found) < count:
        found.append(re.sub(r"\s*\|+\s*", " ", choose(built[rng.integers(len(built))], rng)))
    random.shuffle(found)
    return [_as_heard(text, random) for text in found]


def _as_heard(text: str, random: Random) -> str:
    """Without the final mark, as a transcript of a turn that is not over; now and then with a filler, or in small letters."""
    words = text.rstrip(" .?!").split()
    if len(words) > 3 and random.random() < 0.12:
        words.insert(random.randrange(1, len(words)), random.choice(FILLERS))
    body = " ".join(words)
    return body.lower().replace(",", "") if random.random() < 0.15 else body


def places(body: str, pieces: Sequence[str]) -> list[tuple[int, bool]]:
    """(index of the piece, whether the sentence ends there) wherever `body`, which the pieces make up, could break off.

    After every word; left out are the ends of sentences inside the text, of which nobody knows whether the turn is over.
    """
    found, at = [], 0
    for index, piece in enumerate(pieces):
        at += len(piece)
        after = body[at : at + 1]
        if at and (body[at - 1].isalnum() or body[at - 1] in "%'") and after in ("", " ", ",", ";", ":"):
            found.append((index, not after))
    return found


def _read_all(args: argparse.Namespace, work: Path) -> list[Read]:
    """The shards of `--texts` sentences, and one of questions whose templates are never trained on; the missing ones are read."""
    shards = args.texts // SHARD
    files = [work / f"read-{args.seed}-{index:03}.npz" for index in range(shards)] + [work / f"unseen-{args.seed}.npz"]
    missing = [file for file in files if not file.exists()]
    if missing:
        texts = said(max(shards * SHARD, POOL), args.seed)
        unseen = Random(f"unseen {args.seed}")
        groups = [texts[index * SHARD : (index + 1) * SHARD] for index in range(shards)]
        groups.append([_as_heard(asked.text, unseen) for asked in questions(SHARD, args.seed, "held out")])
        reader = Reader()
        began = time.monotonic()
        for done, file in enumerate(missing):
            save(file, reader.read(groups[files.index(file)]))
            left = (time.monotonic() - began) / (done + 1) * (len(missing) - done - 1)
            print(f"read {done + 1} of {len(missing)} times {SHARD} sentences, {left / 60:.0f} min left", flush=True)
    return [_load(file) for file in files]


class Reader:
    """The agent's LLM, asked about the words of users."""

    def __init__(self) -> None:
        profile = load_profile("edge", list(train_listened.WITHOUT))  # what is to be taught need not be there
        parts = build_parts(profile)
        torch.set_num_threads(1)
        assert isinstance(parts.thinker, Chat)
        self.chat, self.system = parts.thinker, session_config(profile).response.system_prompt
        self._context = self.chat.open()

    def read(self, bodies: Sequence[str]) -> Read:
        """The states after the words of each text, which lacks its final mark."""
        states, ends, odds = [], [], []
        for body in bodies:
            keys = self.chat.render(self.system, [Message("user", body)], open_assistant=False, open_last=True)
            for _ in self.chat.sync_steps(self._context, keys):
                pass
            tokens = self.chat.encode(body)
            assert keys[-len(tokens) :] == tokens
            for index, end in places(body, [self.chat.decode([token]) for token in tokens]):
                state = self._context.buffers.hidden[len(keys) - len(tokens) + index]
                states.append(state.float().numpy().astype(np.float16))
                ends.append(end)
                odds.append(self.chat.odds_of_end(state))
        return Read(Places(np.stack(states), np.array(ends, bool)), np.log(np.maximum(odds, 1e-9)).astype(np.float32))


def save(file: Path, read: Read) -> None:
    """Keep a shard."""
    part = file.with_suffix(".part.npz")
    np.savez(part, allow_pickle=False, states=read.places.states, ends=read.places.ends, odds=read.odds)
    os.replace(part, file)


def _load(file: Path) -> Read:
    with np.load(file, allow_pickle=False) as kept:
        return Read(Places(kept["states"], kept["ends"]), kept["odds"])


def _joined(reads: Sequence[Read]) -> Read:
    states, ends = (np.concatenate([getattr(one.places, name) for one in reads]) for name in ("states", "ends"))
    return Read(Places(states, ends), np.concatenate([one.odds for one in reads]))


def _tell(epoch: int, loss: float, found: float) -> None:
    print(f"pass {epoch}, loss {loss:.4f}, {found:.4f} of those kept back told apart (AUC)", flush=True)


def _card(args: argparse.Namespace, count: int, told: Sequence[tuple[str, float, float, int]]) -> str:
    figures = "\n".join(
        f"* On {n:,} places of {name}: {found:.3f} (area under the curve); the LLM's own odds of a full stop {own:.3f}."
        for name, found, own, n in told
    )
    return f"""# Where the user's sentence ends

Two linear layers on the last state of Qwen2.5-Coder-0.5B-Instruct (int8) after the user's words, fp16; `duplex/predictor_sentence_end.py`.

* Made by: `{_command(args)}` on a CPU
* Data: {count:,} places after words of built questions, requests, statements and small talk, read as text; and the words that both
  recognisers made of built conversations, with their errors (`encoders/weights/sound_heads_*.md`). Ends and other places weigh alike.
{figures}
* Limits: English; invented sentences. A sentence that is whole may still go on: nobody can tell.
* Licence: Apache-2.0.
"""


def _sounds_card(args: argparse.Namespace, name: str, heard: HeardPlaces, back: HeardPlaces, known: Mapping[str, float]) -> str:
    figures = "\n".join(f"* {what}: {value:.3f}" for what, value in known.items())
    layers = "encoder and decoder of Whisper tiny.en" if name == "bridge" else "the input projector's last layer"
    return f"""# Whether the turn is over, and who only listens, by the sound

Two heads on what the {layers} made of the newest 1.5 s, fp16; `encoders/sound_heads.py`.

* Made by: `{_command(args)}` on a CPU
* Data: {len(heard.over):,} silences and {len(heard.listening):,} sounds over the agent's voice in built conversations: flite's voices
  awb and kal16, as they are and high, three of espeak-ng's and the VITS voice "joe" in two manners, and people: what actors say in
  "Flight of the Amazon Queen" and "Drascula", with their own silences made longer; with rooms, noise, telephone, echo residue, other
  voices and sounds. flite's slt and rms and the actors of "Beneath a Steel Sky" were never heard.
* Told apart (area under the curve) on {len(back.over):,} silences and {len(back.listening):,} sounds with other words than those learnt
  from:
{figures}
* Limits: English; people, but acting. Of real conversations it has heard none.
* Licence: Apache-2.0 for the weights; the voices' terms are told in `duplex/weights/predictor.md`.
"""


def _command(args: argparse.Namespace) -> str:
    return (
        f"duologue train sentence-end --texts {args.texts} --conversations {args.conversations} --sentences {args.sentences} "
        f"--epochs {args.epochs} --seed {args.seed}"
    )


def _draw(path: Path, curve: Sequence[tuple[float, float]]) -> None:
    """The learning curve; a machine without matplotlib goes without it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    passes = range(1, len(curve) + 1)
    axes.plot(passes, [loss for loss, _ in curve], label="loss (nats)")
    axes.plot(passes, [1 - found for _, found in curve], label="1 - area under the curve, kept back")
    axes.set(xlabel="pass", yscale="log", title="Where the user's sentence ends")
    axes.legend()
    figure.savefig(path, dpi=110)
