"""The stock of speech that built conversations are made of, spoken once and kept in a folder; its listener, the agent's ears and LLM."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.chat import Chat
from agent.chat_template import Message
from agent.parts import Parts
from apps import train_speech
from apps.train_speech import Speak
from apps.train_stock_texts import to_say
from duplex.audio import Samples, user_samples
from duplex.predictor import Ending
from duplex.scenario import Stock, Utterance
from duplex.scenario_texts import BACKCHANNELS, INTERRUPTIONS, LEADS, Set, choose, sentences
from encoders.ears import Ears, Transcript

Progress = Callable[[str], None]


class WordsReader:
    """The agent's ears and LLM, as apps.floor_listening asks them."""

    def __init__(self, parts: Parts, system_prompt: str) -> None:
        self.parts, self.system_prompt = parts, system_prompt
        self.states: dict[str, NDArray[np.float16]] = {}
        """Words -> [h] the LLM's state after them, where the agent's LLM gives it."""
        self._context = parts.thinker.open()

    @property
    def ears(self) -> Ears:
        """The agent's."""
        return self.parts.ears

    def ends(self, said: Transcript) -> Ending | None:
        """How likely a user's sentence ends after these words; None for no words."""
        words = Message("user", said.text.strip(), said.speech).open_ended()
        if not words.text:
            return None
        keys = self.parts.thinker.render(self.system_prompt, [words], open_assistant=False, open_last=True)
        for _ in self.parts.thinker.sync_steps(self._context, keys):
            pass
        if isinstance(self.parts.thinker, Chat):
            self.states[said.text] = self.parts.thinker.thinker.state(self._context).float().cpu().numpy().astype(np.float16)
        return self.parts.thinker.turn_end(self._context)


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


def more_training_voices(count: int) -> list[Voice]:
    """Unlike those: high ones, and some of a program that makes its sound another way; nothing is learnt so well from few of them."""
    return [
        Voice("awb-high", train_speech.flite("awb", 1.1, 210), count),
        Voice("kal16-high", train_speech.flite("kal16", 0.95, 180), count),
        Voice("espeak-f2", train_speech.espeak("en-us+f2"), count),
        Voice("espeak-f5", train_speech.espeak("en-gb+f5", 150), count),
        Voice("espeak-m3", train_speech.espeak("en-us+m3", 180), count),
    ]


def bench_voices(count: int) -> list[Voice]:
    """The voices of the bench, kept out of all training."""
    return [Voice("slt", train_speech.flite("slt"), count), Voice("rms", train_speech.flite("rms"), count)]


def make_stock(which: Set, voices: Sequence[Voice], folder: Path, tell: Progress) -> Stock:
    """Speak what is not in `folder` yet. Raises InputError without flite, OSError for a folder that cannot be written."""
    train_speech.need_flite()
    folder.mkdir(parents=True, exist_ok=True)
    stock = Stock([], [], [], [])
    for seed, voice in enumerate(voices):
        file = folder / f"{which}-{voice.name}-{voice.count}-{_texts_digest(which)}.npz"
        if not file.exists():
            tell(f"{voice.name} speaks {voice.count} sentences")
            save_utterances(file, _speak_all(which, voice, seed))
        for kind, utterances in load_utterances(file).items():
            getattr(stock, kind).extend(utterances)
    return stock


def _texts_digest(which: Set) -> str:
    """Changes with what there is to say, so that a stock of other texts is not taken for this one."""
    texts = (sentences(which), INTERRUPTIONS[which], BACKCHANNELS[which], LEADS[which], train_speech.HUMMED)
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:8]


def _speak_all(which: Set, voice: Voice, seed: int) -> dict[str, list[Utterance]]:
    rng = np.random.default_rng((seed, len(which)))
    found: dict[str, list[Utterance]] = {"utterances": [], "interruptions": [], "backchannels": [], "leads": []}
    wanted = {
        "utterances": to_say(which, voice.count, rng),
        "interruptions": [choose(t, rng) for t in INTERRUPTIONS[which].strip().split("\n") if t],
        "backchannels": BACKCHANNELS[which].split("/"),
        "leads": LEADS[which].split("/"),
    }
    for kind, texts in wanted.items():
        for text in dict.fromkeys(texts):
            utterance = train_speech.utter(voice.speak, voice.name, text, rng, plain=kind != "utterances")
            if utterance is not None and len(utterance.samples) < user_samples(12):
                found[kind].append(utterance)
    return found


def save_utterances(file: Path, utterances: dict[str, list[Utterance]]) -> None:
    """Keep speech of some kinds. Raises OSError."""
    told: dict[str, list[dict[str, Any]]] = {}
    sounds: list[Samples] = []
    for kind, group in utterances.items():
        told[kind] = []
        for u in group:
            told[kind].append({"voice": u.voice, "n": len(u.samples), "places": u.places, "said": u.said, "whole": u.whole})
            sounds.append(u.samples)
    joined = np.concatenate(sounds) if sounds else np.zeros(0, np.float32)
    part = file.with_suffix(".part.npz")
    np.savez(part, sound=np.round(np.clip(joined, -1, 1) * 32767).astype(np.int16), told=np.array(json.dumps(told)))
    os.replace(part, file)


def load_utterances(file: Path) -> dict[str, list[Utterance]]:
    """What `save_utterances` kept."""
    with np.load(file, allow_pickle=False) as kept:
        sound, told = kept["sound"].astype(np.float32) / 32767, json.loads(str(kept["told"]))
    found: dict[str, list[Utterance]] = {}
    at = 0
    for kind, group in told.items():
        found[kind] = []
        for u in group:
            samples = sound[at : at + u["n"]]
            found[kind].append(Utterance(u["voice"], samples, tuple(u["places"]), tuple(u["said"]), tuple(u["whole"])))
            at += u["n"]
    return found
