"""The speech that the input projector learns from: the texts, spoken by programs on the CPU and by "joe" in batches on the GPU.

The two go on at the same time and stop by the clock: a sentence is one run of a program in a pool of threads, and what has not been said
by then is not said. Every sentence has another pitch and pace; joe's recordings are also played faster or slower than they were made,
which makes larger and smaller people of him. Each voice's sound is kept in one file; what is there is not made again. flite's voices
`slt` and `rms` are the bench's, and never speak here. What is not installed does not take part, with a notice.

Recorded prompts, of which `--pack` leaves half here where they are installed, are heard many times as often as anything else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from apps.train_projector_texts import Texts
from decoders.vits_net import HOP, VITS_RATE_HZ, VitsNet
from duplex.audio import USER_RATE_HZ, Samples
from duplex.errors import InputError
from encoders.fast_types import fast_in_bfloat16
from encoders.speech_augment import SoundBank, resample_exact
from encoders.speech_batches import Spoken

PROGRAMS = {"awb": "flite", "kal16": "flite", "ked": "festival", "espeak": "espeak-ng", "kal": "flite"}
"""Who speaks with each voice that programs have."""
MADE = (("awb", 0.36), ("kal16", 0.28), ("ked", 0.14), ("espeak", 0.15), ("kal", 0.07))
"""The share of sentences of each."""
VARIANTS = (
    "en-us",
    "en-us+m3",
    "en-us+m7",
    "en-us+f2",
    "en-us+f4",
    "en-us+f5",
    "en-gb+m1",
    "en-gb+m6",
    "en-gb+f1",
    "en-gb+f3",
    "en-gb-scotland+f2",
)
"""Of espeak-ng."""
PACES = (20_000, 22_050, 22_050, 22_050, 24_000, 26_000, 28_800, 32_000)
"""Rates (Hz) as which joe's 22,050 Hz are read."""
PROMPTS = "prompts"
PROMPT_SHARE, PROMPT_TIMES = 0.08, 30
"""Recorded prompts are repeated until they are this share of all recordings, but no more often than this."""
LONGEST_S = 11.0
HELD_EVERY = 40
"""One text in so many is kept for judging."""

_FILE = "\0"
"""Stands in a command for the file to write."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class SpeechConfig:
    """How much is spoken."""

    seconds: float = 90.0
    """Time for it."""
    threads: int = 10
    """Programs that run side by side."""
    batch_s: float = 600.0
    """Sound that joe makes at once."""
    passes: int = 1
    """How often joe may say each text."""
    seed: int = 0
    """Of what is drawn."""


def speak(
    texts: Texts, folder: Path, teacher: VitsNet | None, config: SpeechConfig, tell: Tell, device: str, flite: str | None = None
) -> Spoken:
    """All voices' sound from `folder`, made where it is missing, on `device`. Raises InputError when nobody can speak.

    flite: where it is, if not on the path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + config.seconds
    programs = {name: shutil.which(name) for name in dict.fromkeys(PROGRAMS.values())}
    programs["flite"] = flite or programs["flite"]
    for name, where in programs.items():
        if where is None:
            tell(f"{name} is not installed: its voices do not speak")
    jobs = _jobs(texts, programs, [name for name, _ in MADE if not _file(folder, name).exists()], config.seed)
    with ThreadPoolExecutor(config.threads) as pool:
        running = [(job.voice, pool.submit(_says, job, ends)) for job in jobs]
        if teacher is not None and not _file(folder, "joe").exists():
            _keep(folder, "joe", *_joe(texts, teacher, config, ends, tell))
        said: dict[str, list[tuple[int, NDArray[np.int16]]]] = {}
        for name, future in running:
            if (found := future.result()) is not None:
                said.setdefault(name, []).append(found)
    for name, some in said.items():
        _keep(folder, name, [sound for _, sound in some], [index for index, _ in some])
        tell(f"{name}: {len(some)} sentences, {sum(len(s) for _, s in some) / USER_RATE_HZ / 3600:.1f} h")
    return gather(texts, folder, torch.device(device))


