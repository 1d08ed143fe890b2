"""The layout of text and codes, against a plain walk through one reply at a time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from decoders import pointer_lm_data as data
from decoders import pointer_lm_layout as layout
from decoders.pointer_lm import CODE, START, START_PLAIN, TEXT, TEXT_END, PointerLMConfig
from duplex.errors import WeightsError
from tests.decoders import voice_replies

CONFIG = PointerLMConfig(width=32, layers=2, heads=2, mlp=64, head_width=16, llm_width=8)


def walk(one: dict[str, np.ndarray], config: PointerLMConfig) -> list[tuple[int, int, int]]:
    """(kind, place of the token or code, text positions read) as a streaming decoder would come upon them."""
    count = len(one["tokens"])
    place = one["phone_token"][one["pointer"]]
    need = np.where(place >= count - 1, count + 1, place + 1)
    out, read, code = [(START, 0, 0)], 0, 0
    while read < count + 1:
        for _ in range(config.group):
            if read < count + 1:
                out.append((TEXT, read, 0) if read < count else (TEXT_END, 0, 0))
                read += 1
        written = 0
        while code < len(place) and need[code] <= read and (written < config.block or read == count + 1):
            out.append((CODE, code, read))
            code, written = code + 1, written + 1
    assert code == len(place)
    return out


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, list[dict[str, np.ndarray]]]:
    return tmp_path, voice_replies.write(tmp_path, replies=30)


def test_blocks_never_speak_of_text_that_was_not_read(folder: tuple[Path, list[dict[str, np.ndarray]]]) -> None:
    work, made = folder
    material = data.load(work, torch.device("cpu"))
    spoken = [one for one in made if len(one["codes"])]
    assert len(material.whole) == len(spoken) == len(made) - 2
    positions = layout.interleaved(CONFIG, material.replies, material.whole)
    shifts = []
    for index, one in enumerate(spoken):
        part = slice(int(positions.offsets[index]), int(positions.offsets[index + 1]))
        token, code = int(material.whole.token_begin[index]), int(material.whole.code_begin[index])
        begin = {TEXT: token, CODE: code}
        found = [
            (int(kind), int(source) - begin.get(int(kind), 0), int(read))
            for kind, source, read in zip(positions.kinds[part], positions.source[part], positions.read[part], strict=True)
        ]
        assert found == walk(one, CONFIG)
        shifts.append(any(a[0] == CODE and b[0] == TEXT for a, b in pairwise(found)))
    assert any(shifts)


def test_plain_layout_reads_all_text_first(folder: tuple[Path, list[dict[str, np.ndarray]]]) -> None:
    material = data.load(folder[0], torch.device("cpu"))
    positions = layout.plain(CONFIG, material.replies, material.whole)
    n, c = int(material.whole.tokens[0]), int(material.whole.codes[0])
    kinds = positions.kinds[: int(positions.offsets[1])].tolist()
    assert kinds == [START_PLAIN, *[TEXT] * n, TEXT_END, *[CODE] * c]
    assert positions.read[n + 2 : n + 2 + c].tolist() == [n + 1] * c


def test_halves_join_to_the_whole(folder: tuple[Path, list[dict[str, np.ndarray]]]) -> None:
    material = data.load(folder[0], torch.device("cpu"))
    cut = layout.halves(material.replies, material.whole, voice_replies.BEGIN, torch.Generator().manual_seed(0))
    pairs = len(cut) // 2
    assert pairs > 10
    for index in range(pairs):
        first, second = cut.take(torch.tensor([index])), cut.take(torch.tensor([pairs + index]))
        assert int(first.token_begin + first.tokens) == int(second.token_begin)
        assert int(first.phone_end) == int(second.phone_begin)
        assert int(material.replies.phones[second.phone_begin]) == voice_replies.BEGIN
        assert int(first.code_begin + first.codes) == int(second.code_begin)
        assert int(material.replies.pointer[second.code_begin]) >= int(second.phone_begin)
    whole = {int(reply): n for reply, n in zip(material.whole.reply, material.whole.codes, strict=True)}
    for reply, first_codes, second_codes in zip(cut.reply[:pairs], cut.codes[:pairs], cut.codes[pairs:], strict=True):
        assert whole[int(reply)] == int(first_codes + second_codes)
    layout.interleaved(CONFIG, material.replies, cut)


def test_a_code_sees_only_phones_that_are_known(folder: tuple[Path, list[dict[str, np.ndarray]]]) -> None:
    work, made = folder
    material = data.load(work, torch.device("cpu"))
    spoken = [one for one in made if len(one["codes"])]
    stock = data.stock(CONFIG, material.replies, material.whole, 512, torch.Generator().manual_seed(0))
    rows = data.packed([[index] for index in range(len(spoken))])
    batch = data.batch(CONFIG, stock, rows, 512, 1.0, 0.0)
    starts = torch.tensor(CONFIG.feature_starts)
    unknown = 0
    for index, one in enumerate(spoken):
        own = batch.code_at // 512 == index
        features = (batch.features[own] - starts).numpy()
        count = len(one["tokens"])
        steps = [step for step in walk(one, CONFIG) if step[0] == CODE]
        need = np.where(one["phone_token"] >= count - 1, count + 1, one["phone_token"] + 1)
        stay = 0
        for code, (_, _, read) in enumerate(steps):
            pointer = one["pointer"][code]
            stay = stay + 1 if code and pointer == one["pointer"][code - 1] else 0
            wanted = []
            for place in range(pointer - CONFIG.before, pointer + CONFIG.after + 1):
                if place < 0:
                    wanted.append(CONFIG.nothing)
                elif place >= len(need):
                    wanted.append(CONFIG.nothing if read > count else CONFIG.unknown)
                else:
                    wanted.append(int(one["phones"][place]) if need[place] <= read else CONFIG.unknown)
            unknown += wanted.count(CONFIG.unknown)
            before = one["codes"][code - 1].tolist() if code else list(CONFIG.levels)
            assert features[code].tolist() == [*before, *wanted, min(stay, CONFIG.dwell - 1)]
            following = one["pointer"][code + 1] if code + 1 < len(steps) else len(need)
            assert int(batch.advance[own][code]) == min(following - pointer, CONFIG.advances - 1)
            assert batch.digits[own][code].tolist() == one["codes"][code].tolist()
    assert unknown


def test_packing_keeps_everything_and_wastes_little() -> None:
    generator = np.random.default_rng(0)
    lengths = [int(n) for n in generator.integers(10, 300, 2000)]
    rows = data.pack(lengths, [int(i) for i in generator.permutation(2000)], 512)
    assert sorted(index for row in rows for index in row) == list(range(2000))
    assert all(sum(lengths[index] for index in row) <= 512 for row in rows)
    assert sum(lengths) / (512 * len(rows)) > 0.96


def test_packed_documents_lie_apart(folder: tuple[Path, list[dict[str, np.ndarray]]]) -> None:
    material = data.load(folder[0], torch.device("cpu"))
    stock = data.stock(CONFIG, material.replies, material.whole, 256, torch.Generator().manual_seed(0))
    lengths = (stock.positions.offsets[1:] - stock.positions.offsets[:-1]).tolist()
    rows = data.pack(lengths, data.epoch(stock, 0.2, 0.5, np.random.default_rng(1)), 256)
    batch = data.batch(CONFIG, stock, data.packed(rows), 256, 1.0, 0.0)
    for index, row in enumerate(rows):
        own = [lengths[each] for each in row]
        assert batch.documents[index, : sum(own)].tolist() == [doc for doc, size in enumerate(own) for _ in range(size)]
        assert batch.positions[index, : sum(own)].tolist() == [place for size in own for place in range(size)]


def test_a_table_without_the_tokens_of_the_replies_is_told(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    voice_replies.write(tmp_path)
    ids = torch.arange(10, dtype=torch.int32)
    save_file(
        {"weight": torch.zeros(10, 8, dtype=torch.int8), "scale": torch.ones(10), "ids": ids}, tmp_path / "embedding.safetensors"
    )
    with pytest.raises(WeightsError, match="has no rows for some tokens"):
        data.load(tmp_path, torch.device("cpu"))
