"""What the pointer LM is trained on: the shards of replies and codes as tensors on one device, and batches cut from them there.

Notable: a batch is made by indexing alone. Sequences of all layouts lie flat on the device; packing puts several into one row of fixed
length, so every step has the same shape and hardly any padding, and documents of one row do not see each other.

Shapes: b rows, n positions of a row, t text positions, c code positions, q digits, w phones in the window, f features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from decoders import pointer_lm_layout as layout
from decoders.pointer_lm import CODE, TEXT, PointerLMConfig, rows
from decoders.pointer_lm_layout import Positions, Replies, Sequences
from duplex.errors import WeightsError

BEGIN = 1
"""Phone id of a sentence's beginning, in every Piper voice."""
MOST_DOCUMENTS = 32
"""Documents of a row."""


@dataclass(frozen=True, slots=True)
class Table:
    """Embeddings of the LLM's tokens."""

    rows: Tensor
    """[r, h] float16."""
    row_of: Tensor | None
    """[vocabulary] int64, -1 for tokens that have no row; None where the row is the token's id."""


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that training reads, on one device."""

    replies: Replies
    table: Tensor
    """[r, h] float16."""
    whole: Sequences
    """The replies that have codes, in their order."""
    kept: Tensor
    """[r] bool, those that are kept back for judging."""


@dataclass(frozen=True, slots=True)
class Stock:
    """Sequences with their positions, and which of them an epoch takes."""

    replies: Replies
    sequences: Sequences
    positions: Positions
    whole: Tensor
    """[r] int64: of each reply the interleaved sequence."""
    plain: Tensor
    """[r] int64: its plain one."""
    half: Tensor
    """[r, 2] int64: its two halves, -1 where it has none."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed sequences."""

    kinds: Tensor
    """[b, n] uint8; padding has the kind of a start."""
    positions: Tensor
    """[b, n] int64 within the document."""
    documents: Tensor
    """[b, n] int64 within the row."""
    text_at: Tensor
    """[t] int64 places in b * n."""
    tokens: Tensor
    """[t] int64 places in `Replies.tokens`."""
    given: Tensor
    """[t] bool: whether the hidden state may be looked at."""
    code_at: Tensor
    """[c] int64 places in b * n."""
    features: Tensor
    """[c, f] int64 rows of the feature table."""
    digits: Tensor
    """[c, q] int64, to be written."""
    advance: Tensor
    """[c] int64, to be written."""


def read_table(file: Path, device: torch.device) -> Table:
    """The embedding table: `weight` [r, h] int8 with `scale` [r], or floats; `ids` [r] where it holds only some tokens."""
    tensors = _read(file)
    weight = next((tensors[name] for name in ("weight", "embedding", "rows") if name in tensors), None)
    if weight is None:
        raise WeightsError(f"{file} holds no tensor `weight`; write the corpus again.")
    weight = weight.to(device)
    table = weight.float()
    if "scale" in tensors:
        table = table * tensors["scale"].to(device).float().view(-1, 1)
    ids = tensors.get("ids")
    row_of = None
    if ids is not None:
        row_of = torch.full((int(ids.max()) + 1,), -1, dtype=torch.int64, device=device)
        row_of[ids.to(device).long()] = torch.arange(len(ids), device=device)
    return Table(table.half(), row_of)


