"""Built conversations as the agent hears them: made once, kept in shards, and learnt from by `train sentence-end` and `train predictor`.

    speech of the training's voices -> conversations -> the session's own listening (apps.floor_listening) -> what was known on each tick

What the recogniser's layers and the LLM made of the sound is kept as their states, so that heads can be taught on these and asked anew.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agent import weight_cache, weights
from agent.build import build_parts, session_config
from agent.profiles import Profile, load_profile
from apps.floor_listening import Known, Took, listen
from apps.recorded_lines import need as need_people
from apps.train_people import make_people
from apps.train_speech import need_espeak, need_flite
from apps.train_stock import WordsReader, make_stock, more_training_voices, training_voices
from duplex.predictor_features import Heard
from duplex.scenario import Event, Scenario, ScenarioConfig, Stock
from duplex.scenario_builder import Builder, draw_pauses
from encoders.ears import SoundStates

SHARD = 50  # conversations per file
SHARES = {"bridge": 1.0, "projector": 0.25}
"""Of the conversations that each input hears; the projector takes twice as long."""


@dataclass(frozen=True)
class Cast:
    """Some speakers, and what is built of what they say."""

    share: float
    """Of `--conversations`, and where they are programs of `--sentences`, so many."""
    first_seed: int
    people: bool = False
    turns: bool = False
    """Single turns in place of conversations, which last half as long."""


CASTS = {
    "": Cast(1.0, 0),
    "-more": Cast(1 / 3, 500_000),
    "-people": Cast(0.75, 250_000, people=True),
    "-turns": Cast(1.5, 750_000, people=True, turns=True),
}
"""By what the names of their files hold."""
WITHOUT = ("thinker.chat.sentence_end=odds", "predictor.kind=rules")
"""Settings of the agent that hears and reads before what is taught here is there."""
OVERLAPS = ("interruption", "backchannel", "interruption", "backchannel", "noise", "side_talk")
"""What happens over the agent's voice in every third conversation, in turn; the others are whole exchanges."""
TURN_AFTER_S = 1.2
"""Of silence behind a turn by itself."""
HEAR_S, READ_S = (0.03, 0.3), (0.02, 0.15)
"""How long the work takes, drawn for each conversation, so that no machine's speed is learnt."""

_EVENT = ("kind", "start", "end", "said", "whole")


@dataclass(frozen=True, slots=True)
class Reading:
    """One recognition."""

    text: str
    end: int
    """User sample up to which sound was heard."""
    states: SoundStates | None
    state: NDArray[np.float16] | None
    """[h] the LLM's state after the words; None where it did not read them."""


@dataclass(frozen=True, slots=True)
class Listened:
    """One conversation."""

    seed: int
    sound: NDArray[np.int16]
    """[n] the microphone."""
    labels: NDArray[np.int8]
    """[t] the right decision at the end of each tick."""
    ticks: NDArray[np.float32]
    """[t, 4] probability of voice, voiced, silence (s), the agent speaks."""
    reading: NDArray[np.int32]
    """[t] the newest recognition; -1 before any."""
    fresh: NDArray[np.bool_]
    """[t] it covers all that was said."""
    read: NDArray[np.bool_]
    """[t] the LLM has read it."""
    readings: tuple[Reading, ...]
    events: tuple[Event, ...]

    def heard(self, tick: int, ends: float | None, listening: float | None) -> Heard:
        """A tick as a predictor takes it, with what heads made of its reading."""
        p, voiced, silence_s, speaking = (float(x) for x in self.ticks[tick])
        index = int(self.reading[tick])
        text = self.readings[index].text if index >= 0 else ""
        return Heard(
            np.zeros(0, np.float32), p, bool(voiced), silence_s, bool(speaking), text, bool(self.fresh[tick]), ends, listening
        )


