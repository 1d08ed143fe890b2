"""The speech that a flow learns from: the teacher's latents of every shard, and their codes.

    W/replies/NNN -> [teacher, tokenizer] -> W/speech/NNN.safetensors (on a CPU, where making it takes an eighth of its length)

Notable: on a GPU it takes seconds and never touches the disk. One reply in fifty is kept back.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from decoders.flow_speech import Crops, SpeechStore, store
from decoders.speech_tokenizer import SpeechTokenizer, digits_to_index
from decoders.teacher import Taught, latents_and_codes
from decoders.vits_net import VitsNet
from duplex.errors import InputError

KEPT_BACK = 50  # one reply in so many
HELD_CODES = 80  # of a reply that is kept back, from its beginning
MOST_HELD, MOST_HELD_ON_CPU = 96, 24
_NAMES = [each.name for each in dataclasses.fields(Taught)]


def make_speech(shards: list[Path], tokenizer: SpeechTokenizer, hours: float, device: torch.device) -> tuple[SpeechStore, Crops]:
    """Speech of the shards, up to so many hours, and the beginnings of replies that are kept back."""
    work = shards[0].parent.parent
    teacher = VitsNet.load(work / "teacher.safetensors", device)
    made_by = hashlib.sha256((work / "tokenizer.safetensors").read_bytes()).hexdigest()
    mean, deviation = tokenizer.mean.float(), tokenizer.deviation.float()
    back: list[tuple[Tensor, Tensor, Tensor]] = []

    def parts() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        made = 0.0
        for shard in shards:
            kept = work / "speech" / shard.name if device.type == "cpu" else None
            taught = _known(kept, made_by) if kept else None
            if taught is None:
                taught = latents_and_codes(shard, device, teacher, tokenizer)
                if kept:
                    _keep(taught, kept, made_by)
                    print(f"{shard.stem}: {taught.hours():.2f} h spoken", flush=True)
            counts = taught.code_offsets.diff().to(device)
            every = min(KEPT_BACK, len(counts))
            chosen = torch.arange(len(counts), device=device) % every == every - 1
            codes = digits_to_index(taught.codes)
            latents = taught.latents.reshape(len(codes), -1, taught.latents.shape[1])
            hidden = chosen.repeat_interleave(counts)
            if len(back) * KEPT_BACK < 4000:
                back.append((codes[hidden], latents[hidden].flatten(0, 1), counts[chosen]))
            yield codes[~hidden], latents[~hidden].flatten(0, 1), counts[~chosen]
            made += taught.hours()
            if made >= hours:
                return

    try:
        speech = store(parts(), mean, deviation)
        kept_back = store(back, mean, deviation)
        longest = int(kept_back.offsets.diff().max())
        return speech, kept_back.beginnings(min(HELD_CODES, longest), MOST_HELD_ON_CPU if device.type == "cpu" else MOST_HELD)
    except ValueError as error:
        raise InputError(f"The replies in {shards[0].parent} cannot be learnt from: {error}.") from error


def _known(path: Path, made_by: str) -> Taught | None:
    """Speech that was kept; None when there is none, it is damaged, or another tokenizer made its codes."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("tokenizer") != made_by:
                return None
            return Taught(**{name: file.get_tensor(name) for name in _NAMES})
    except (OSError, SafetensorError):
        return None


def _keep(taught: Taught, path: Path, made_by: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({name: getattr(taught, name).contiguous() for name in _NAMES}, part, {"tokenizer": made_by})
    part.replace(path)
