"""The teacher on a shard of replies: phones in; latents, durations and codes out, on a GPU thousands of times faster than they sound.

    taught = latents_and_codes(shard, device)                       # shard: W/replies/NNN.safetensors

Notable: a reply is spoken sentence by sentence (one `^` to `$` each), nothing trimmed; the `$` of each is held up to three frames longer,
so that a sentence is a whole number of codes and a code never spans two. Equal shard, teacher and seed give equal speech on one kind of
machine, so that trainers may make latents again instead of storing them (12 GB per 100 hours in fp16).

Shapes: N items, p phones without pads, T latent frames at 86.13 Hz, c codes of four frames; flat arrays carry offsets [N + 1].
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoders.speech_tokenizer import RATIO, SpeechTokenizer
from decoders.vits_net import HOP, VITS_RATE_HZ, VitsNet
from duplex.errors import WeightsError

PAD_ID, BEGIN_ID, END_ID = 0, 1, 2  # of every Piper voice
FRAMES_HZ = VITS_RATE_HZ / HOP
MOST_PHONE_FRAMES = 200  # 2.3 s for one phone: the duration predictor has lost its way
MOST_ITEM_FRAMES = 3600  # 42 s
_BATCH_IDS = 32_768  # padded ids of one batch
_MOST_SENTENCE = 700  # phones; longer ones are refused


@dataclass(frozen=True, slots=True)
class Taught:
    """What the teacher made of a shard; N items in the shard's order. A refused item has no codes and durations of 0."""

    latents: Tensor
    """[sum T, C] fp16 on the device, not normalised; item i has the frames 4 * code_offsets[i] : 4 * code_offsets[i + 1]."""
    codes: Tensor
    """[sum c, 5] uint8 digits on the device; [0, 5] from `latents_only`."""
    pointer: Tensor
    """[sum c] int16 on the device: which of the item's own phones is spoken at the code's first frame."""
    durations: Tensor
    """[sum p] int16 on the device: latent frames of each phone, its pad's included; an item's add up to its T."""
    phones: Tensor
    """[sum p] uint8 on the device: the shard's own."""
    code_offsets: Tensor
    """[N + 1] int64 on the CPU."""
    phone_offsets: Tensor
    """[N + 1] int64 on the CPU."""

    def hours(self) -> float:
        """Length of the speech."""
        return len(self.latents) / FRAMES_HZ / 3600

    def frame_phones(self) -> Tensor:
        """[sum T] uint8: the phone of each latent frame."""
        return torch.repeat_interleave(self.phones, self.durations.long())


def latents_and_codes(
    shard: Path,
    device: torch.device | str,
    teacher: VitsNet | None = None,
    tokenizer: SpeechTokenizer | None = None,
    seed: int | None = None,
) -> Taught:
    """Speak a shard of replies and encode it.

    shard: W/replies/NNN.safetensors. teacher: default W/teacher.safetensors, which `train tokenizer` leaves there. tokenizer: default
    W/tokenizer.safetensors. seed: of the teacher's noise; by default the shard's own, so that every call gives the same speech.
    Raises WeightsError when a file is missing or damaged.
    """
    tokenizer = tokenizer or SpeechTokenizer.load(shard.parent.parent / "tokenizer.safetensors", device)
    taught = latents_only(shard, device, teacher, seed)
    codes = encode_flat(tokenizer, taught.latents, taught.code_offsets)
    return Taught(taught.latents, codes, taught.pointer, taught.durations, taught.phones, taught.code_offsets, taught.phone_offsets)


def latents_only(shard: Path, device: torch.device | str, teacher: VitsNet | None = None, seed: int | None = None) -> Taught:
    """`latents_and_codes` without codes: what the tokenizer is trained on."""
    teacher = teacher or VitsNet.load(shard.parent.parent / "teacher.safetensors", device)
    phones, offsets = read_phones(shard)
    return speak_items(teacher, phones, offsets, device, zlib.crc32(shard.stem.encode()) if seed is None else seed)


