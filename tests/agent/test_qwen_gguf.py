"""Conversion of a GGUF: a small one written here, and what is said of files that are not as they should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from agent.qwen_gguf import PRODUCTS, convert_qwen, is_converted, load_qwen
from agent.thinker import Thinker, ThinkerConfig
from agent.vocabulary import byte_letters
from duplex.errors import OutputError, WeightsError

D, FFN, LAYERS, HEADS, KV = 64, 128, 2, 4, 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WIDTHS = {
    "attn_q": D,
    "attn_k": D // HEADS * KV,
    "attn_v": D // HEADS * KV,
    "attn_output": D,
    "ffn_gate": FFN,
    "ffn_up": FFN,
    "ffn_down": D,
}


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(LAYERS):
        for names in PRODUCTS.values():
            for name in names:
                inputs = FFN if name == "ffn_down" else D
                tensors[f"blk.{layer}.{name}.weight"] = random.normal(0, 0.2, (WIDTHS[name], inputs))
        for name in PRODUCTS["qkv"]:
            tensors[f"blk.{layer}.{name}.bias"] = random.normal(0, 0.5, WIDTHS[name])
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = random.uniform(0.5, 1.5, D)
    tensors["token_embd.weight"] = random.normal(0, 0.2, (260, D))
    tensors["output_norm.weight"] = np.ones(D)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def write_gguf(path: Path, tensors: dict[str, np.ndarray], architecture: str = "qwen2", specials: list[str] = SPECIALS) -> Path:
    letters = byte_letters()
    pieces = [letters[byte] for byte in range(256)] + [letters[ord("h")] + letters[ord("i")]] + specials
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(pieces)
    writer.add_token_types([1] * 257 + [3] * len(specials))
    writer.add_token_merges([f"{letters[ord('h')]} {letters[ord('i')]}"])
    writer.add_eos_token_id(259)
    writer.add_pad_token_id(257)
    for name, tensor in tensors.items():
        if name == "output.weight":
            writer.add_tensor(name, quantize(tensor, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    tensors = weights()
    tensors["output.weight"] = tensors["token_embd.weight"]
    convert_qwen(write_gguf(folder / "model.gguf", tensors), folder / "int8")
    return folder / "int8"


def float_logits(tensors: dict[str, np.ndarray], keys: list[int]) -> torch.Tensor:
    """The same weights through transformers, unquantised."""
    from transformers import Qwen2ForCausalLM

    config = load_config(tensors)
    model = Qwen2ForCausalLM(config).eval()
    ours = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
    }
    ours |= {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    ours |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    state = {"model.embed_tokens.weight": tensors["token_embd.weight"], "lm_head.weight": tensors["token_embd.weight"]}
    state["model.norm.weight"] = tensors["output_norm.weight"]
    for name, tensor in tensors.items():
        if name.startswith("blk."):
            _, layer, kind, part = name.split(".")
            state[f"model.layers.{layer}.{ours[kind]}.{part}"] = tensor
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in state.items()}, strict=True)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([keys])).logits[0, -1]
    return logits


def load_config(tensors: dict[str, np.ndarray]):  # type: ignore[no-untyped-def]
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=len(tensors["token_embd.weight"]),
        hidden_size=D,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
    )


@pytest.mark.parametrize("engine", ["auto", None])
def test_converted_model_gives_the_logits_of_the_float_one(converted: Path, engine: str | None) -> None:
    thinker = Thinker.from_folder(converted, ThinkerConfig(max_context_tokens=64, prefill_chunk_tokens=5), engine)
    context = thinker.open()
    keys = [257 + 1, 10, 80, 30, 200, 7, 99, 100, 101, 5, 6]
    thinker.sync(context, keys)
    expected = float_logits(weights(), keys)
    assert float((thinker.logits(context) - expected).norm() / expected.norm()) < 0.08


def test_vocabulary_comes_from_the_gguf(converted: Path) -> None:
    thinker = Thinker.from_folder(converted, ThinkerConfig(max_context_tokens=64))
    assert thinker.encode("hi!") == [256, ord("!")] and thinker.decode([256, 258, ord("!")]) == "hi!"
    for text in ("naïve 🙂 你好", "<|im_end|> hi", ""):
        ids = thinker.encode(text)
        assert thinker.decode(ids) == text and not {257, 258, 259} & set(ids)
    assert (thinker.start_of_turn, thinker.end_of_turn) == (258, 259) and thinker.eos_ids == {257, 259}
    assert thinker.vocabulary.token_bytes(256) == b"hi" and thinker.vocabulary.token_bytes(259) == b""


def test_progress_ends_and_nothing_is_left_behind(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    gguf = write_gguf(tmp_path / "model.gguf", weights())
    for _ in range(2):  # the second replaces the first
        convert_qwen(gguf, tmp_path / "int8", lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and sorted(path.name for path in tmp_path.iterdir()) == ["int8", "model.gguf"]
    assert is_converted(tmp_path / "int8")


def test_every_mismatch_is_in_one_error(tmp_path: Path) -> None:
    tensors = weights()
    del tensors["blk.1.attn_k.weight"], tensors["output_norm.weight"]
    tensors["blk.0.extra.weight"] = np.ones((2, 32), np.float32)
    with pytest.raises(WeightsError) as caught:
        convert_qwen(write_gguf(tmp_path / "model.gguf", tensors), tmp_path / "int8")
    assert all(name in str(caught.value) for name in ("blk.1.attn_k.weight", "output_norm.weight", "blk.0.extra.weight"))
    assert not (tmp_path / "int8").exists()


def test_untied_embeddings_are_refused(tmp_path: Path) -> None:
    tensors = weights()
    tensors["output.weight"] = weights(1)["token_embd.weight"]
    with pytest.raises(WeightsError, match="tie"):
        convert_qwen(write_gguf(tmp_path / "model.gguf", tensors), tmp_path / "int8")


def test_files_that_are_no_qwen(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="missing"):
        convert_qwen(tmp_path / "nowhere.gguf", tmp_path / "int8")
    (tmp_path / "text.gguf").write_text("not a model at all")
    with pytest.raises(WeightsError, match="readable"):
        convert_qwen(tmp_path / "text.gguf", tmp_path / "int8")
    with pytest.raises(WeightsError, match="llama"):
        convert_qwen(write_gguf(tmp_path / "llama.gguf", weights(), "llama"), tmp_path / "int8")
    whole = write_gguf(tmp_path / "whole.gguf", weights()).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="readable"):
        convert_qwen(tmp_path / "cut.gguf", tmp_path / "int8")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agent.qwen_gguf.save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        convert_qwen(write_gguf(tmp_path / "model.gguf", weights()), tmp_path / "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]


def test_damaged_or_old_folders(converted: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="fetch"):
        load_qwen(tmp_path)
    for name in ("config.json", "tokenizer.json", "layers.safetensors", "embedding.safetensors"):
        (tmp_path / name).write_bytes((converted / name).read_bytes())
    whole = (tmp_path / "layers.safetensors").read_bytes()
    (tmp_path / "layers.safetensors").write_bytes(whole[:-100])
    with pytest.raises(WeightsError, match="damaged"):
        load_qwen(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text()) | {"duologue_form": 0}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert not is_converted(tmp_path)