def gather(texts: Texts, folder: Path, device: torch.device) -> Spoken:
    """The sound in `folder`, on a device. Raises InputError when there is none."""
    sounds, begins, lengths, said = [], [], [], []
    voices: list[str] = []
    at = 0
    for name in ("joe", *(name for name, _ in MADE), PROMPTS):
        if _file(folder, name).exists():
            kept = load_file(_file(folder, name))
            sounds.append(kept["sound"].to(device))
            wanted = round(PROMPT_SHARE * len(voices) / max(len(kept["text"]), 1)) if name == PROMPTS else 1
            times = min(max(wanted, 1), PROMPT_TIMES)
            begins.append((kept["offsets"][:-1] + at).repeat(times))
            lengths.append(kept["offsets"].diff().repeat(times))
            said.append(kept["text"].repeat(times))
            voices += [name] * (times * len(kept["text"]))
            at += len(kept["sound"])
    if set(voices) <= {PROMPTS}:
        raise InputError("There is nobody to speak the training texts: pack the voice joe, or install flite (apt install flite).")
    sound, starts, length = torch.cat(sounds), torch.cat(begins), torch.cat(lengths)
    text = torch.cat(said).long().numpy()
    bank = SoundBank(sound, starts.to(device), length.to(device))
    held = (text % HELD_EVERY == 0) & (np.array(voices) != PROMPTS)
    return Spoken(bank, text, voices, held, length.numpy(), sounds_of(texts))


def sounds_of(texts: Texts) -> list[NDArray[np.int64]]:
    """Each text's phones, numbered in the order of joe's table without those that no text has."""
    made = [phones[texts.sounds[phones]] for phones in texts.phones]
    used = np.unique(np.concatenate(made))
    return [np.searchsorted(used, one) for one in made]


def keep_prompts(folder: Path, said: list[int], sounds: list[Samples]) -> None:
    """Put recordings of people beside the others. said: which text each says."""
    folder.mkdir(parents=True, exist_ok=True)
    _keep(folder, PROMPTS, [(one * 32767).astype(np.int16) for one in sounds], said)


def _file(folder: Path, voice: str) -> Path:
    return folder / f"speech-{voice}.safetensors"


def _keep(folder: Path, voice: str, sounds: list[NDArray[np.int16]], said: list[int]) -> None:
    if not sounds:
        return
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sounds])]).astype(np.int64)
    flat = {
        "sound": torch.from_numpy(np.concatenate(sounds)),
        "offsets": torch.from_numpy(offsets),
        "text": torch.tensor(said, dtype=torch.int32),
    }
    part = _file(folder, voice).with_suffix(".part")
    save_file(flat, part)
    os.replace(part, _file(folder, voice))


# -- programs


@dataclass(frozen=True, slots=True)
class _Job:
    """A sentence for a program."""

    voice: str
    index: int
    command: tuple[str, ...]