def read_phones(shard: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Phones [sum p] and offsets [N + 1] of a shard of replies; nothing else of it is read.

    Raises WeightsError when it is missing or damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(shard, "np") as file:
            return file.get_tensor("phones"), file.get_tensor("phones_offsets")
    except Exception as error:  # safetensors has an exception of its own
        raise WeightsError(f"{shard} is no readable shard of replies ({error}); delete it and run `train corpus` again.") from error


@torch.no_grad()
def speak_items(
    teacher: VitsNet, phones: NDArray[np.uint8], offsets: NDArray[np.int64], device: torch.device | str, seed: int
) -> Taught:
    """Phones [sum p] of N items to speech; codes stay empty."""
    count = len(phones)
    begins, ends, spoken = _sentences(phones, offsets)
    order = np.argsort(begins - ends, kind="stable")  # longest first, so that what does not fit into memory fails at once
    order = order[spoken[order]]
    generator = torch.Generator(device).manual_seed(seed)
    durations = torch.zeros(count, dtype=torch.int64, device=device)
    made: list[Tensor] = []
    for batch in _batches(ends - begins, order):
        lengths = torch.as_tensor(2 * (ends - begins)[batch] - 1, device=device)
        ids, places = _with_pads(phones, begins[batch], ends[batch])
        latents, frames = teacher.speak(torch.as_tensor(ids, device=device), lengths, generator, multiple=RATIO)
        pairs = (
            torch.nn.functional.pad(frames, (0, 1)).view(len(batch), -1, 2).sum(2)
        )  # [B, P]: a pad's frames go to the phone before it
        inside = places >= 0
        durations[torch.as_tensor(places[inside], device=device)] = pairs[torch.as_tensor(inside, device=device)]
        valid = torch.arange(latents.shape[1], device=device) < frames.sum(1, keepdim=True)
        made.append(latents[valid].half())
    return _in_order(teacher, phones, offsets, durations, begins, ends, order, made)


def _in_order(
    teacher: VitsNet,
    phones: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    durations: Tensor,
    begins: NDArray[np.int64],
    ends: NDArray[np.int64],
    order: NDArray[np.int64],
    made: list[Tensor],
) -> Taught:
    """Sentences, spoken in `order`, back in the items' order, without the items that went wrong."""
    device, count = durations.device, len(phones)
    phone_offsets = torch.as_tensor(offsets, dtype=torch.int64)
    items = torch.repeat_interleave(torch.arange(len(offsets) - 1), phone_offsets.diff()).to(device)  # [sum p]
    frames = torch.zeros(len(offsets) - 1, dtype=torch.int64, device=device).index_add(0, items, durations)
    odd = ((durations <= 0) | (durations > MOST_PHONE_FRAMES)).long()
    good = (torch.zeros_like(frames).index_add(0, items, odd) == 0) & (frames > 0) & (frames <= MOST_ITEM_FRAMES)
    before = torch.nn.functional.pad(durations.cumsum(0), (1, 0))  # [sum p + 1]
    first, last = (torch.as_tensor(edge[order], device=device) for edge in (begins, ends))
    sizes = before[last] - before[first]  # [S] frames of each sentence, in the order in which they were spoken
    kept = torch.where(good[items], durations, 0) if count else durations
    after = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
    fine = good[items[first]] if len(order) else torch.zeros(0, dtype=torch.bool, device=device)
    rows = torch.cat(made) if made else torch.zeros(0, teacher.config.channels, dtype=torch.float16, device=device)
    within = torch.arange(len(rows), device=device) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    target = torch.repeat_interleave(after[first], sizes) + within
    wanted = torch.repeat_interleave(fine, sizes)
    total = int(after[-1])
    latents = torch.empty(total, rows.shape[1], dtype=torch.float16, device=device)
    latents[target[wanted]] = rows[wanted]
    frame_offsets = after[phone_offsets.to(device)]
    assert not bool((frame_offsets % RATIO).any())
    starts = torch.arange(0, total, RATIO, device=device)
    phone = torch.searchsorted(after[1:].contiguous(), starts, right=True)  # a refused item's phones are empty and passed over
    pointer = phone - phone_offsets.to(device)[items[phone]] if total else phone
    codes = torch.zeros(0, 5, dtype=torch.uint8, device=device)
    shown = torch.as_tensor(np.array(phones), device=device)
    return Taught(latents, codes, pointer.short(), kept.short(), shown, (frame_offsets // RATIO).cpu(), phone_offsets)


def encode_flat(tokenizer: SpeechTokenizer, latents: Tensor, code_offsets: Tensor) -> Tensor:
    """Latents [sum T, C] of items laid end to end -> digits [sum c, 5] uint8; each item is encoded as if it were alone."""
    sizes = code_offsets.diff()
    codes = torch.empty(int(code_offsets[-1]), 5, dtype=torch.uint8, device=latents.device)
    longest_first = sizes.argsort(descending=True, stable=True)
    order = longest_first[sizes[longest_first] > 0].numpy()
    for batch in _batches(sizes.numpy(), order, 8192):
        longest = int(sizes[batch].max())
        places = code_offsets[batch][:, None] + torch.arange(longest)  # [B, c]
        inside = (torch.arange(longest) < sizes[batch][:, None]).to(latents.device)
        places = places.clamp(max=len(codes) - 1).to(latents.device)
        frames = latents.view(len(codes), RATIO, -1)[places].flatten(1, 2)  # [B, T, C]
        codes[places[inside]] = tokenizer.encode(frames.float(), inside)[inside]
    return codes


def _sentences(
    phones: NDArray[np.uint8], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Where each sentence begins and ends (after its `$`), and whether it may be spoken: its item is nothing but rows of ^ ... $."""
    items = len(offsets) - 1
    owner = np.repeat(np.arange(items), np.diff(offsets))  # [sum p]
    begins, ends = np.flatnonzero(phones == BEGIN_ID), np.flatnonzero(phones == END_ID) + 1
    filled = np.flatnonzero(np.diff(offsets) > 0)
    good = np.zeros(items, bool)
    good[filled] = (phones[offsets[filled]] == BEGIN_ID) & (phones[offsets[filled + 1] - 1] == END_ID)
    good &= np.bincount(owner[begins], minlength=items) == np.bincount(owner[ends - 1], minlength=items)
    begins, ends = begins[good[owner[begins]]], ends[good[owner[ends - 1]]]  # now they pair up
    mine = owner[begins]
    wrong = (ends - begins < 3) | (ends - begins > _MOST_SENTENCE)
    wrong[1:] |= (begins[1:] != ends[:-1]) & (mine[1:] == mine[:-1])
    good[mine[wrong]] = False
    return begins, ends, good[mine]


def _batches(sizes: NDArray[np.int64], order: NDArray[np.int64], budget: int = _BATCH_IDS // 2) -> Iterator[NDArray[np.int64]]:
    """`order`, longest first, cut into batches of at most `budget` padded places, or of a single one."""
    begin = 0
    while begin < len(order):
        rows = max(budget // max(int(sizes[order[begin]]), 1), 1)
        yield order[begin : begin + rows]
        begin += rows


def _with_pads(
    phones: NDArray[np.uint8], begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sentences -> ids [B, 2 P - 1] as the voice reads them, a pad after each phone but the last; each phone's place [B, P], or -1."""
    span = np.arange(int((ends - begins).max()))
    places = begins[:, None] + span
    places = np.where(places < ends[:, None], places, -1)
    ids = np.full((len(begins), 2 * len(span) - 1), PAD_ID, np.int64)
    ids[:, ::2] = np.where(places >= 0, phones[places], PAD_ID)
    return ids, places
