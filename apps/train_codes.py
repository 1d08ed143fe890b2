"""`duologue train codes`: the teacher speaks every reply, the tokenizer encodes it; W/codes is what the voice LM learns from.

    W/codes/NNN.safetensors   codes uint8 [sum c, 5], codes_offsets [N + 1], pointer int16 [sum c], durations int16 [sum p]
    W/codes/DONE              no more will come

Notable: a shard names the tokenizer that made it and is made anew when that has changed. With --follow it keeps up with `train corpus`.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import torch

from apps.train_teacher import POLL_S, add_shared_arguments, chosen_device, corpus_done, load_teacher, reply_shards, work_folder
from decoders.speech_tokenizer import SpeechTokenizer
from decoders.speech_tokenizer_training import code_use
from decoders.teacher import Taught, latents_and_codes
from duplex.errors import InputError, OutputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this step."""
    add_shared_arguments(parser)
    parser.add_argument("--tokenizer", type=Path, default=None, help="its weights (default: tokenizer.safetensors in --work)")
    parser.add_argument(
        "--follow", action="store_true", help="wait for the tokenizer and for more replies, until W/replies/DONE is there"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long to follow at most (default: 60)")


def run_codes(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    work, device = work_folder(args), chosen_device(args)
    shards = reply_shards(work)
    print(
        f"codes: {len(shards)} shards of replies so far; about 1 MB on disk per hour of speech; it may be stopped and run again.",
        flush=True,
    )
    if args.dry_run:
        return 0
    path = args.tokenizer or work / "tokenizer.safetensors"
    until = time.monotonic() + args.minutes * 60
    try:
        work.mkdir(parents=True, exist_ok=True)
        while args.follow and not path.exists() and time.monotonic() < until:
            time.sleep(POLL_S)
        teacher = load_teacher(args, work, device)
        tokenizer = SpeechTokenizer.load(path, device)
        made_by = hashlib.sha256(path.read_bytes()).hexdigest()
        (work / "codes" / "DONE").unlink(missing_ok=True)
        told, hours, began = False, 0.0, time.monotonic()
        while True:
            done = corpus_done(work)  # asked before looking, so that nothing that came before it is missed
            waiting = [shard for shard in reply_shards(work) if _stamp(work / "codes" / shard.name) != made_by]
            for shard in waiting:
                began_shard = time.monotonic()
                taught = latents_and_codes(shard, device, teacher, tokenizer)
                _save(work / "codes" / shard.name, taught, made_by)
                hours += taught.hours()
                _tell(shard, taught, time.monotonic() - began_shard, told)
                told = True
            if not args.follow or done or time.monotonic() >= until:
                break
            if not waiting:
                time.sleep(POLL_S)
        if not list((work / "codes").glob("*.safetensors")):
            raise InputError(f"There are no replies to speak in {work / 'replies'}; run `duologue train corpus` first.")
        if done:
            (work / "codes" / "DONE").touch()
    except OSError as error:
        raise OutputError(f"The codes could not be written: {error}.") from error
    print(f"codes: {hours:.2f} h made in {time.monotonic() - began:.0f} s", flush=True)
    return 0


def _stamp(path: Path) -> str:
    """Which tokenizer made a shard of codes; "" when it is not there or not whole."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            return str((file.metadata() or {}).get("tokenizer", ""))
    except Exception:  # missing, cut short: it is made again
        return ""


def _save(path: Path, taught: Taught, made_by: str) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    tensors = {
        "codes": taught.codes.cpu(),
        "codes_offsets": taught.code_offsets,
        "pointer": taught.pointer.cpu(),
        "durations": taught.durations.cpu(),
    }
    save_file(tensors, part, {"tokenizer": made_by})
    part.replace(path)


def _tell(shard: Path, taught: Taught, took: float, told: bool) -> None:
    hours = taught.hours()
    refused = int((taught.code_offsets.diff() == 0).sum())
    line = f"codes {shard.stem}: {hours:.2f} h in {took:.1f} s ({hours * 3600 / max(took, 1e-6):.0f} times real time), {refused} refused"
    if not told and len(taught.codes):
        each, joint, used = code_use(taught.codes)
        frames = len(taught.latents) / max(int((taught.durations > 0).sum()), 1)
        line += f"; digits used {' '.join(f'{value:.2f}' for value in each)}, joint {joint:.0f} ({used} met); {frames:.2f} frames a phone"
    print(line, flush=True)
    if torch.cuda.is_available() and not told:
        print(f"codes: at most {torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU so far", flush=True)
