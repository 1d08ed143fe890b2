"""In which order text and codes stand in a sequence of the pointer LM, for millions of codes at once.

A block of codes may speak only of phones whose text has been read: where the teacher's pointer comes to one that is not known yet,
the block ends early and the next group of text is read, exactly as the streaming decoder must do it. The end of the text is a text
position of its own; what becomes certain with the last token (usually its word) counts as known when that has been read.

Everything here is tensor arithmetic without a loop over replies, so it runs on the device where the data lies.

Shapes: S sequences, n their LLM tokens, m = n + 1 their text positions, C codes of all of them, Q positions of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from decoders.pointer_lm import CODE, START, START_PLAIN, TEXT, TEXT_END, PointerLMConfig


@dataclass(frozen=True, slots=True)
class Replies:
    """All replies with their codes, flat, on one device. Indexes are into these very tensors, never relative to a reply."""

    tokens: Tensor
    """[N] int64 rows of the embedding table."""
    hidden: Tensor | None
    """[N, h] float16 hidden states."""
    phones: Tensor
    """[P] uint8."""
    phone_token: Tensor
    """[P] int64, the token with which each phone became certain."""
    codes: Tensor
    """[C, q] uint8 digits."""
    pointer: Tensor
    """[C] int64, the phone spoken at each code's first frame."""
    dwell: Tensor
    """[C] uint8, codes before on the same phone."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Pieces of replies, each a sequence of its own: [S] int64 each."""

    token_begin: Tensor
    tokens: Tensor
    """LLM tokens n."""
    phone_begin: Tensor
    phone_end: Tensor
    code_begin: Tensor
    codes: Tensor
    """Count of codes."""
    reply: Tensor
    """Which reply it is of."""

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, chosen: Tensor) -> Sequences:
        """Those that a mask or indexes choose."""
        return Sequences(*(getattr(self, each.name)[chosen] for each in fields(self)))

    @staticmethod
    def joined(parts: list[Sequences]) -> Sequences:
        """All of them, in order."""
        return Sequences(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(Sequences)))


@dataclass(frozen=True, slots=True)
class Positions:
    """The positions of sequences, flat: [Q] each, and where each sequence begins."""

    kinds: Tensor
    """uint8, `pointer_lm`'s kinds."""
    source: Tensor
    """int32 index of the token or code; 0 for the rest."""
    read: Tensor
    """int16, text positions of the sequence that stand before a code, the end of the text included."""
    offsets: Tensor
    """[S + 1] int64."""

    @staticmethod
    def joined(parts: list[Positions]) -> Positions:
        """All of them, in order."""
        shifts = torch.tensor([0, *(int(part.offsets[-1]) for part in parts)]).cumsum(0).tolist()
        offsets = [part.offsets[:-1] + shift for part, shift in zip(parts, shifts, strict=False)]
        end = parts[0].offsets.new_tensor([shifts[-1]])
        kinds, source, read = (torch.cat([getattr(part, name) for part in parts]) for name in ("kinds", "source", "read"))
        return Positions(kinds, source, read, torch.cat([*offsets, end]))


def offsets(counts: Tensor) -> Tensor:
    """[S] counts -> [S + 1] int64 where each begins, and the end."""
    return torch.cat((counts.new_zeros(1), counts.long().cumsum(0)))


