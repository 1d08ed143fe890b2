"""The teacher on shards: order, pointers, refusals, equal speech for equal seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from decoders import teacher as teachers
from decoders.speech_tokenizer import RATIO, SpeechTokenizer, SpeechTokenizerConfig
from decoders.teacher import BEGIN_ID, END_ID, latents_and_codes, latents_only, speak_items
from decoders.vits_net import VitsNet, VitsNetConfig
from duplex.errors import WeightsError

ITEMS = (
    ((5, 6, 7),),
    ((8, 9), (10, 11, 12, 13, 14, 15)),
    ((5,), (6, 6), (7, 7, 7)),
    ((20,) * 12,),
)


def _flat(items: tuple[tuple[tuple[int, ...], ...], ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rows = [[phone for sentence in item for phone in (BEGIN_ID, *sentence, END_ID)] for item in items]
    return np.array([phone for row in rows for phone in row], np.uint8), np.cumsum([0, *map(len, rows)])


@pytest.fixture(scope="module")
def voice() -> VitsNet:
    torch.manual_seed(2)
    return VitsNet(VitsNetConfig(symbols=40, channels=16, inner=24, layers=2, heads=2, generator=16))


def test_items_come_back_in_order_with_whole_codes_and_true_pointers(voice: VitsNet) -> None:
    phones, offsets = _flat(ITEMS)
    taught = speak_items(voice, phones, offsets, "cpu", 1)
    assert len(taught.latents) == RATIO * int(taught.code_offsets[-1]) == int(taught.durations.sum())
    for item, sentences in enumerate(ITEMS):
        durations = taught.durations[offsets[item] : offsets[item + 1]].long()
        assert bool((durations > 0).all())
        ends = durations.cumsum(0)
        closing = np.cumsum([len(sentence) + 2 for sentence in sentences]) - 1
        assert not (ends[closing] % RATIO).any()  # each sentence is a whole number of codes
        pointer = taught.pointer[taught.code_offsets[item] : taught.code_offsets[item + 1]].long()
        assert len(pointer) * RATIO == int(ends[-1])
        owner = torch.repeat_interleave(torch.arange(len(durations)), durations)
        assert torch.equal(pointer, owner[::RATIO])
    assert torch.equal(taught.frame_phones(), torch.from_numpy(phones).repeat_interleave(taught.durations.long()))


def test_a_sentence_sounds_the_same_wherever_it_stands(voice: VitsNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, so that order and batches cannot matter."""
    whole = voice.speak
    monkeypatch.setattr(voice, "speak", lambda *args, **kwargs: whole(*args, **kwargs, noise_scale=0.0, noise_w=0.0))
    first = speak_items(voice, *_flat(ITEMS), "cpu", 1)
    turned = speak_items(voice, *_flat(ITEMS[::-1]), "cpu", 1)
    for item in range(len(ITEMS)):
        other = len(ITEMS) - 1 - item
        one = first.latents[RATIO * first.code_offsets[item] : RATIO * first.code_offsets[item + 1]]
        two = turned.latents[RATIO * turned.code_offsets[other] : RATIO * turned.code_offsets[other + 1]]
        torch.testing.assert_close(one, two, atol=2e-3, rtol=2e-3)


def test_what_is_no_row_of_sentences_or_lasts_absurdly_is_refused(voice: VitsNet, monkeypatch: pytest.MonkeyPatch) -> None:
    good, _ = _flat(ITEMS[:1])
    broken = np.array([5, BEGIN_ID, 6, END_ID], np.uint8)  # begins outside of a sentence
    nested = np.array([BEGIN_ID, 5, BEGIN_ID, 6, END_ID, 7, END_ID], np.uint8)
    gap = np.array([BEGIN_ID, 5, END_ID, 9, BEGIN_ID, 6, END_ID], np.uint8)
    open_ended = np.array([BEGIN_ID, 5, 6], np.uint8)
    rows = [good, broken, nested, np.zeros(0, np.uint8), gap, open_ended, good]
    phones, offsets = np.concatenate(rows), np.cumsum([0, *map(len, rows)])
    taught = speak_items(voice, phones, offsets, "cpu", 1)
    assert (taught.code_offsets.diff() > 0).tolist() == [True, False, False, False, False, False, True]
    assert int(taught.durations[offsets[1] : offsets[6]].sum()) == 0
    assert len(taught.latents) == RATIO * len(taught.pointer)
    monkeypatch.setattr(teachers, "MOST_PHONE_FRAMES", int(taught.durations.max()) - 1)
    fewer = speak_items(voice, phones, offsets, "cpu", 1)
    assert int(fewer.code_offsets[-1]) < int(taught.code_offsets[-1])


def test_many_small_batches_keep_items_apart(voice: VitsNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "_BATCH_IDS", 0)
    phones, offsets = _flat(ITEMS)
    taught = speak_items(voice, phones, offsets, "cpu", 1)
    assert bool((taught.code_offsets.diff() > 0).all())


def test_shards_are_read_encoded_and_equal_each_time(voice: VitsNet, tmp_path: Path) -> None:
    phones, offsets = _flat(ITEMS)
    (tmp_path / "replies").mkdir()
    shard = tmp_path / "replies" / "000.safetensors"
    save_file({"phones": phones, "phones_offsets": offsets}, shard)
    voice.pack(tmp_path / "teacher.safetensors")
    torch.manual_seed(0)
    SpeechTokenizer(SpeechTokenizerConfig(channels=16, width=16, inner=16, blocks=1, frame_blocks=1)).save(
        tmp_path / "tokenizer.safetensors"
    )
    one, two = (latents_and_codes(shard, "cpu") for _ in range(2))
    assert torch.equal(one.codes, two.codes) and torch.equal(one.latents, two.latents)
    assert torch.equal(one.latents, latents_only(shard, "cpu").latents)
    assert not torch.equal(latents_only(shard, "cpu", seed=5).latents[:8], one.latents[:8])
    tokenizer = SpeechTokenizer.load(tmp_path / "tokenizer.safetensors")
    for item in range(len(ITEMS)):
        part = slice(int(one.code_offsets[item]), int(one.code_offsets[item + 1]))
        own = tokenizer.encode(one.latents[RATIO * part.start : RATIO * part.stop].float()[None])[0]
        assert torch.equal(own, one.codes[part])
    shard.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="train corpus"):
        latents_only(shard, "cpu")
