"""The stock of what recorded people say, for built conversations: each line with the places where its speaker does fall silent.

    lines (apps.recorded_lines) -> what Whisper makes of all of it, and of it up to each silence -> utterances

A silence after which another sentence begins is no place: nobody knows whether the turn might have ended there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch

from agent.build import build_parts
from agent.profiles import load_profile
from apps.recorded_lines import Line, lines, need
from apps.train_stock import Progress, load_utterances, save_utterances
from duplex.audio import USER_RATE_HZ, Samples, user_samples
from duplex.english import is_backchannel, words_of
from duplex.scenario import Stock, Utterance
from duplex.scenario_texts import Set
from encoders.ears import Ears

EVERY: dict[Set, int] = {"training": 1, "bench": 3}
"""Of so many lines one is taken: the bench needs fewer than there are."""
PART = 250
"""Lines that are kept together while others are heard; a minute's work."""
SILENT_DB = -30.0
"""Below the loud parts."""
SILENCE_S = 0.09
"""The least that is a place; the closure of a consonant is shorter."""
BEFORE_S, AFTER_S = 0.4, 0.3
"""The least speech around a place."""
SHORTEST_S, LONGEST_S = 0.3, 12.0
NO_SPEECH = 0.6
"""Whisper's, from which on a line is a noise."""
INTERRUPTION_S = 3.0
"""What may interrupt lasts no longer."""


def make_people(which: Set, folder: Path, tell: Progress) -> Stock:
    """Hear what is not in `folder` yet. Raises InputError without the games, OSError for a folder that cannot be written."""
    file = folder / f"{which}-people.npz"
    if not file.exists():
        need(which)
        folder.mkdir(parents=True, exist_ok=True)
        profile = load_profile("edge", ["ears.heads=false", "thinker.chat.sentence_end=odds", "predictor.kind=rules"])
        ears = build_parts(profile).ears
        torch.set_num_threads(1)
        _hear_all(islice(lines(which), 0, None, EVERY[which]), ears, file, tell)
    return stock_of(load_utterances(file)["utterances"])


def _hear_all(said: Iterator[Line], ears: Ears, file: Path, tell: Progress) -> None:
    """Part by part, so that it may be stopped and run again."""
    parts = list[Path]()
    while some := list(islice(said, PART)):
        tell(f"Whisper hears what people say: {len(parts) * PART} lines")
        parts.append(file.with_suffix(f".{len(parts):02}.npz"))
        if not parts[-1].exists():
            heard = [utter(line, ears) for line in some]
            save_utterances(parts[-1], {"utterances": [u for u in heard if u is not None]})
    save_utterances(file, {"utterances": [u for part in parts for u in load_utterances(part)["utterances"]]})
    for part in parts:
        part.unlink()


def stock_of(utterances: Sequence[Utterance]) -> Stock:
    """What may be said when. Every voice has everybody's short words, of which one alone says too few."""
    listening = [u for u in utterances if is_backchannel(u.said[-1])]
    others = [u for u in utterances if not is_backchannel(u.said[-1])]
    short = [u for u in others if len(u.places) == 1 and len(u.samples) <= user_samples(INTERRUPTION_S)]
    able = {u.voice for u in short} & {u.voice for u in others if len(u.places) > 1}
    everybodys = [replace(u, voice=voice) for voice in sorted(able) for u in listening if len(u.places) == 1]
    return Stock([u for u in others if u.voice in able], [u for u in short if u.voice in able], everybodys)


def utter(line: Line, ears: Ears) -> Utterance | None:
    """A line with its places; None for a noise, or what is too short or long."""
    sound, gaps = spans(line.samples)
    if not user_samples(SHORTEST_S) <= len(sound) <= user_samples(LONGEST_S):
        return None
    whole, no_speech = hear(ears, sound)
    if no_speech > NO_SPEECH or not words_of(whole):
        return None
    places, said, since = [], [], 0
    for start, stop in gaps:
        if start - since < user_samples(BEFORE_S) or len(sound) - stop < user_samples(AFTER_S):
            continue
        since = stop
        before, _ = hear(ears, sound[:start])
        if words_of(before) and goes_on(before, whole):
            places.append(start)
            said.append(before)
    return Utterance(line.voice, sound, (*places, len(sound)), (*said, whole), (*(False for _ in places), True))


def spans(samples: Samples) -> tuple[Samples, list[tuple[int, int]]]:
    """The sound without the silence around it, and where it is silent within."""
    step = USER_RATE_HZ // 100
    count = len(samples) // step
    power = np.square(samples[: count * step]).reshape(count, step).mean(axis=1)
    if not count or not power.max() > 0:
        return samples[:0], []
    loud = np.flatnonzero(power > np.percentile(power, 95) * 10 ** (SILENT_DB / 10))
    gaps = [((a + 1 - loud[0]) * step, (b - loud[0]) * step) for a, b in pairwise(loud) if b - a - 1 >= 100 * SILENCE_S]
    return samples[loud[0] * step : (loud[-1] + 1) * step], [(int(a), int(b)) for a, b in gaps]


def goes_on(before: str, whole: str) -> bool:
    """Whether more is said after these words, and no sentence of it all ends with them, or a word sooner or later."""
    said, n = whole.split(), len(before.split())
    return n < len(said) and not any(re.search(r"[.?!]['\"]?$", word) for word in said[max(n - 2, 0) : min(n + 1, len(said) - 1)])


def hear(ears: Ears, samples: Samples) -> tuple[str, float]:
    """What the recogniser makes of all of it, and how likely it is no speech."""
    state = ears.open()
    ears.begin_turn(state, 0)
    ears.feed(state, np.concatenate([np.zeros(user_samples(0.2), np.float32), samples, np.zeros(user_samples(0.3), np.float32)]))
    heard = ears.transcribe(ears.window(state))
    return heard.text, heard.no_speech
