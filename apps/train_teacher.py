"""What the trainers of the voice share: where the teacher is, and which shards of replies there are."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from agent import weight_cache
from decoders.teacher import FRAMES_HZ, read_phones
from decoders.vits_net import VitsNet
from duplex.errors import ConfigError, WeightsError

FRAMES_PER_PHONE = 4.2  # of joe in running text, spaces and punctuation counted: for estimates only
POLL_S = 1.0


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """--work, --device, --teacher, --dry-run."""
    parser.add_argument(
        "--work", type=Path, default=None, help="folder of the voice's training (default: train-voice in the cache)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default=None, help="where to compute (default: cuda if there is one)")
    parser.add_argument("--teacher", type=Path, default=None, help="the packed teacher, or the folder of its three graphs")
    parser.add_argument("--dry-run", action="store_true", help="only say what it will cost")


def work_folder(args: argparse.Namespace) -> Path:
    """The folder that was chosen, or the one in the cache."""
    return args.work if args.work is not None else weight_cache.home() / "train-voice"


def chosen_device(args: argparse.Namespace) -> torch.device:
    """The device that was chosen, or the best there is; matrix products in TF32 on CUDA, one thread's worth on a CPU."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu.")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    else:
        torch.set_num_threads(1)
    return device


def load_teacher(args: argparse.Namespace, work: Path, device: torch.device) -> VitsNet:
    """The teacher from --teacher, W/teacher.safetensors, or the cache; packed into W, where the other trainers look for it."""
    packed = work / "teacher.safetensors"
    split = weight_cache.conversion_path("vits-joe-split")
    source = args.teacher or (packed if packed.is_file() else split)
    if not source.exists():
        raise WeightsError(f"No teacher at {source}; give --teacher FILE, or fetch the voice with `duologue fetch`.")
    teacher = VitsNet.load(source, device)
    if not packed.exists() or (args.teacher is not None and args.teacher.resolve() != packed.resolve()):
        teacher.pack(packed)
    return teacher


def reply_shards(work: Path) -> list[Path]:
    """Finished shards of replies, in order."""
    return sorted(path for path in (work / "replies").glob("*.safetensors") if path.stem.isdigit())


def estimated_hours(shard: Path) -> float:
    """About how long the teacher will speak on a shard."""
    return len(read_phones(shard)[0]) * FRAMES_PER_PHONE / FRAMES_HZ / 3600


def corpus_done(work: Path) -> bool:
    """Whether no more shards will come."""
    return (work / "replies" / "DONE").exists()


def wait_for_hours(work: Path, hours: float, most_s: float) -> None:
    """Return when about `hours` of replies are there, when no more will come, or after `most_s`."""
    began = told = time.monotonic()
    known: dict[Path, float] = {}
    while True:
        known |= {shard: estimated_hours(shard) for shard in reply_shards(work) if shard not in known}
        there, now = sum(known.values()), time.monotonic()
        if there >= hours or corpus_done(work) or now - began >= most_s:
            return
        if now - told >= 5:
            print(f"waiting for replies: {there:.1f} of {hours:g} hours", flush=True)
            told = now
        time.sleep(POLL_S)