class Shelf:
    """The shards of a work folder, read as they come: every `read` adds those that were not there before."""

    def __init__(
        self, work: Path, device: torch.device, *, hidden: bool = True, most: int | None = None, held: float = 0.01
    ) -> None:
        """hidden: whether hidden states are read. most: only so many shards. held: share of each shard, its end, that is kept back."""
        self.work, self.device, self.hidden, self.most, self.held = work, device, hidden, most, held
        self._read: set[str] = set()
        self._flat: dict[str, Tensor] = {}
        self._starts = {"tokens": 0, "phones": 0, "codes": 0, "replies": 0}
        self._table: Table | None = None

    def llm_width(self) -> int:
        """Width of the LLM's embeddings. Raises WeightsError when there is nothing to read."""
        self._need_shards()
        self._table = self._table or read_table(self.work / "embedding.safetensors", self.device)
        return self._table.rows.shape[1]

    def waiting(self) -> list[str]:
        """Names of the shards that were not read yet."""
        codes = sorted((self.work / "codes").glob("*.safetensors"))
        names = [file.stem for file in codes if (self.work / "replies" / file.name).is_file()]
        return [name for name in names[: self.most] if name not in self._read]

    def read(self) -> Material:
        """All replies so far that have codes. Raises WeightsError for what is missing or does not fit."""
        names = self.waiting()
        self._need_shards()
        self._table = self._table or read_table(self.work / "embedding.safetensors", self.device)
        parts: dict[str, list[Tensor]] = {name: [value] for name, value in self._flat.items()}
        self._flat = {}
        for name in names:
            for key, value in self._shard(name, self._table).items():
                parts.setdefault(key, []).append(value.to(self.device))
            self._read.add(name)
        for key in list(parts):  # one after the other, so that the largest is never there twice with others
            self._flat[key] = torch.cat(parts.pop(key))
        return self._material(self._table)

    def _need_shards(self) -> None:
        if not self._read and not self.waiting():
            raise WeightsError(
                f"{self.work} holds no replies with codes; make them with `duologue train corpus` and `duologue train codes`."
            )

    def _shard(self, name: str, table: Table) -> dict[str, Tensor]:
        said = _read(self.work / "replies" / f"{name}.safetensors", () if self.hidden else ("hidden",))
        coded = _read(self.work / "codes" / f"{name}.safetensors")
        if len(said["tokens_offsets"]) != len(coded["codes_offsets"]):
            raise WeightsError(
                f"the codes of shard {name} are not those of its replies; make them again with `duologue train codes`."
            )
        own = _shifted(said, coded, self._starts, self.held)
        if self.hidden:
            if said["hidden"].shape != (len(said["tokens"]), table.rows.shape[1]):
                raise WeightsError(
                    f"the hidden states of shard {name} do not fit its tokens and the table; write the corpus again."
                )
            own["hidden"] = said["hidden"].half()
        for key, flat in (("tokens", said["tokens"]), ("phones", said["phones"]), ("codes", coded["codes"])):
            self._starts[key] += len(flat)
        self._starts["replies"] += len(said["tokens_offsets"]) - 1
        return own

    def _material(self, table: Table) -> Material:
        flat = self._flat
        tokens = flat["tokens"].long()
        if table.row_of is not None:
            inside = (tokens < len(table.row_of)) & (tokens >= 0)
            tokens = torch.where(inside, table.row_of[tokens.clamp(0, len(table.row_of) - 1)], -1)
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(table.rows):
            raise WeightsError(
                f"the embedding table in {self.work} has no rows for some tokens of the replies; write the corpus again."
            )
        replies = Replies(
            tokens, flat.get("hidden"), flat["phones"], flat["phone_token"], flat["codes"], flat["pointer"], flat["dwell"]
        )
        columns = ("token_begin", "token_count", "phone_begin", "phone_end", "code_begin", "code_count", "reply")
        whole = Sequences(*(flat[name] for name in columns))
        spoken = (whole.codes > 0) & (whole.tokens > 0)
        return Material(replies, table.rows, whole.take(spoken), flat["kept"][spoken])


