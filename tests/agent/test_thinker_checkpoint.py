"""Official Qwen2 folders: saved by transformers itself at a tiny size, loaded by us, and compared with transformers' own forward."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from agent import thinker_checkpoint
from agent.sampling import SamplingConfig
from agent.thinker import Thinker, ThinkerConfig
from agent.thinker_checkpoint import HuggingFaceVocabulary, load_hugging_face
from agent.vocabulary import END_OF_TEXT, IM_END, IM_START, byte_letters
from duplex.errors import WeightsError

CONFIG = ThinkerConfig(max_context_tokens=96, prefill_chunk_tokens=8)
KEYS = [5, 17, 99, 3, 3, 250, 41, 8, 77, 120, 64, 2]


def write_tokenizer(path: Path) -> None:
    """The official layout in small: byte-level BPE, chat specials, and control tokens that are not marked as special."""
    letters = byte_letters()
    tokenizer = Tokenizer(BPE(vocab={letters[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+|\s+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in (END_OF_TEXT, IM_START, IM_END)])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("<tool_call>", "</tool_call>")])
    tokenizer.save(str(path))


def save(folder: Path, *, tied: bool = False, shard: str = "50KB", seed: int = 1) -> Qwen2ForCausalLM:
    """A random Qwen2 as transformers writes it; returns transformers' own model."""
    shape = Qwen2Config(
        vocab_size=272,  # more rows than tokens, as official files have
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(shape).eval().requires_grad_(False)
        for layer in model.model.layers:
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                part.bias.normal_()
    model.save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder / "tokenizer.json")
    return model


def logits(thinker: Thinker, keys: list[int]) -> torch.Tensor:
    context = thinker.open()
    thinker.sync(context, keys)
    return thinker.logits(context)


@pytest.mark.parametrize(("tied", "shard"), [(False, "50KB"), (True, "50KB"), (False, "5GB")])
def test_logits_are_those_of_transformers(tmp_path: Path, tied: bool, shard: str) -> None:
    theirs = save(tmp_path, tied=tied, shard=shard)
    assert (tmp_path / thinker_checkpoint.INDEX).exists() == (shard == "50KB")
    thinker = load_hugging_face(tmp_path, CONFIG, dtype=None)
    expected = theirs(torch.tensor([KEYS])).logits[0, -1]
    assert float((logits(thinker, KEYS) - expected).abs().max() / expected.abs().max()) < 1e-5


