"""The LLM from an official Qwen2 or Qwen2.5 folder, as a hub lays it out: config.json, tokenizer.json and safetensors, in shards or not.

The model is made without memory, every name and shape is compared before a byte of weights is read, and then the tensors come one
by one from the mapped files: beside the finished copy no more than one tensor is held, and joining (q, k, v and gate, up) adds one
layer. On a CPU and in the file's own type, what is not joined stays mapped.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import AddedToken
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from agent.thinker import Thinker, ThinkerConfig
from agent.vocabulary import ByteVocabulary, QwenVocabulary
from duplex.checkpoint import misfits
from duplex.errors import WeightsError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
HEAD = "lm_head.weight"


class HuggingFaceVocabulary(QwenVocabulary):
    """Qwen's vocabulary in its publisher's `tokenizer.json`, where some control tokens (`<tool_call>`) are not marked as special.

    Here all added tokens are: none of them is ever read out of text.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in self.specials])


def load_hugging_face(
    folder: Path,
    config: ThinkerConfig,
    dtype: torch.dtype | None = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> Thinker:
    """A thinker from a Qwen2 or Qwen2.5 folder; dtype None keeps the files'.

    Raises WeightsError for another kind of model, a missing or cut file, or tensors that do not fit, named in one message.
    """
    vocabulary_path = folder / "tokenizer.json"
    shape = read_config(folder)
    if not vocabulary_path.is_file():
        raise WeightsError(f"{folder} has no tokenizer.json; fetch the weights again, or give the folder of the whole model.")
    vocabulary = HuggingFaceVocabulary(vocabulary_path)
    if vocabulary.size > shape.vocab_size:
        raise WeightsError(
            f"{vocabulary_path} has {vocabulary.size} tokens and the model {shape.vocab_size}: they are of different models."
        )
    return Thinker(load_model(folder, shape, dtype, device), vocabulary, config)


def read_config(folder: Path) -> Qwen2Config:
    """The model's shape. Raises WeightsError when the folder holds no Qwen2 model."""
    path = folder / "config.json"
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{folder} has no config.json, so it is no model folder; fetch the weights again.") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); delete it and fetch it again.") from error
    kind = stored.get("model_type") if isinstance(stored, dict) else None
    if kind != "qwen2":
        raise WeightsError(f"{folder} holds a model of type '{kind}'; the LLM here is Qwen2 or Qwen2.5 (type 'qwen2').")
    try:
        shape = Qwen2Config.from_dict(stored)
    except Exception as error:  # transformers checks values with exceptions of several libraries
        raise WeightsError(f"{path} is damaged ({str(error).splitlines()[0]}); delete it and fetch it again.") from error
    if "sliding_attention" in (shape.layer_types or ()):
        raise WeightsError(f"{path} asks for sliding-window attention, which is not supported; use a Qwen2.5 model without it.")
    return shape


def load_model(folder: Path, shape: Qwen2Config, dtype: torch.dtype | None, device: torch.device | str) -> Qwen2ForCausalLM:
    """transformers' model with the folder's weights, on `device` and ready for inference. Raises WeightsError."""
    with torch.device("meta"):
        model = Qwen2ForCausalLM(shape)
    files = _weight_files(folder)
    with ExitStack() as stack:
        opened = {path: stack.enter_context(_open(path)) for path in files}
        places = _check(model, opened, folder, bool(shape.tie_word_embeddings))
        for name, path in places.items():
            try:
                tensor = opened[path].get_tensor(name)
            except Exception as error:  # safetensors has its own exception
                raise WeightsError(f"{path} is damaged ({error}); delete it and fetch it again.") from error
            owner, _, leaf = name.rpartition(".")
            weight = nn.Parameter(tensor.to(device=device, dtype=dtype or tensor.dtype), requires_grad=False)
            setattr(model.get_submodule(owner), leaf, weight)
    if shape.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = type(model.model.rotary_emb)(shape).to(device)  # its frequencies are computed, not stored
    model.requires_grad_(False).train(False)
    return model


def _weight_files(folder: Path) -> list[Path]:
    """The shards that the index names, or the one file."""
    index = folder / INDEX
    if not index.is_file():
        whole = folder / WHOLE
        if not whole.is_file():
            raise WeightsError(f"{folder} has neither {INDEX} nor {WHOLE}; fetch the weights again.")
        return [whole]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / name for name in names]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is no index of safetensors files; delete it and fetch it again.") from error
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise WeightsError(f"{folder} lacks {', '.join(missing)}; fetch the weights again.")
    return paths


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except Exception as error:  # safetensors has its own exception
        raise WeightsError(f"{path} is damaged or cut short ({error}); delete it and fetch it again.") from error


def _check(model: nn.Module, opened: dict[Path, Any], folder: Path, tied: bool) -> dict[str, Path]:
    """Which file holds each tensor of the model, all of them present and of the right shape, read from the files' headers alone."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given: dict[str, tuple[int, ...]] = {}
    places: dict[str, Path] = {}
    for path, file in opened.items():
        for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            given[name] = tuple(file.get_slice(name).get_shape())
            places[name] = path
    if tied:  # one matrix for both, whether the file repeats it or not
        for shapes in (wanted, given):
            shapes.pop(HEAD, None)
        places.pop(HEAD, None)
    wrong = misfits(wanted, given)
    if wrong:
        raise WeightsError(f"{folder} does not fit its own config.json. {wrong[0].upper()}{wrong[1:]}.")
    return places


def random_qwen7b(config: ThinkerConfig, dtype: torch.dtype, device: torch.device | str) -> Thinker:
    """Qwen2.5-7B-Instruct's shapes with weights that have learnt nothing, over bytes, for measuring: same work, no download."""
    shape = Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
    )
    return Thinker(random_model(shape, dtype, device), ByteVocabulary(), config)


def random_model(shape: Qwen2Config, dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> Qwen2ForCausalLM:
    """A model of any shape with random weights; one copy of it is held at most."""
    with torch.device("meta"):
        model = Qwen2ForCausalLM(shape)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        value = torch.empty(parameter.shape, dtype=dtype, device=device)
        if parameter.dim() == 1:
            value.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        else:
            value.uniform_(-1.0, 1.0, generator=generator).mul_((3.0 / parameter.shape[1]) ** 0.5)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    if shape.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = type(model.model.rotary_emb)(shape).to(device)
    model.requires_grad_(False).train(False)
    return model
