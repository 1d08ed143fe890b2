"""The official folder, read strictly, and what is said about every other one."""

import os

import numpy as np
import pytest
import sentencepiece
import torch

from duplex.errors import WeightsError
from encoders import sensevoice_checkpoint
from encoders.sensevoice_checkpoint import CMVN_FILE, CONFIG_FILE, PIECES_FILE, WEIGHTS_FILE, load, tiny
from encoders.sensevoice_ears import SenseVoiceEars
from tests.encoders.sensevoice_folder import CONFIG, sentencepiece_model, write_folder

SIZE = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model()).vocab_size()


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "SenseVoiceSmall", SIZE)
    return tmp_path / "SenseVoiceSmall"


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_is_read_and_heard_with(tmp_path, nested):
    write_folder(tmp_path, SIZE, nested=nested)
    parts = load(tmp_path)
    assert parts.network.config.output_size == 32 and parts.pieces.size == SIZE
    assert parts.cmvn.shift[0] == -8 and not parts.network.training
    state = torch.load(tmp_path / WEIGHTS_FILE, weights_only=True)
    state = state["state_dict"] if nested else state
    assert all(torch.equal(value, state[name]) for name, value in parts.network.state_dict().items())
    ears = SenseVoiceEars(parts)
    hearing = ears.open()
    ears.feed(hearing, (np.random.default_rng(0).standard_normal(32_000) * 0.1).astype(np.float32))
    assert ears.transcribe(ears.window(hearing)).labels.language is not None


def test_the_precision_is_the_callers(folder):
    parts = load(folder, dtype=torch.bfloat16)
    assert {value.dtype for value in parts.network.state_dict().values()} == {torch.bfloat16}


def refused(folder, told):
    with pytest.raises(WeightsError, match=told) as caught:
        load(folder)
    assert str(caught.value).count("\n") == 0 and str(folder) in str(caught.value)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, CMVN_FILE, PIECES_FILE])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, f"lacks {name}")


def test_all_missing_files_are_named_at_once(tmp_path):
    refused(tmp_path, f"lacks {CONFIG_FILE}, {WEIGHTS_FILE}, {CMVN_FILE}, {PIECES_FILE}")
    refused(tmp_path / "nowhere", "lacks")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("model: SenseVoiceSmall", "model: Paraformer", "describes Paraformer, not SenseVoiceSmall"),
        ("lfr_n: 6", "lfr_n: 1", "lfr_n: 1, but only lfr_n: 6"),
        ("sanm_shfit: 0", "sanm_shfit: 5", "sanm_shfit: 5"),
        ("attention_heads: 2", "attention_heads: 5", "do not fit together"),
        ("attention_heads: 2", "attention_heads: two", "do not fit together"),
        ("num_blocks: 2", "num_blocks: 3", "Missing: encoder.encoders.1"),
        ("frontend_conf", "front", "has no frontend_conf"),
        ("encoder_conf:", "encoder_conf: [", "cannot be read"),
        (CONFIG, "- 1", "describes no model"),
    ],
)
def test_another_model_is_told_apart(folder, old, new, told):
    text = (folder / CONFIG_FILE).read_text()
    assert old in text
    (folder / CONFIG_FILE).write_text(text.replace(old, new))
    refused(folder, told)


def test_a_vocabulary_of_another_size_does_not_fit(tmp_path):
    write_folder(tmp_path, SIZE + 1)
    refused(tmp_path, "Of another shape: ctc.ctc_lo.bias")


def test_keys_that_are_too_many_or_too_few_are_listed_together(folder):
    state = torch.load(folder / WEIGHTS_FILE, weights_only=True)
    state["decoder.extra"] = state.pop("embed.weight")
    torch.save(state, folder / WEIGHTS_FILE)
    refused(folder, "Missing: embed.weight; unexpected: decoder.extra")


class Bomb:
    """What must never run."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_damaged_or_dangerous_file_is_not_opened(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-2000])
    refused(folder, "damaged or cut short")
    torch.save({"embed.weight": Bomb()}, path)
    refused(folder, "more than tensors")
    assert not (tmp_path / "exploded").exists()


def test_tiny_is_small_and_the_same_each_time():
    a, b, c = tiny(1), tiny(1), tiny(2)
    weights = [torch.cat([value.flatten() for value in parts.network.state_dict().values()]) for parts in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert weights[0].numel() * 4 < 1_000_000
    assert sensevoice_checkpoint.tiny().network.config == a.network.config