def _shifted(said: dict[str, Tensor], coded: dict[str, Tensor], starts: dict[str, int], held: float) -> dict[str, Tensor]:
    """One shard with its indexes shifted to where it lies among all."""
    token_offsets, phone_offsets, code_offsets = (
        given[f"{name}_offsets"].long() for given, name in ((said, "tokens"), (said, "phones"), (coded, "codes"))
    )
    tokens, phones, codes = token_offsets.diff(), phone_offsets.diff(), code_offsets.diff()
    phone_token = said["phone_token"].long() + torch.repeat_interleave(token_offsets[:-1], phones)
    owner = torch.repeat_interleave(torch.arange(len(codes)), codes)
    pointer = coded["pointer"].long() + phone_offsets[:-1][owner]
    fresh = torch.ones(len(pointer), dtype=torch.bool)
    fresh[1:] = (pointer[1:] != pointer[:-1]) | (owner[1:] != owner[:-1])
    places = torch.arange(len(pointer))
    dwell = places - torch.where(fresh, places, 0).cummax(0).values if len(pointer) else places
    return {
        "tokens": said["tokens"].int(),
        "phones": said["phones"],
        "phone_token": phone_token + starts["tokens"],
        "codes": coded["codes"],
        "pointer": pointer + starts["phones"],
        "dwell": dwell.clamp(max=255).to(torch.uint8),
        "token_begin": token_offsets[:-1] + starts["tokens"],
        "token_count": tokens,
        "phone_begin": phone_offsets[:-1] + starts["phones"],
        "phone_end": phone_offsets[1:] + starts["phones"],
        "code_begin": code_offsets[:-1] + starts["codes"],
        "code_count": codes,
        "reply": torch.arange(len(tokens)) + starts["replies"],
        "kept": torch.arange(len(tokens)) >= len(tokens) - max(round(len(tokens) * held), 1),
    }


def _read(file: Path, skip: Sequence[str] = ()) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys() if name not in skip}  # noqa: SIM118
    except Exception as error:  # safetensors has an exception of its own, and OSError
        raise WeightsError(f"{file} is missing or damaged ({error}); write it again.") from error


def load(work: Path, device: torch.device, held: float = 0.01) -> Material:
    """Everything that is there, at once."""
    return Shelf(work, device, held=held).read()


def stock(config: PointerLMConfig, replies: Replies, whole: Sequences, length: int, generator: torch.Generator) -> Stock:
    """Both layouts of all sequences that fit into `length` positions, and the halves of those with several sentences."""
    whole = whole.take(1 + whole.tokens + 1 + whole.codes <= length)
    if not len(whole):
        raise WeightsError(f"no reply fits into rows of {length} positions; take longer rows.")
    cut = layout.halves(replies, whole, BEGIN, generator)
    sequences = Sequences.joined([whole, whole, cut])
    positions = Positions.joined(
        [
            layout.interleaved(config, replies, whole),
            layout.plain(config, replies, whole),
            *([layout.interleaved(config, replies, cut)] if len(cut) else []),
        ]
    )
    count, pairs = len(whole), len(cut) // 2
    first = torch.arange(count)
    half = torch.full((count, 2), -1, dtype=torch.int64)
    at = torch.searchsorted(whole.reply.cpu(), cut.reply[:pairs].cpu())
    half[at, 0] = 2 * count + torch.arange(pairs)
    half[at, 1] = 2 * count + pairs + torch.arange(pairs)
    return Stock(replies, sequences, positions, first, first + count, half)


def epoch(held: Stock, plain: float, cut: float, generator: np.random.Generator) -> list[int]:
    """One pass in random order: of each reply the interleaved sequence, or by share `plain` the plain one, or by `cut` its halves."""
    drawn = generator.random(len(held.whole))
    half = held.half.numpy()
    cuts = (drawn < cut) & (half[:, 0] >= 0)
    plains = ~cuts & (drawn >= 1.0 - plain)
    chosen = np.concatenate([half[cuts].reshape(-1), held.plain.numpy()[plains], held.whole.numpy()[~cuts & ~plains]])
    generator.shuffle(chosen)
    return [int(each) for each in chosen]


def pack(lengths: Sequence[int], chosen: Sequence[int], length: int) -> list[list[int]]:
    """Sequences into rows of `length`, each where it leaves the least room. lengths: of every sequence, not of the chosen ones only."""
    filled: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = 0  # bit r: some row has room r
    for sequence in chosen:
        size = lengths[sequence]
        fits = rooms >> size
        if fits:
            room = size + (fits & -fits).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
            filled[row].append(sequence)
        else:
            room, row = length, len(filled)
            filled.append([sequence])
        if len(filled[row]) < MOST_DOCUMENTS:
            by_room[room - size].append(row)
            rooms |= 1 << (room - size)
    return filled


