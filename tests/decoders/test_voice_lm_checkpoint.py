"""The official file's names and shapes, both ways, and what is said about files that are not it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from decoders.ras import GREEDY
from decoders.voice_lm import VoiceLM
from decoders.voice_lm_checkpoint import FILE, HEAD, from_tensors, load, official_tensors, random, tiny
from decoders.voice_lm_modules import COSYVOICE2, VoiceLMConfig, VoiceLMModules
from duplex.errors import WeightsError
from tests.decoders.reference_voice_lm import FOLDER
from tests.reference_weights import read_keys

SMALL = VoiceLMConfig(
    text_vocabulary=50, hidden_size=32, layers=2, heads=4, kv_heads=2, feed_forward=48, codes=81, max_context_tokens=128
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.save(official_tensors(random(SMALL, 1)), tmp_path / FILE)
    return tmp_path


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def say(lm: VoiceLM) -> list[int]:
    return [code for step in lm.unistream(lm.embed(range(9)), sampling=GREEDY) for code in step]


def test_the_official_list_is_covered_exactly() -> None:
    official = read_keys(FOLDER / "qwen2lm_full.txt")
    with torch.device("meta"):
        modules = VoiceLMModules(COSYVOICE2)
        given = {name: torch.empty(shape) for name, shape in official.items()}
    assert shapes(modules.state_dict()) == official
    assert modules.llm.model.model.rotary_emb.inv_freq.device.type == "cpu"
    lm = from_tensors(given, COSYVOICE2, "the list", device="meta")
    assert "llm.model.model.layers.23.self_attn.qkv_proj.bias" in lm.modules.state_dict()
    assert shapes(official_tensors(lm)) == official


def test_what_is_saved_loads_and_speaks_alike(folder: Path) -> None:
    lm = load(folder, config=SMALL)
    assert say(lm) == say(random(SMALL, 1))
    again = official_tensors(lm)
    saved = torch.load(folder / FILE, weights_only=True)
    assert again.keys() == saved.keys() and all(torch.equal(again[name], saved[name]) for name in saved)


def test_the_copy_of_the_text_table_may_be_missing(folder: Path) -> None:
    tensors = torch.load(folder / FILE, weights_only=True)
    del tensors[HEAD]
    assert say(from_tensors(tensors, SMALL, "a file")) == say(load(folder, config=SMALL))


def test_half_precision(folder: Path) -> None:
    lm = load(folder, torch.bfloat16, config=SMALL)
    assert {parameter.dtype for parameter in lm.modules.parameters()} == {torch.bfloat16}
    codes = say(lm)
    assert 18 <= len(codes) <= 119 and all(0 <= code < SMALL.codes for code in codes)


def test_the_sizes_are_read_beside_the_file(folder: Path) -> None:
    (folder / "CosyVoice-BlankEN").mkdir()
    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
    }
    path = folder / "CosyVoice-BlankEN" / "config.json"
    path.write_text(json.dumps(sizes))
    rules = VoiceLMConfig(codes=81, max_context_tokens=128)
    assert load(folder, config=rules).config == SMALL
    path.write_text("{}")
    with pytest.raises(WeightsError, match="does not tell the sizes"):
        load(folder, config=rules)


def test_misfits_are_listed_in_one_message(folder: Path) -> None:
    tensors = torch.load(folder / FILE, weights_only=True)
    del tensors["llm_decoder.bias"]
    tensors["more"] = torch.zeros(1)
    tensors["llm_embedding.weight"] = torch.zeros(3, 32)
    with pytest.raises(WeightsError) as caught:
        from_tensors(tensors, SMALL, "llm.pt")
    for part in ("Missing: llm_decoder.bias", "unexpected: more", "llm_embedding.weight (3x32 instead of 2x32)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        (
            {"text_embedding.weight": (4, 2), "llm_embedding.weight": (2, 2), "speech_embedding.weight": (4096, 2)},
            "the first, 300M",
        ),
        ({"speech_embedding.weight": (6761, 2), "llm_decoder.weight": (6761, 2)}, "CosyVoice3.*6761"),
        ({"decoder.estimator.final_proj.weight": (2, 2)}, "flow.pt"),
        ({"conv_pre.bias": (2,)}, "hift.pt"),
    ],
)
def test_other_models_are_named(shapes: dict[str, tuple[int, ...]], name: str, tmp_path: Path) -> None:
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / FILE)
    with pytest.raises(WeightsError, match=name) as caught:
        load(tmp_path)
    assert "CosyVoice2-0.5B" in str(caught.value)
    assert len(re.findall(r"\.(?: |$)", str(caught.value))) == 1


def test_missing_and_cut_files_are_told(folder: Path) -> None:
    with pytest.raises(WeightsError, match="missing"):
        load(folder / "nowhere")
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="cut short"):
        load(folder, config=SMALL)


def test_tiny_is_its_seed() -> None:
    assert say(tiny(3, codes=81)) == say(tiny(3, codes=81)) != say(tiny(4, codes=81))
    assert sum(parameter.numel() for parameter in tiny(0, codes=81).modules.parameters()) < 150_000


def test_tiny_keeps_the_rules_of_decoding() -> None:
    rules = replace(COSYVOICE2, codes_per_step=3, max_context_tokens=256)
    lm = tiny(0, text_vocabulary=40, codes=81, rules=rules)
    assert (lm.config.codes_per_step, lm.config.max_context_tokens, lm.config.text_vocabulary) == (3, 256, 40)
    assert {len(step) for step in lm.unistream(lm.embed(range(9)))} <= {1, 2, 3}
