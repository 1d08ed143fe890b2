"""From Qwen's official GGUF to a folder that loads fast: int8 weights, done once, into the cache.

    config.json             transformers' Qwen2Config, and the version of this form
    tokenizer.json          the vocabulary and merges of the GGUF itself
    layers.safetensors      norms (float32) and int8 products, q|k|v and gate|up already joined
    embedding.safetensors   int8 rows, used for lookup and (tied) as the output layer

Every tensor of the GGUF must have its place here and every place its tensor; what does not match is listed in one error. The
GGUF keeps the tied embedding twice, in five and in eight bits; the eight-bit copy is used for both. Dequantising goes block by
block: beside the int8 result (0.5 GB) no more than a few tens of MB are held.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from agent.int8 import Int8Embedding, Int8Linear, SplitLinear, quantize_rows
from duplex.errors import OutputError, WeightsError

FORM = 1
"""Version of the folder's form; a folder of another version is converted anew."""
BLOCK_ROWS = 8192
"""Rows dequantised at a time."""
HEAD_ROWS = 9496
"""Rows of one part of the output layer (151936 = 16 x 9496)."""
PRODUCTS = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "o": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
"""Our matrix products and the GGUF tensors each is joined from."""
NORMS = {"input_norm": "attn_norm", "post_norm": "ffn_norm"}