def packed(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows as one array [rows, documents] int64, -1 where there is none."""
    wide = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for index, row in enumerate(rows):
        wide[index, : len(row)] = row
    return torch.from_numpy(wide)


def batch(
    config: PointerLMConfig,
    held: Stock,
    chosen: Tensor,
    length: int,
    hidden: float,
    noise: float,
    seeded: torch.Generator | None = None,
) -> Batch:
    """Rows of packed sequences [b, documents] (on the stock's device) as a batch of b rows of `length` positions.

    hidden: share of documents whose hidden states are given. noise: share of codes that are told a wrong code before them.
    seeded: of the stock's device.
    """
    replies, sequences, places = held.replies, held.sequences, held.positions
    device = chosen.device
    real = chosen >= 0
    sequence = chosen.clamp(min=0)
    sizes = (places.offsets[1:] - places.offsets[:-1])[sequence] * real
    ends = sizes.cumsum(1)
    at = torch.arange(length, device=device).expand(len(chosen), length).contiguous()
    documents = torch.searchsorted(ends, at, right=True)
    padding = documents >= chosen.shape[1]
    inside = documents.clamp(max=chosen.shape[1] - 1)
    positions = at - (ends - sizes).gather(1, inside)
    of = sequence.gather(1, inside)
    source = torch.where(padding, 0, places.offsets[of] + positions)
    kinds = torch.where(padding, 0, places.kinds[source])
    positions = torch.where(padding, 0, positions)
    given = torch.rand(chosen.shape, device=device, generator=seeded) < hidden
    text_at = (kinds.flatten() == TEXT).nonzero()[:, 0]
    code_at = (kinds.flatten() == CODE).nonzero()[:, 0]
    tokens = places.source[source.flatten()[text_at]].long()
    owner = of.flatten()[code_at]
    codes = places.source[source.flatten()[code_at]].long()
    read = places.read[source.flatten()[code_at]].long()
    first = codes == sequences.code_begin[owner]
    levels = torch.tensor(config.levels, device=device)
    before = torch.where(first.unsqueeze(1), levels, replies.codes[codes - 1].long())  # of the very first code: -1, which is masked
    wrong = (torch.rand(len(codes), device=device, generator=seeded) < noise) & ~first
    other = (torch.rand(before.shape, device=device, generator=seeded) * levels).long()
    before = torch.where(wrong.unsqueeze(1), other, before)
    own = sequences.take(owner)
    window = _window(config, replies, own, replies.pointer[codes], read)
    last = codes + 1 == own.code_begin + own.codes
    following = torch.where(last, own.phone_end, replies.pointer[(codes + 1).clamp(max=len(replies.pointer) - 1)])
    advance = (following - replies.pointer[codes]).clamp(0, config.advances - 1)
    dwell = replies.dwell[codes].long().clamp(max=config.dwell - 1)
    return Batch(
        kinds=kinds,
        positions=positions,
        documents=documents,
        text_at=text_at,
        tokens=tokens,
        given=given.gather(1, inside).flatten()[text_at],
        code_at=code_at,
        features=rows(config, before, window, dwell),
        digits=replies.codes[codes].long(),
        advance=advance,
    )


def _window(config: PointerLMConfig, replies: Replies, own: Sequences, pointer: Tensor, read: Tensor) -> Tensor:
    """The phones that code positions see: own [c] their sequences, pointer [c], read [c] text positions before them -> [c, w]."""
    places = pointer.unsqueeze(1) + torch.tensor(list(config.window), device=pointer.device)  # [c, w]
    begin, end, tokens = own.phone_begin.unsqueeze(1), own.phone_end.unsqueeze(1), own.tokens.unsqueeze(1)
    safe = places.clamp(0, len(replies.phones) - 1)
    need = layout.needed(replies.phone_token[safe], own.token_begin.unsqueeze(1), tokens)
    all_read = read.unsqueeze(1) > tokens
    phones = torch.where(need <= read.unsqueeze(1), replies.phones[safe].long(), config.unknown)
    phones = torch.where(places < end, phones, torch.where(all_read, config.nothing, config.unknown))
    return torch.where(places < begin, config.nothing, phones)
