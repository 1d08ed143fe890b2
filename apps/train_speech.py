"""Speech for built conversations: flite's and espeak-ng's voices and the voice "joe", each with the places where it may pause.

flite tells when each of its phones ends, so the place of a hesitation is found by counting the phones of the words before it; joe's
durations are planned word by word. The end of a turn is spoken in three ways, as the sentence's end, before a comma, and cut out of running
speech, and so is a hesitation (the first is then a filler), so that how a sound breaks off does not tell what it is.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile

from decoders.bridge_voice import BridgeVoice
from decoders.normalize import Reader, normalize
from decoders.vits import HOP, VITS_RATE_HZ, Vits, VitsConfig
from duplex.audio import USER_RATE_HZ, Samples
from duplex.errors import InputError
from duplex.resample import resample
from duplex.scenario import Utterance
from duplex.scenario_texts import FILLERS

HUMMED = {"mhm": "m m hh m m", "hm": "hh m m"}
"""What voices would spell letter by letter, as flite's phones."""

Speak = Callable[[str, list[str]], tuple[Samples, list[int]]]
"""(text, its beginnings) -> [n] user samples, and where each beginning ends; raises ValueError where that cannot be told."""


def need_flite() -> None:
    """Raises InputError when flite is not installed."""
    if shutil.which("flite") is None:
        raise InputError("The training speech is made by flite, which is not installed; on Debian or Ubuntu: apt install flite.")


def need_espeak() -> None:
    """Raises InputError when espeak-ng is not installed."""
    if shutil.which("espeak-ng") is None:
        raise InputError("Some of the training speech is made by espeak-ng; on Debian or Ubuntu: apt install espeak-ng.")


def flite(voice: str, speed: float = 1.0, pitch_hz: int | None = None) -> Speak:
    """One of flite's voices; pitch_hz: as high as this."""

    def speak(text: str, beginnings: list[str]) -> tuple[Samples, list[int]]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "speech.wav"
            manner = ["--setf", f"duration_stretch={1 / speed}"]
            if pitch_hz is not None:
                manner += ["--setf", f"int_f0_target_mean={pitch_hz}"]
            told = _run(["flite", "-voice", voice, *manner, "-psdur", *_for_flite(text), "-o", str(file)])
            samples, rate = soundfile.read(file, dtype="float32")
        phones = [(name, float(end)) for name, _, end in (item.partition(":") for item in told.split())]
        ends = [end for name, end in phones if name != "pau"]
        places = []
        for beginning in beginnings:
            said = [
                p for p in _run(["flite", "-voice", "kal16", "-ps", *_for_flite(beginning), "-o", "none"]).split() if p != "pau"
            ]
            if not said or len(said) > len(ends):
                raise ValueError("the words before this place cannot be found")
            places.append(round(ends[len(said) - 1] * USER_RATE_HZ))
        return resample(samples, rate, USER_RATE_HZ) if rate != USER_RATE_HZ else samples, places

    return speak


def _for_flite(text: str) -> list[str]:
    return ["-p", f"pau {HUMMED[text]} pau"] if text in HUMMED else ["-t", text]


def espeak(variant: str, pace: int = 165) -> Speak:
    """A variant of espeak-ng, which cannot tell where a word ends: each stretch is spoken by itself, as somebody does who halts."""

    def speak(text: str, beginnings: list[str]) -> tuple[Samples, list[int]]:
        if text in HUMMED:
            raise ValueError("espeak-ng would spell it")
        sounds, places, at = [], [], 0
        for beginning in beginnings:
            said, mark = text[at : len(beginning)].strip(" ,"), text[len(beginning) : len(beginning) + 1]
            at = len(beginning)
            whole = beginning == text or mark in ".?!"
            sounds.append(_espoken(variant, pace, said if whole else f"{said},"))
            places.append(sum(map(len, sounds)))
        return np.concatenate(sounds), places

    return speak


def _espoken(variant: str, pace: int, text: str) -> Samples:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speech.wav"
        _run(["espeak-ng", "-v", variant, "-s", str(pace), "-w", str(file), text])
        samples, rate = soundfile.read(file, dtype="float32")
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    if not len(loud):
        raise ValueError("nothing was said")
    return resample(samples[loud[0] : loud[-1] + 1], rate, USER_RATE_HZ)


def joe(split: Path, voice_config: Path, speed: float = 1.0, noise: float = 0.667, seed: int = 0) -> Speak:
    """The VITS voice, at a speed and with a noise scale."""
    voice = BridgeVoice.load(split, voice_config, lambda ids: "")
    vits = Vits.load(split, VitsConfig(length_scale=1 / speed, noise_scale=noise))
    rng = np.random.default_rng(seed)

    def speak(text: str, beginnings: list[str]) -> tuple[Samples, list[int]]:
        if text in HUMMED:
            raise ValueError("joe would spell it")
        pieces = normalize(text, Reader())
        ipa = voice.phonemize([word for piece in pieces for word in piece.words])
        marks = [mark for piece in pieces for mark in [*([""] * (len(piece.words) - 1)), piece.mark]]
        encoded = voice.table.encode(ipa, marks)
        plan = vits.plan(encoded.ids, rng)
        edges = np.cumsum(plan.durations)
        sound = vits.render(plan.latents, 0, int(edges[-1]))
        places = []
        for beginning in beginnings:
            count = sum(len(piece.words) for piece in normalize(beginning, Reader()))
            if not 0 < count <= len(encoded.word_ends):
                raise ValueError("the words before this place cannot be found")
            places.append(round(int(edges[encoded.word_ends[count - 1] - 1]) * HOP * USER_RATE_HZ / VITS_RATE_HZ))
        return resample(np.asarray(sound, np.float32), VITS_RATE_HZ, USER_RATE_HZ), places

    return speak


def utter(speak: Speak, voice: str, sentence: str, rng: np.random.Generator, *, plain: bool = False) -> Utterance | None:
    """Speak a sentence with its places (`|`); None when the voice cannot tell where they are. plain: end it as a sentence ends."""
    marks = [mark == "||" for mark in re.findall(r"\|+", sentence)]
    parts = [part.strip() for part in re.split(r"\|+", sentence)]
    spoken, beginnings, said = "", [], []
    for place, part in enumerate(parts):
        spoken = f"{spoken} {part}".strip()
        said.append(" ".join(parts[: place + 1]))
        if place == len(parts) - 1:
            break
        how = rng.integers(3) if not marks[place] else 2
        if how == 0:
            spoken += f", {rng.choice(FILLERS)}"
        beginnings.append(spoken)
        spoken += "" if how == 2 else ","
    beginnings.append(spoken)
    ending = 0 if plain else rng.choice(3, p=(0.6, 0.2, 0.2))
    if ending:
        spoken = spoken.rstrip(".?!") + (", you know it" if ending == 1 else " and then some more")
    try:
        samples, places = speak(spoken, beginnings)
    except ValueError:
        return None
    if not ending:
        places[-1] = len(samples)
    if any(b <= a for a, b in pairwise(places)):
        return None
    return Utterance(voice, samples[: places[-1]], tuple(places), tuple(said), (*marks, True))


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