class Progress(Protocol):
    """Called as the conversion goes on."""

    def __call__(self, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class _Source:
    """A GGUF opened for reading."""

    fields: Callable[[str], Any]
    tensors: dict[str, Any]


def convert_qwen(gguf: Path, out_dir: Path, progress: Progress | None = None) -> None:
    """Convert a Qwen2 GGUF (any quantisation the gguf package reads) into folder `out_dir`, replacing it in one move at the end.

    Raises WeightsError for a file that is not such a model, OutputError when the folder cannot be written.
    """
    source = _open(gguf)
    config = _read_config(source)
    _check_names(source, config.num_hidden_layers)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=out_dir.name + ".", suffix=".part", dir=out_dir.parent))
    scratch.chmod(0o755)
    try:
        _write(source, config, scratch, progress or (lambda done, total: None))
        if out_dir.exists():
            shutil.rmtree(out_dir)
        os.replace(scratch, out_dir)
    except (OSError, RuntimeError) as error:
        if isinstance(error, WeightsError):
            raise
        free = shutil.disk_usage(out_dir.parent).free
        raise OutputError(
            f"The converted language model could not be written to {out_dir} ({error}): "
            f"{free / 1e6:.0f} MB are free and 510 MB are needed."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_converted(folder: Path) -> bool:
    """True when `folder` holds a finished conversion of this version's form."""
    try:
        stored: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    names = ("tokenizer.json", "layers.safetensors", "embedding.safetensors")
    return stored.get("duologue_form") == FORM and all((folder / name).is_file() for name in names)


def load_qwen(folder: Path, engine: str | None = "auto") -> Qwen2ForCausalLM:
    """The int8 model of a converted folder, ready for `decoders.qwen.Qwen`. Raises WeightsError when the folder is not as written."""
    if not is_converted(folder):
        raise WeightsError(f"{folder} holds no converted language model of this version; run `duologue fetch` again.")
    config = Qwen2Config.from_dict(json.loads((folder / "config.json").read_text()))
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies are computed, not stored
    try:
        with safe_open(folder / "layers.safetensors", framework="pt") as file:
            _install_layers(model, file.get_tensor, engine)
        with safe_open(folder / "embedding.safetensors", framework="pt") as file:
            model.lm_head = _head(file.get_tensor("weight"), file.get_tensor("scale"), engine)
            # A copy: rows of a mapped file can be taken from memory at any time, and reading one back stalls a reply.
            model.model.embed_tokens = Int8Embedding(file.get_tensor("weight").clone(), file.get_tensor("scale").clone())
    except Exception as error:  # safetensors raises its own kind for a damaged file and for a missing name
        raise WeightsError(f"The language model in {folder} is damaged ({error}); delete the folder and fetch again.") from error
    model.requires_grad_(False).train(False)
    return model


def _install_layers(model: Qwen2ForCausalLM, get: Callable[[str], Tensor], engine: str | None) -> None:
    def product(name: str, bias: bool = False) -> Int8Linear:
        return Int8Linear(get(f"{name}.weight"), get(f"{name}.scale"), get(f"{name}.bias").clone() if bias else None, engine=engine)

    def weight(name: str) -> nn.Parameter:
        return nn.Parameter(get(name).clone(), requires_grad=False)

    for index, layer in enumerate(model.model.layers):
        prefix, attention, mlp = f"layers.{index}", layer.self_attn, layer.mlp
        del attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj
        attention.qkv_proj = product(f"{prefix}.qkv", bias=True)
        attention.o_proj = product(f"{prefix}.o")
        mlp.gate_up_proj = product(f"{prefix}.gate_up")
        mlp.down_proj = product(f"{prefix}.down")
        layer.input_layernorm.weight = weight(f"{prefix}.input_norm")
        layer.post_attention_layernorm.weight = weight(f"{prefix}.post_norm")
    model.model.norm.weight = weight("norm")


def _head(weight: Tensor, scale: Tensor, engine: str | None) -> nn.Module:
    rows = weight.shape[0]
    bounds = range(0, rows, HEAD_ROWS)
    parts = [Int8Linear(weight[at : at + HEAD_ROWS], scale[at : at + HEAD_ROWS], engine=engine) for at in bounds]
    return SplitLinear(parts)


# -- reading the GGUF


def _open(gguf: Path) -> _Source:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
    except FileNotFoundError as error:
        raise WeightsError(f"{gguf} is missing; run `duologue fetch` again.") from error
    except Exception as error:  # a damaged header fails in many ways
        raise WeightsError(f"{gguf} is not a readable GGUF file ({error}); delete it and fetch again.") from error

    def contents(key: str) -> Any:
        field = reader.get_field(key)
        if field is None:
            raise WeightsError(f"{gguf} has no field {key}, so it is not a Qwen2 model.")
        return field.contents()

    if contents("general.architecture") != "qwen2":
        raise WeightsError(f"{gguf} is a {contents('general.architecture')} model, not a qwen2 one.")
    return _Source(contents, {tensor.name: tensor for tensor in reader.tensors})


def _read_config(source: _Source) -> Qwen2Config:
    get = source.fields
    eos = [int(get("tokenizer.ggml.eos_token_id")), int(get("tokenizer.ggml.padding_token_id"))]
    return Qwen2Config(
        vocab_size=len(get("tokenizer.ggml.tokens")),
        hidden_size=int(get("qwen2.embedding_length")),
        intermediate_size=int(get("qwen2.feed_forward_length")),
        num_hidden_layers=int(get("qwen2.block_count")),
        num_attention_heads=int(get("qwen2.attention.head_count")),
        num_key_value_heads=int(get("qwen2.attention.head_count_kv")),
        max_position_embeddings=int(get("qwen2.context_length")),
        rms_norm_eps=float(get("qwen2.attention.layer_norm_rms_epsilon")),
        rope_parameters={"rope_type": "default", "rope_theta": float(get("qwen2.rope.freq_base"))},
        tie_word_embeddings=True,
        eos_token_id=eos,
    )


def _check_names(source: _Source, layers: int) -> None:
    per_layer = [f"{name}.weight" for names in PRODUCTS.values() for name in names]
    per_layer += [f"{name}.bias" for name in PRODUCTS["qkv"]] + [f"{name}.weight" for name in NORMS.values()]
    wanted = {f"blk.{layer}.{name}" for layer in range(layers) for name in per_layer}
    wanted |= {"token_embd.weight", "output_norm.weight"}
    found = set(source.tensors)
    missing, unexpected = sorted(wanted - found), sorted(found - wanted - {"output.weight"})
    if missing or unexpected:
        raise WeightsError(f"The GGUF does not match Qwen2. Missing: {_few(missing)}. Unexpected: {_few(unexpected)}.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"


def _blocks(tensor: Any) -> Iterator[NDArray[np.float32]]:
    """The rows of a tensor as float32 [<= BLOCK_ROWS, in]."""
    from gguf import dequantize

    for at in range(0, tensor.data.shape[0], BLOCK_ROWS):
        yield np.array(dequantize(tensor.data[at : at + BLOCK_ROWS], tensor.tensor_type), dtype=np.float32)


def _vector(tensor: Any) -> Tensor:
    return torch.from_numpy(np.array(tensor.data, dtype=np.float32))


def _quantized(tensor: Any) -> tuple[Tensor, Tensor]:
    parts = [quantize_rows(torch.from_numpy(block)) for block in _blocks(tensor)]
    return torch.cat([weight for weight, _ in parts]), torch.cat([scale for _, scale in parts])


# -- writing the folder


def _write(source: _Source, config: Qwen2Config, folder: Path, progress: Progress) -> None:
    tensors, layers = source.tensors, config.num_hidden_layers
    total = layers + 6  # the embedding takes about as long as six layers
    out: dict[str, Tensor] = {"norm": _vector(tensors["output_norm.weight"])}
    for layer in range(layers):
        progress(layer, total)
        for product, names in PRODUCTS.items():
            parts = [_quantized(tensors[f"blk.{layer}.{name}.weight"]) for name in names]
            out[f"layers.{layer}.{product}.weight"] = torch.cat([weight for weight, _ in parts])
            out[f"layers.{layer}.{product}.scale"] = torch.cat([scale for _, scale in parts])
        out[f"layers.{layer}.qkv.bias"] = torch.cat([_vector(tensors[f"blk.{layer}.{name}.bias"]) for name in PRODUCTS["qkv"]])
        for norm, name in NORMS.items():
            out[f"layers.{layer}.{norm}"] = _vector(tensors[f"blk.{layer}.{name}.weight"])
    save_file(out, folder / "layers.safetensors")
    out.clear()
    progress(layers, total)
    weight, scale = _quantized(_tied_embedding(tensors))
    save_file({"weight": weight, "scale": scale}, folder / "embedding.safetensors")
    build_tokenizer(source.fields).save(str(folder / "tokenizer.json"), pretty=False)
    stored = config.to_dict() | {"duologue_form": FORM}
    (folder / "config.json").write_text(json.dumps(stored, indent=1, sort_keys=True))
    progress(total, total)


def _tied_embedding(tensors: dict[str, Any]) -> Any:
    """The tensor to use for lookup and output alike; WeightsError when the GGUF's two are different matrices."""
    lookup, output = tensors["token_embd.weight"], tensors.get("output.weight")
    if output is None:
        return lookup
    a, b = next(_blocks(lookup)), next(_blocks(output))
    difference = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    if difference > 0.2:
        raise WeightsError(
            f"The GGUF's input and output embeddings differ by {difference:.0%}: only models that tie them are supported."
        )
    return output


def build_tokenizer(fields: Callable[[str], Any]) -> Tokenizer:
    """Qwen2's byte-level BPE from the GGUF's own lists (pre-tokenisation as in transformers' Qwen2Tokenizer)."""
    pieces, kinds = fields("tokenizer.ggml.tokens"), fields("tokenizer.ggml.token_type")
    if fields("tokenizer.ggml.model") != "gpt2" or fields("tokenizer.ggml.pre") != "qwen2":
        raise WeightsError("The GGUF's vocabulary is not Qwen2's byte-level BPE.")
    normal, unused = 1, 5
    vocabulary = {piece: index for index, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)) if kind == normal}
    merges = [tuple(merge.split(" ")) for merge in fields("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    added = [(index, pieces[index]) for index, kind in enumerate(kinds) if kind not in (normal, unused)]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for _, piece in added])
    moved = [piece for index, piece in added if tokenizer.token_to_id(piece) != index]
    if moved:
        raise WeightsError(f"The GGUF's special tokens do not follow its vocabulary: {_few(moved)}.")
    return tokenizer