def _jobs(texts: Texts, programs: dict[str, str | None], wanted: list[str], seed: int) -> list[_Job]:
    """The wanted voices that can speak share the texts, in an order that leaves a sample of all when time runs out."""
    rng = np.random.default_rng(seed)
    can = [(name, share) for name, share in MADE if programs[PROGRAMS[name]] is not None]
    if not can:
        return []
    shares = np.array([share for _, share in can])
    jobs = []
    for index in rng.permutation(len(texts)):
        name = can[rng.choice(len(can), p=shares / shares.sum())][0]
        text, pitch, stretch = texts.texts[index], int(rng.integers(80, 240)), float(np.exp(rng.uniform(-0.25, 0.2)))
        if name == "espeak":
            variant, pace = VARIANTS[rng.integers(len(VARIANTS))], round(165 / stretch)
            command = [programs["espeak-ng"], "-v", variant, "-s", str(pace), "-p", str(pitch // 3), "-w", _FILE, text]
        elif name == "ked":
            command = [programs["festival"], "--batch", _ked(text, pitch, stretch)]
        else:
            features = (f"duration_stretch={stretch:.2f}", f"int_f0_target_mean={pitch}")
            command = [
                programs["flite"],
                "-voice",
                name,
                *(part for one in features for part in ("--setf", one)),
                "-t",
                text,
                "-o",
                _FILE,
            ]
        if name in wanted:
            jobs.append(_Job(name, int(index), tuple(map(str, command))))
    return jobs


def _ked(text: str, pitch: int, stretch: float) -> str:
    """festival's commands for its voice ked, which is Debian's festvox-kdlpc16k."""
    said = text.replace("\\", " ").replace('"', " ")
    return (
        f"(begin (voice_ked_diphone) (Parameter.set 'Duration_Stretch {stretch:.2f}) "
        f"(set! int_lr_params '((target_f0_mean {pitch}) (target_f0_std {pitch // 8}) (model_f0_mean 170) (model_f0_std 34))) "
        f'(utt.save.wave (utt.synth (Utterance Text "{said}")) "{_FILE}" \'riff))'
    )


def _says(job: _Job, ends: float) -> tuple[int, NDArray[np.int16]] | None:
    if time.monotonic() > ends:
        return None
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.NamedTemporaryFile(suffix=".wav", dir=place) as file:
        command = [part.replace(_FILE, file.name) for part in job.command]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=20)
            with wave.open(file.name) as sound:
                rate, raw = sound.getframerate(), sound.readframes(sound.getnframes())
        except (OSError, EOFError, wave.Error, subprocess.SubprocessError):
            return None
    samples = np.frombuffer(raw, np.int16)
    if rate != USER_RATE_HZ:
        x = torch.from_numpy(samples.astype(np.float32))[None]
        samples = resample_exact(x, rate, USER_RATE_HZ)[0].clamp(-32767, 32767).short().numpy()
    if not 0.2 * USER_RATE_HZ < len(samples) < LONGEST_S * USER_RATE_HZ:
        return None
    return job.index, samples


# -- joe


def _joe(texts: Texts, voice: VitsNet, config: SpeechConfig, ends: float, tell: Tell) -> tuple[list[NDArray[np.int16]], list[int]]:
    """Batches of texts of like length; each batch in its own manner (size, speed, liveliness)."""
    device = next(voice.parameters()).device
    rng = np.random.default_rng((config.seed, 1))
    generator = torch.Generator(device).manual_seed(config.seed)
    usable = np.array([i for i, p in enumerate(texts.phones) if 4 < len(p) < 180])
    sounds: list[NDArray[np.int16]] = []
    said: list[int] = []
    began = told = time.monotonic()
    for _ in range(config.passes):
        by_length = usable[np.argsort([len(texts.phones[i]) + rng.random() * 6 for i in usable])]
        groups, at = [], 0
        while at < len(by_length):
            longest = len(texts.phones[by_length[min(at + 64, len(by_length) - 1)]])
            rows = max(2, min(round(config.batch_s / (longest * 0.085)), 256))
            groups.append(by_length[at : at + rows])
            at += rows
        for group in rng.permutation(len(groups)):
            if time.monotonic() > ends:
                return sounds, said
            chosen = groups[group]
            try:
                made = _batch(voice, [texts.phones[i] for i in chosen], rng, generator, device)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                continue
            for index, sound in zip(chosen, made, strict=True):
                if 0.2 * USER_RATE_HZ < len(sound) < LONGEST_S * USER_RATE_HZ:
                    sounds.append(sound)
                    said.append(int(index))
            if time.monotonic() - told > 5:
                told = time.monotonic()
                hours = sum(map(len, sounds)) / USER_RATE_HZ / 3600
                tell(f"joe: {len(said)} sentences, {hours:.1f} h in {told - began:.0f} s")
    return sounds, said


@torch.no_grad()
def _batch(
    voice: VitsNet, phones: list[NDArray[np.uint8]], rng: np.random.Generator, generator: torch.Generator, device: torch.device
) -> list[NDArray[np.int16]]:
    ids = torch.zeros(len(phones), 2 * max(map(len, phones)) - 1, dtype=torch.long)
    lengths = torch.tensor([2 * len(p) - 1 for p in phones])
    for row, p in enumerate(phones):
        ids[row, : 2 * len(p) - 1 : 2] = torch.from_numpy(p.astype(np.int64))
    rate = PACES[rng.integers(len(PACES))]
    latents, durations = voice.speak(
        ids.to(device),
        lengths.to(device),
        generator,
        noise_scale=float(rng.uniform(0.4, 1.0)),
        noise_w=float(rng.uniform(0.5, 1.0)),
        length_scale=float(np.exp(rng.uniform(np.log(0.8), np.log(1.25)))) * rate / VITS_RATE_HZ,
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=fast_in_bfloat16(device)):
        sound: Tensor = voice.render(latents)
    sound = resample_exact(sound.float(), rate, USER_RATE_HZ)
    flat = (sound.clamp(-1, 1) * 32000).short().cpu().numpy()
    counts = (durations.sum(1).cpu().numpy() * HOP * USER_RATE_HZ / rate).astype(np.int64)
    return [row[:count].copy() for row, count in zip(flat, counts, strict=True)]