def ragged(begins: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ranges begin .. begin + count, joined: their members [C], which range each is of [C], and its place in the range [C]."""
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    place = torch.arange(len(owner), device=counts.device) - offsets(counts)[:-1][owner]
    return begins[owner] + place, owner, place


def needed(phone_token: Tensor, token_begin: Tensor, tokens: Tensor) -> Tensor:
    """How many text positions must have been read before phones are known: phone_token, begin and count of their sequence -> int64."""
    place = phone_token - token_begin
    return torch.where(place >= tokens - 1, tokens + 1, place + 1)


def interleaved(config: PointerLMConfig, replies: Replies, sequences: Sequences) -> Positions:
    """Groups of text and blocks of codes in turn."""
    size, total = len(sequences), sequences.codes
    texts = sequences.tokens + 1
    groups = (texts + config.group - 1) // config.group
    most = int(groups.max()) if size else 0
    codes, owner, place = ragged(sequences.code_begin, total)
    phone_token = replies.phone_token[replies.pointer[codes]]
    need = needed(phone_token, sequences.token_begin[owner], sequences.tokens[owner])
    need_groups = ((need + config.group - 1) // config.group).clamp(1, max(most, 1))
    # allowed[s, g]: codes that may stand before group g + 1 is read (the pointer never falls, so neither do they)
    counted = torch.zeros(size * (most + 1), dtype=torch.int64, device=codes.device)
    counted.index_add_(0, owner * (most + 1) + need_groups, torch.ones_like(owner))
    allowed = counted.view(size, most + 1).cumsum(1)
    before = torch.zeros(size, most + 1, dtype=torch.int64, device=codes.device)  # codes in front of group g
    for group in range(1, most + 1):
        end = torch.minimum(before[:, group - 1] + config.block, allowed[:, group])
        before[:, group] = torch.where(group < groups, end, total)
    # groups in front of each code: one is marked where its codes begin
    first = offsets(total)[:-1]
    marks = torch.zeros(len(codes) + 1, dtype=torch.int64, device=codes.device)
    begins = before[:, :most]
    real = (torch.arange(most, device=codes.device) < groups.unsqueeze(1)) & (begins < total.unsqueeze(1))
    marks.index_add_(0, (first.unsqueeze(1) + begins)[real], torch.ones_like(begins)[real])
    running = offsets(marks[:-1])
    group_of = running[1:] - running[first][owner]
    read = torch.minimum(group_of * config.group, texts[owner])
    _, text_owner, text_place = ragged(sequences.token_begin, texts)
    text_at = 1 + text_place + before[text_owner, text_place // config.group]
    return _positions(START, sequences, text_at, 1 + read + place, read)


def plain(config: PointerLMConfig, replies: Replies, sequences: Sequences) -> Positions:
    """All text, then all codes."""
    text_place = ragged(sequences.token_begin, sequences.tokens + 1)[2]
    _, owner, place = ragged(sequences.code_begin, sequences.codes)
    read = (sequences.tokens + 1)[owner]
    return _positions(START_PLAIN, sequences, 1 + text_place, 1 + read + place, read)


def _positions(start: int, sequences: Sequences, text_at: Tensor, code_at: Tensor, read: Tensor) -> Positions:
    texts = sequences.tokens + 1
    begins = offsets(1 + texts + sequences.codes)
    tokens, text_owner, text_place = ragged(sequences.token_begin, texts)
    codes, owner, _ = ragged(sequences.code_begin, sequences.codes)
    size = int(begins[-1])
    kinds = torch.full((size,), start, dtype=torch.uint8, device=texts.device)
    source = torch.zeros(size, dtype=torch.int32, device=texts.device)
    known = torch.zeros(size, dtype=torch.int16, device=texts.device)
    last = text_place == sequences.tokens[text_owner]
    where = begins[text_owner] + text_at
    kinds[where] = torch.where(last, TEXT_END, TEXT).to(torch.uint8)
    source[where] = torch.where(last, 0, tokens).int()
    where = begins[owner] + code_at
    kinds[where] = CODE
    source[where] = codes.int()
    known[where] = read.to(torch.int16)
    return Positions(kinds, source, known, begins)


def halves(replies: Replies, whole: Sequences, begin: int, generator: torch.Generator) -> Sequences:
    """Every sequence of two or more sentences cut in two, at one of its inner sentence beginnings (phone id `begin`).

    The token with which a sentence's end became certain begins the second half, as it does in the streaming decoder, which speaks
    a long reply as several sequences. generator: of the CPU.
    """
    phones, owner, place = ragged(whole.phone_begin, whole.phone_end - whole.phone_begin)
    inner = (replies.phones[phones] == begin) & (place > 0)
    at, of = phones[inner], owner[inner]
    # one of each sequence: the first in a random order
    order = torch.rand(len(at), generator=generator).to(at.device).argsort()
    at, of = at[order], of[order]
    of, kept = of.sort(stable=True)
    at = at[kept]
    once = torch.ones(len(of), dtype=torch.bool, device=of.device)
    once[1:] = of[1:] != of[:-1]
    at, whole = at[once], whole.take(of[once])
    token = replies.phone_token[at - 1]
    codes, owner, _ = ragged(whole.code_begin, whole.codes)
    early = torch.zeros_like(whole.codes).index_add_(0, owner, (replies.pointer[codes] < at[owner]).long())
    first = Sequences(whole.token_begin, token - whole.token_begin, whole.phone_begin, at, whole.code_begin, early, whole.reply)
    rest = whole.token_begin + whole.tokens - token
    second = Sequences(token, rest, at, whole.phone_end, whole.code_begin + early, whole.codes - early, whole.reply)
    fine = (first.tokens > 0) & (second.tokens > 0) & (first.codes > 0) & (second.codes > 0)
    return Sequences.joined([first.take(fine), second.take(fine)])
