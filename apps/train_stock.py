"""The stock of speech that built conversations are made of: spoken once, read once by the agent's own ears and LLM, and kept in a folder.

What the ears make of each stretch, and how likely the LLM thinks that the sentence ends there, is kept beside the sound: a predictor that
learns from it meets the recogniser's errors and the LLM's doubts as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.chat_template import Message
from agent.parts import Parts
from apps import train_speech
from apps.train_speech import Speak
from duplex.audio import Samples, user_samples
from duplex.predictor import Ending
from duplex.scenario import Stock, Utterance
from duplex.scenario_texts import BACKCHANNELS, INTERRUPTIONS, LEADS, Set, choose, sentences
from encoders.ears import Transcript

Progress = Callable[[str], None]


class WordsReader:
    """The agent's ears and LLM, asked about finished sound."""

    def __init__(self, parts: Parts, system_prompt: str) -> None:
        self.parts, self.system_prompt = parts, system_prompt
        self._context = parts.thinker.open()
        self._known: dict[str, Ending | None] = {}

    def hear(self, samples: Samples) -> Transcript:
        """[n] user samples -> what the ears make of them."""
        ears = self.parts.ears
        state = ears.open()
        ears.begin_turn(state, 0)
        ears.feed(state, samples)
        return ears.transcribe(ears.window(state))

    def ends(self, text: str) -> Ending | None:
        """How likely a user's sentence ends after these words; None for no words."""
        bare = text.rstrip(" .?!")
        if not bare:
            return None
        if bare not in self._known:
            keys = self.parts.thinker.render(self.system_prompt, [Message("user", bare)], open_assistant=False, open_last=True)
            for _ in self.parts.thinker.sync_steps(self._context, keys):
                pass
            self._known[bare] = self.parts.thinker.turn_end(self._context)
        return self._known[bare]

    def read(self, utterance: Utterance) -> Utterance:
        """The utterance with what is heard up to each of its places."""
        quiet = np.zeros(user_samples(0.1), np.float32)
        heard = []
        for place in utterance.places:
            text = self.hear(np.concatenate([quiet, utterance.samples[:place], quiet])).text
            ends = self.ends(text)
            heard.append((text, ends.p if ends is not None else None))
        return replace(utterance, heard=tuple(heard))


@dataclass(frozen=True)
class Voice:
    """One speaker of a stock."""

    name: str
    speak: Speak
    count: int
    """Sentences it speaks."""


def training_voices(count: int, split: Path, voice_config: Path) -> list[Voice]:
    """The voices that a predictor may hear in training; flite's `slt` and `rms` are not among them."""
    return [
        Voice("awb", train_speech.flite("awb"), count),
        Voice("kal16", train_speech.flite("kal16", 1.05), count),
        Voice("joe", train_speech.joe(split, voice_config), count),
        Voice("joe-lively", train_speech.joe(split, voice_config, speed=1.15, noise=0.9, seed=1), count // 2),
    ]


def bench_voices(count: int) -> list[Voice]:
    """The voices of the bench, kept out of all training."""
    return [Voice("slt", train_speech.flite("slt"), count), Voice("rms", train_speech.flite("rms"), count)]


def make_stock(which: Set, voices: Sequence[Voice], folder: Path, reader: WordsReader | None, tell: Progress) -> Stock:
    """Speak and read what is not in `folder` yet. Raises InputError without flite, OSError for a folder that cannot be written."""
    train_speech.need_flite()
    folder.mkdir(parents=True, exist_ok=True)
    stock = Stock([], [], [], [])
    for seed, voice in enumerate(voices):
        file = folder / f"{which}-{voice.name}-{voice.count}-{_texts_digest(which)}{'' if reader else '-unread'}.npz"
        if not file.exists():
            tell(f"{voice.name} speaks {voice.count} sentences")
            _save(file, _speak_all(which, voice, reader, seed))
        for kind, utterances in _load(file).items():
            getattr(stock, kind).extend(utterances)
    return stock


def _texts_digest(which: Set) -> str:
    """Changes with what there is to say, so that a stock of other texts is not taken for this one."""
    texts = (sentences(which), INTERRUPTIONS[which], BACKCHANNELS[which], LEADS[which], train_speech.HUMMED)
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:8]


def _speak_all(which: Set, voice: Voice, reader: WordsReader | None, seed: int) -> dict[str, list[Utterance]]:
    rng = np.random.default_rng((seed, len(which)))
    found: dict[str, list[Utterance]] = {"utterances": [], "interruptions": [], "backchannels": [], "leads": []}
    templates = sentences(which)
    order = [*range(len(templates))] * (voice.count // len(templates) + 1)
    wanted = {
        "utterances": [choose(templates[i], rng) for i in order[: voice.count]],
        "interruptions": [choose(t, rng) for t in INTERRUPTIONS[which].strip().split("\n") if t],
        "backchannels": BACKCHANNELS[which].split("/"),
        "leads": LEADS[which].split("/"),
    }
    for kind, texts in wanted.items():
        for text in dict.fromkeys(texts):
            utterance = train_speech.utter(voice.speak, voice.name, text, rng, plain=kind != "utterances")
            if utterance is not None and len(utterance.samples) < user_samples(12):
                found[kind].append(reader.read(utterance) if reader and kind != "leads" else utterance)
    return found


def _save(file: Path, utterances: dict[str, list[Utterance]]) -> None:
    told: dict[str, list[dict[str, Any]]] = {}
    sounds: list[Samples] = []
    for kind, group in utterances.items():
        told[kind] = []
        for u in group:
            told[kind].append(
                {"voice": u.voice, "n": len(u.samples), "places": u.places, "said": u.said, "whole": u.whole, "heard": u.heard}
            )
            sounds.append(u.samples)
    joined = np.concatenate(sounds) if sounds else np.zeros(0, np.float32)
    part = file.with_suffix(".part.npz")
    np.savez(part, sound=np.round(np.clip(joined, -1, 1) * 32767).astype(np.int16), told=np.array(json.dumps(told)))
    os.replace(part, file)


def _load(file: Path) -> dict[str, list[Utterance]]:
    with np.load(file, allow_pickle=False) as kept:
        sound, told = kept["sound"].astype(np.float32) / 32767, json.loads(str(kept["told"]))
    found: dict[str, list[Utterance]] = {}
    at = 0
    for kind, group in told.items():
        found[kind] = []
        for u in group:
            heard = tuple((str(text), ends) for text, ends in u["heard"])
            samples = sound[at : at + u["n"]]
            found[kind].append(Utterance(u["voice"], samples, tuple(u["places"]), tuple(u["said"]), tuple(u["whole"]), heard))
            at += u["n"]
    return found