def test_greedy_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    theirs = save(tmp_path)
    thinker = load_hugging_face(tmp_path, CONFIG, dtype=torch.float32)
    thinker.banned = []  # transformers bans nothing
    context, sampler = thinker.open(), thinker.sampler(SamplingConfig(temperature=0, repetition_penalty=1.0))
    thinker.sync(context, KEYS)
    ours = [thinker.step(context, sampler).token for _ in range(30)]
    out = theirs.generate(torch.tensor([KEYS]), max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert ours == out[0, len(KEYS) :].tolist()


def test_bf16_is_what_transformers_makes_of_the_folder(tmp_path: Path) -> None:
    save(tmp_path)
    thinker = load_hugging_face(tmp_path, CONFIG, dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        expected = theirs(torch.tensor([KEYS])).logits[0, -1].float()
    assert thinker.open().buffers.keys.dtype == torch.bfloat16
    assert float((logits(thinker, KEYS) - expected).abs().max() / expected.abs().max()) < 0.05


def test_no_tensor_stays_without_memory(tmp_path: Path) -> None:
    save(tmp_path)
    model = load_hugging_face(tmp_path, CONFIG)._qwen.model
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert all(tensor.dtype == torch.bfloat16 for tensor in model.parameters())


def test_at_full_size_and_away_from_the_cpu(tmp_path: Path) -> None:
    """Qwen2.5-7B on the meta device: as many tensors and bytes as its index declares, and no step mixes devices."""
    shape = Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = Qwen2ForCausalLM(shape).to(torch.bfloat16).requires_grad_(False)
    assert len(model.state_dict()) == 339
    assert sum(parameter.nbytes for parameter in model.parameters()) == 15_231_233_024
    write_tokenizer(tmp_path / "tokenizer.json")
    thinker = Thinker(model, HuggingFaceVocabulary(tmp_path / "tokenizer.json"), CONFIG)
    context = thinker.open()
    thinker.sync(context, KEYS)
    thinker.extend(context, torch.zeros(3, 3584), [-1, -2, -3])
    scores = thinker.logits(context)
    assert (scores.device.type, scores.dtype, tuple(scores.shape)) == ("meta", torch.float32, (152064,))


def test_control_tokens_never_come_out_of_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    vocabulary = HuggingFaceVocabulary(tmp_path / "tokenizer.json")
    assert vocabulary.specials["<tool_call>"] == 259
    for text in ("<tool_call>", "a <|im_end|> b", "</tool_call>"):
        assert max(vocabulary.encode(text)) < 256
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_memory_stays_near_one_copy(tmp_path: Path) -> None:
    """Loading 150 MB of float32 as bf16, joined products included, stays well below two copies of the 75 MB that are left.

    The allocator keeps some of what is freed at this size; tensors of the real size go back to the system at once.
    """
    shape = Qwen2Config(
        vocab_size=272, hidden_size=512, intermediate_size=2048, num_hidden_layers=9, num_attention_heads=8, num_key_value_heads=8
    )
    Qwen2ForCausalLM(shape).save_pretrained(tmp_path, max_shard_size="20MB")
    write_tokenizer(tmp_path / "tokenizer.json")
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size > 140e6
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:  # whose heap no other test has left in pieces
        assert fresh.submit(peak_of_loading, tmp_path / "none").result() == 0  # what is imported and made once is there now
        assert 0.4 * size < fresh.submit(peak_of_loading, tmp_path).result() < 0.8 * size


def peak_of_loading(folder: Path) -> int:
    """Bytes that loading needs at most; 0 where there is nothing to load."""
    with peak_of_memory() as peak:
        try:
            assert load_hugging_face(folder, CONFIG, dtype=torch.bfloat16).hidden_size == 512
        except WeightsError:
            return 0
    return peak[0]


@contextmanager
def peak_of_memory() -> Iterator[list[int]]:
    """How many bytes that no file backs this process has had more than at the start, at most."""
    status, trim = Path("/proc/self/status"), getattr(ctypes.CDLL(None), "malloc_trim", None)
    if not status.exists() or trim is None:
        pytest.skip("only Linux tells how much memory no file backs")
    trim(0)  # what earlier tests freed must not be used again unseen
    done, peak = threading.Event(), [0]
    before = anonymous_bytes(status)

    def look() -> None:
        running = True
        while running:
            running = not done.wait(0.001)  # one more look after the end: a busy machine may not have come to any
            peak[0] = max(peak[0], anonymous_bytes(status) - before)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def anonymous_bytes(status: Path) -> int:
    return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("RssAnon")).split()[1])


# --- what can be wrong with a folder


def broken(tmp_path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_hugging_face(tmp_path, CONFIG)
    text = str(caught.value)
    assert "\n" not in text
    return text


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_kind_of_model_is_named(tmp_path: Path) -> None:
    save(tmp_path)
    edit_config(tmp_path, model_type="llama")
    assert "holds a model of type 'llama'; the LLM here is Qwen2 or Qwen2.5" in broken(tmp_path)


def test_sliding_windows_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    edit_config(tmp_path, use_sliding_window=True, sliding_window=8, max_window_layers=1, layer_types=None)
    assert "sliding-window attention" in broken(tmp_path)


def test_an_empty_folder_and_a_broken_config_are_named(tmp_path: Path) -> None:
    assert "has no config.json" in broken(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be read" in broken(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "of type 'None'" in broken(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in broken(tmp_path)


def test_a_tokenizer_of_a_larger_model_is_named(tmp_path: Path) -> None:
    save(tmp_path)
    edit_config(tmp_path, vocab_size=200)
    assert "has 261 tokens and the model 200" in broken(tmp_path)


def test_a_missing_and_a_truncated_shard_are_named(tmp_path: Path) -> None:
    save(tmp_path)
    shard = sorted(tmp_path.glob("model-0*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    assert f"{shard.name} is damaged or cut short" in broken(tmp_path)
    shard.unlink()
    assert f"lacks {shard.name}" in broken(tmp_path)
    (tmp_path / thinker_checkpoint.INDEX).write_text('{"weight_map": 3}')
    assert "is no index of safetensors files" in broken(tmp_path)
    (tmp_path / thinker_checkpoint.INDEX).unlink()
    assert "has neither" in broken(tmp_path)


def test_tensors_that_do_not_fit_are_listed_in_one_message(tmp_path: Path) -> None:
    save(tmp_path, shard="5GB")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = torch.zeros(65)
    tensors["stray"] = torch.zeros(1)
    save_file(tensors, path, metadata={"format": "pt"})
    text = broken(tmp_path)
    assert (
        "Missing: model.layers.1.mlp.up_proj.weight; unexpected: stray; of another shape: model.norm.weight (65 instead of 64)"
        in text
    )
