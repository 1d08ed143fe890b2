"""The speech that the input projector learns from: the texts, spoken by flite's voices on the CPU and by "joe" in batches on the GPU.

The two go on at the same time and stop by the clock: flite runs as one program a sentence in a pool of threads, and what it has not said
by then is not said. Each voice's sound is kept in one file; what is there is not made again. flite's voices `slt` and `rms` are the
bench's, and never speak here. Without flite there is joe alone, and a notice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import wave
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from apps.train_projector_texts import Texts
from decoders.vits_net import HOP, VITS_RATE_HZ, VitsNet
from duplex.audio import USER_RATE_HZ
from duplex.errors import InputError
from encoders.speech_augment import SoundBank, resample_exact
from encoders.speech_batches import Spoken, letter_shares

FLITE = (("awb", 0.5), ("kal16", 0.3), ("kal", 0.2))
"""Voices and the share of sentences that each speaks."""
LONGEST_S = 11.0
HELD_EVERY = 40
"""One text in so many is kept for judging."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class SpeechConfig:
    """How much is spoken."""

    seconds: float = 90.0
    """Time for it."""
    threads: int = 10
    """Programs of flite that run side by side."""
    batch_s: float = 600.0
    """Sound that joe makes at once."""
    passes: int = 1
    """How often joe may say each text."""
    seed: int = 0
    """Of what is drawn."""


def speak(
    texts: Texts, folder: Path, teacher: VitsNet | None, config: SpeechConfig, tell: Tell, device: str, flite: str | None = None
) -> Spoken:
    """All voices' sound from `folder`, made where it is missing, on `device`. Raises InputError when nobody can speak."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + config.seconds
    flite = flite or shutil.which("flite")
    wanted = [name for name, _ in FLITE if not _file(folder, name).exists()] if flite else []
    if flite is None:
        tell("flite is not installed: joe speaks alone")
    order = np.random.default_rng(config.seed).permutation(len(texts))
    with ThreadPoolExecutor(config.threads) as pool:
        running = {name: _flite_voice(pool, flite or "", name, texts, order, ends) for name in wanted}
        if teacher is not None and not _file(folder, "joe").exists():
            _keep(folder, "joe", *_joe(texts, teacher, config, ends, tell))
        for name, futures in running.items():
            said = [found for future in futures if (found := future.result()) is not None]
            if said:
                _keep(folder, name, [sound for _, sound in said], [index for index, _ in said])
                tell(f"{name}: {len(said)} sentences, {sum(len(s) for _, s in said) / USER_RATE_HZ / 3600:.1f} h")
    return gather(texts, folder, torch.device(device))


def gather(texts: Texts, folder: Path, device: torch.device) -> Spoken:
    """The sound in `folder`, on a device. Raises InputError when there is none."""
    sounds, lengths, said, voices = [], [], [], []
    for name in ("joe", *(name for name, _ in FLITE)):
        if _file(folder, name).exists():
            kept = load_file(_file(folder, name))
            sounds.append(kept["sound"].to(device))
            lengths.append(kept["offsets"].diff())
            said.append(kept["text"])
            voices += [name] * len(kept["text"])
    if not sounds:
        raise InputError("There is nobody to speak the training texts: pack the voice joe, or install flite (apt install flite).")
    sound, length = torch.cat(sounds), torch.cat(lengths)
    starts = length.cumsum(0) - length
    text = torch.cat(said).long().numpy()
    bank = SoundBank(sound, starts.to(device), length.to(device))
    letters = [sum(c.isalpha() for c in piece.decode(errors="ignore")) + 4 * piece.strip().isdigit() for piece in texts.pieces]
    shares = [
        (letter_shares([letters[token] for token in first]), letter_shares([letters[token] for token in following]))
        for first, following in zip(texts.first, texts.next, strict=True)
    ]
    return Spoken(bank, text, voices, texts.first, texts.next, text % HELD_EVERY == 0, length.numpy(), shares)


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


# -- flite


def _flite_voice(
    pool: ThreadPoolExecutor, flite: str, voice: str, texts: Texts, order: NDArray[np.int64], ends: float
) -> list[Future[tuple[int, NDArray[np.int16]] | None]]:
    """Each voice has its own part of the texts, in an order that leaves a sample when time runs out."""
    at = 0.0
    for name, share in FLITE:
        part = order[round(at * len(order)) : round((at + share) * len(order))]
        at += share
        if name == voice:
            return [pool.submit(_flite_says, flite, voice, int(index), texts.texts[index], ends) for index in part]
    raise AssertionError(f"no voice {voice}")


def _flite_says(flite: str, voice: str, index: int, text: str, ends: float) -> tuple[int, NDArray[np.int16]] | None:
    if time.monotonic() > ends:
        return None
    stretch = (0.85, 0.95, 1.0, 1.05, 1.15)[index % 5]
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.NamedTemporaryFile(suffix=".wav", dir=place) as file:
        command = [flite, "-voice", voice, "--setf", f"duration_stretch={stretch}", "-t", text, "-o", file.name]
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
    return index, samples


# -- joe


def _joe(texts: Texts, voice: VitsNet, config: SpeechConfig, ends: float, tell: Tell) -> tuple[list[NDArray[np.int16]], list[int]]:
    """Batches of texts of like length; each batch in its own manner (speed, liveliness)."""
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
    latents, durations = voice.speak(
        ids.to(device),
        lengths.to(device),
        generator,
        noise_scale=float(rng.uniform(0.4, 1.0)),
        noise_w=float(rng.uniform(0.5, 1.0)),
        length_scale=float(np.exp(rng.uniform(np.log(0.8), np.log(1.25)))),
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        sound: Tensor = voice.render(latents)
    sound = resample_exact(sound.float(), VITS_RATE_HZ, USER_RATE_HZ)
    flat = (sound.clamp(-1, 1) * 32000).short().cpu().numpy()
    counts = (durations.sum(1).cpu().numpy() * HOP * USER_RATE_HZ / VITS_RATE_HZ).astype(np.int64)
    return [row[:count].copy() for row, count in zip(flat, counts, strict=True)]