def noted(seed: int, scenario: Scenario, ticks: Sequence[Known], states: dict[str, NDArray[np.float16]]) -> Listened:
    """What is kept of a conversation. states: what the LLM made of words."""
    readings, numbers, read = list[Reading](), dict[int, int](), set[int]()
    reading = np.full(len(ticks), -1, np.int32)
    for tick, one in enumerate(ticks):
        if one.said is None:
            continue
        if id(one.said) not in numbers:
            numbers[id(one.said)] = len(readings)
            readings.append(Reading(one.said.text, one.said.end, one.said.states, None))
        reading[tick] = index = numbers[id(one.said)]
        if one.read and index not in read:
            read.add(index)
            before = readings[index]
            readings[index] = Reading(before.text, before.end, before.states, states.get(before.text))
    told = [(one.heard.voice_p, one.heard.voiced, one.heard.silence_s, one.heard.agent_speaking) for one in ticks]
    return Listened(
        seed,
        np.round(np.clip(scenario.user, -1, 1) * 32767).astype(np.int16),
        scenario.labels,
        np.array(told, np.float32),
        reading,
        np.array([one.heard.fresh for one in ticks]),
        np.array([one.read for one in ticks]),
        tuple(readings),
        scenario.events,
    )


def scenario_of(builder: Builder, seed: int, place: int, *, turns: bool = False) -> Scenario:
    """The conversation of a seed; place: its number."""
    if turns:
        return builder.turn(seed, draw_pauses(np.random.default_rng((seed, 7))), TURN_AFTER_S)
    if place % 3 == 2:
        return builder.overlap(seed, OVERLAPS[place // 3 % len(OVERLAPS)])  # type: ignore[arg-type]
    return builder.conversation(seed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of every training that learns from conversations."""
    parser.add_argument("--conversations", type=int, default=1200, help="how many are built (default: 1200)")
    parser.add_argument("--sentences", type=int, default=500, help="sentences each voice speaks (default: 500)")


def cost(args: argparse.Namespace, inputs: Iterable[str]) -> str:
    """What making them will cost, as a sentence."""
    seconds_each = {"bridge": 1.4, "projector": 2.8}
    built = args.conversations * sum(cast.share for cast in CASTS.values())
    minutes = sum(seconds_each[name] * SHARES[name] for name in inputs) * built / 60
    megabytes = 0.2 * args.sentences + 310 * hours(args, inputs)
    return (
        f"{args.conversations} conversations: about {args.sentences * 0.3 / 60:.0f} min of speaking, 25 min to find where recorded people "
        f"pause, and {minutes:.0f} min of hearing on one thread, {megabytes:.0f} MB on disk; what is there is not made again."
    )


def hours(args: argparse.Namespace, inputs: Iterable[str]) -> float:
    """So long all conversations last."""
    seconds = sum(SHARES[name] * cast.share * (9.0 if cast.turns else 18.0) for name in inputs for cast in CASTS.values())
    return float(args.conversations) * seconds / 3600


def never() -> None:
    """Wait for nothing."""


def shards(args: argparse.Namespace, work: Path, heard_by: str, wait: Callable[[], None]) -> list[Path]:
    """Files of `--conversations` conversations as heard by the ears of an input; the missing ones are made. Raises OSError."""
    return [file for cast in CASTS for file in _of_cast(args, work, heard_by, cast, wait)]


def need_speakers(args: argparse.Namespace, work: Path, inputs: Iterable[str]) -> None:
    """Raises InputError where a voice is not installed whose conversations are not there."""
    for name, cast in CASTS.items():
        if all(file.exists() for heard_by in inputs for file in files_of(args, work, heard_by, name)):
            continue
        if cast.people:
            need_people("training")
        else:
            if name == "-more":
                need_espeak()
            need_flite()


def files_of(args: argparse.Namespace, work: Path, heard_by: str, cast: str) -> list[Path]:
    """Where the conversations of a cast are kept."""
    count = max(round(args.conversations * SHARES[heard_by] * CASTS[cast].share) // SHARD, 1)
    return [work / f"heard-{heard_by}{cast}-{args.sentences}-{args.seed}-{index:03}.npz" for index in range(count)]


def _of_cast(args: argparse.Namespace, work: Path, heard_by: str, cast: str, wait: Callable[[], None]) -> list[Path]:
    files = files_of(args, work, heard_by, cast)
    missing = [index for index, file in enumerate(files) if not file.exists()]
    if not missing:
        return files
    # of noise there is much to judge, which would take most of the time
    judge = ["ears.judge_weight=0"] if heard_by == "projector" else []
    profile = load_profile("edge", [f"input={heard_by}", "ears.heads=false", *judge, *WITHOUT])
    wait()
    parts = build_parts(profile)
    torch.set_num_threads(1)
    stock = _stock(args, work / "stock", cast, profile)
    config = session_config(profile)
    reader = WordsReader(parts, config.response.system_prompt)
    began = time.monotonic()
    for done, index in enumerate(missing):
        made = []
        for place in range(index * SHARD, (index + 1) * SHARD):
            wait()
            seed = args.seed * 1_000_000 + place + CASTS[cast].first_seed
            scenario = scenario_of(Builder(stock, ScenarioConfig(clean=place % 8 == 0)), seed, place, turns=CASTS[cast].turns)
            reader.states.clear()
            made.append(noted(seed, scenario, listen(scenario, parts.vad, reader, _took(seed), config), reader.states))
        save(files[index], made)
        left = (time.monotonic() - began) / (done + 1) * (len(missing) - done - 1)
        print(
            f"{heard_by}{cast} heard {(index + 1) * SHARD} of {len(files) * SHARD} conversations, {left / 60:.0f} min left",
            flush=True,
        )
    return files


def _stock(args: argparse.Namespace, folder: Path, cast: str, profile: Profile) -> Stock:
    """What they say."""

    def tell(text: str) -> None:
        print(text, flush=True)

    if CASTS[cast].people:
        return make_people("training", folder, tell)
    if cast == "-more":
        return make_stock("training", more_training_voices(max(round(args.sentences * CASTS[cast].share), 10)), folder, tell)
    where = weights.locate(profile)
    voices = training_voices(args.sentences, where["vits-joe-split"], where["vits-joe-config"])
    return make_stock("training", voices, folder, tell)


def _took(seed: int) -> Took:
    rng = np.random.default_rng((seed, 5))
    hear_s, read_s = (float(np.exp(rng.uniform(*np.log(between)))) for between in (HEAR_S, READ_S))
    return Took(hear_s, read_s)


def save(file: Path, made: Sequence[Listened]) -> None:
    """Keep a shard. Raises OSError."""
    kept: dict[str, Any] = {}
    told = []
    for number, one in enumerate(made):
        for name in ("sound", "labels", "ticks", "reading", "fresh", "read"):
            kept[f"{number}.{name}"] = getattr(one, name)
        known = [r.states.frames if r.states is not None else np.zeros((0, 1)) for r in one.readings]
        last = [r.states.last if r.states is not None and r.states.last is not None else np.zeros(0) for r in one.readings]
        state = [r.state if r.state is not None else np.zeros(0) for r in one.readings]
        for name, rows in (("frames", known), ("last", last), ("state", state)):
            kept[f"{number}.{name}"] = np.concatenate([np.ravel(x) for x in rows] or [np.zeros(0)]).astype(np.float16)
        told.append(
            {
                "seed": one.seed,
                "events": [[getattr(e, name) for name in _EVENT] for e in one.events],
                "readings": [
                    [r.text, r.end, list(k.shape), len(a), len(s)]
                    for r, k, a, s in zip(one.readings, known, last, state, strict=True)
                ],
            }
        )
    part = file.with_suffix(".part.npz")
    np.savez(part, allow_pickle=False, told=np.array(json.dumps(told)), **kept)
    os.replace(part, file)


def load(file: Path) -> list[Listened]:
    """A shard."""
    with np.load(file, allow_pickle=False) as kept:
        return [_of(kept, number, told) for number, told in enumerate(json.loads(str(kept["told"])))]


def _of(kept: Any, number: int, told: dict[str, Any]) -> Listened:
    frames, last, state = (kept[f"{number}.{name}"] for name in ("frames", "last", "state"))
    at = [0, 0, 0]
    readings = []
    for text, end, shape, lasts, states in told["readings"]:
        n = shape[0] * shape[1]
        own = frames[at[0] : at[0] + n].reshape(shape), last[at[1] : at[1] + lasts], state[at[2] : at[2] + states]
        at = [at[0] + n, at[1] + lasts, at[2] + states]
        seen = SoundStates(own[0], own[1] if lasts else None) if shape[0] else None
        readings.append(Reading(text, end, seen, own[2] if states else None))
    arrays = {f.name: kept[f"{number}.{f.name}"] for f in fields(Listened) if f"{number}.{f.name}" in kept}
    events = tuple(Event(**dict(zip(_EVENT, e, strict=True))) for e in told["events"])
    return Listened(seed=told["seed"], readings=tuple(readings), events=events, **arrays)


def work_folder(args: argparse.Namespace) -> Path:
    """Where conversations are kept, for both trainings."""
    return args.work or weight_cache.home() / "train-floor"
