"""Whisper in transformers' classes with OpenAI's own checkpoint, run on only as much audio as there is.

Notable: `encode` slices the position table to the window instead of padding to 30 s, so cost follows the length of the window; `step` is a
decoder pass over any number of tokens with a cache that can be cut back, which is what verifying an earlier hypothesis needs. Both call
the parts of transformers' modules directly, since those insist on 30 s and on a cache of their own; a test holds them to the library's
results.

Legend: t mel frames, p encoder positions (t / 2), d model width, k tokens in a step, c tokens in the cache, h heads, v vocabulary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig, WhisperForConditionalGeneration

from duplex.errors import WeightsError
from encoders import vocabulary
from encoders.mel import MELS, Mel, normalise
from encoders.vocabulary import Vocabulary

_RENAMED = (  # OpenAI's names -> transformers'
    (r"\.blocks\.", ".layers."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.attn\.", ".self_attn."),
    (r"\.query\.", ".q_proj."),
    (r"\.key\.", ".k_proj."),
    (r"\.value\.", ".v_proj."),
    (r"attn\.out\.", "attn.out_proj."),
    (r"\.token_embedding\.", ".embed_tokens."),
    (r"\.positional_embedding$", ".embed_positions.weight"),
    (r"\.ln(_post)?\.", ".layer_norm."),
)


@dataclass(slots=True)
class Cache:
    """Keys and values of one decoding; owned by the caller of `step`."""

    cross: list[tuple[Tensor, Tensor]]
    """Per layer, keys and values of the audio, [1, h, p, d/h] each."""
    own: list[tuple[Tensor, Tensor]]
    """Per layer, keys and values of the tokens so far, [1, h, c, d/h] each; empty before the first step."""

    def __len__(self) -> int:
        return self.own[0][0].shape[2] if self.own else 0

    def cut(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        self.own = [(k[:, :, :length], v[:, :, :length]) for k, v in self.own]


class Whisper:
    """An encoder-decoder, its vocabulary, and the two passes over it. Immutable after construction, so threads may share it."""

    def __init__(self, model: WhisperForConditionalGeneration, vocab: Vocabulary) -> None:
        self.vocabulary = vocab
        self.encoder: Any = model.model.encoder
        self.decoder: Any = model.model.decoder
        self.head: Any = model.proj_out
        self.max_frames: int = 2 * model.config.max_source_positions
        self.max_tokens: int = model.config.max_target_positions

    @torch.inference_mode()
    def encode(self, frames: Mel) -> Tensor:
        """[t, 80] log10 mel power of a whole window -> [1, p, d] encoder states, p = ceil(t / 2).

        Raises ValueError when the window is empty or longer than the model's position table (30 s).
        """
        if not 0 < len(frames) <= self.max_frames:
            raise ValueError(f"a window has 1 to {self.max_frames} mel frames, not {len(frames)}; shorten it")
        encoder = self.encoder
        x = torch.from_numpy(np.ascontiguousarray(normalise(frames).T))[None]  # [1, 80, t]
        x = functional.gelu(encoder.conv1(x))
        x = functional.gelu(encoder.conv2(x)).transpose(1, 2)  # [1, p, d]
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        for layer in encoder.layers:
            x = layer(x, None)
        out: Tensor = encoder.layer_norm(x)
        return out

    @torch.inference_mode()
    def cache(self, states: Tensor) -> Cache:
        """[1, p, d] encoder states -> an empty decoder cache that attends to them."""
        cross = []
        for layer in self.decoder.layers:
            attention = layer.encoder_attn
            cross.append((_heads(attention, attention.k_proj(states)), _heads(attention, attention.v_proj(states))))
        return Cache(cross, [])

    @torch.inference_mode()
    def step(self, cache: Cache, ids: list[int]) -> NDArray[np.float32]:
        """k token ids that follow those in the cache -> [k, v] logits; the cache grows by k."""
        decoder = self.decoder
        past, k = len(cache), len(ids)
        x = decoder.embed_tokens(torch.tensor([ids])) + decoder.embed_positions.weight[past : past + k]  # [1, k, d]
        mask = torch.ones(k, past + k, dtype=torch.bool).tril(past) if k > 1 else None
        grown = []
        for i, layer in enumerate(decoder.layers):
            attention = layer.self_attn
            y = layer.self_attn_layer_norm(x)
            keys, values = _heads(attention, attention.k_proj(y)), _heads(attention, attention.v_proj(y))
            if past:
                keys = torch.cat((cache.own[i][0], keys), dim=2)
                values = torch.cat((cache.own[i][1], values), dim=2)
            grown.append((keys, values))
            x = x + _attend(attention, y, keys, values, mask)
            x = x + _attend(layer.encoder_attn, layer.encoder_attn_layer_norm(x), *cache.cross[i], None)
            x = x + layer.fc2(functional.gelu(layer.fc1(layer.final_layer_norm(x))))
        cache.own = grown
        logits: NDArray[np.float32] = self.head(decoder.layer_norm(x))[0].numpy()
        return logits


def _heads(attention: Any, x: Tensor) -> Tensor:
    """[1, n, d] -> [1, h, n, d/h]."""
    return x.view(1, x.shape[1], attention.num_heads, attention.head_dim).transpose(1, 2)


def _attend(attention: Any, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """One multi-head attention: queries from x [1, k, d] over given keys and values -> [1, k, d]."""
    mixed = functional.scaled_dot_product_attention(_heads(attention, attention.q_proj(x)), keys, values, attn_mask=mask)
    out: Tensor = attention.out_proj(mixed.transpose(1, 2).reshape(x.shape))
    return out


def load(checkpoint: Path, vocab: Path, *, int8: bool = True) -> Whisper:
    """OpenAI's English-only checkpoint (`tiny.en.pt`) and `gpt2.tiktoken` -> a Whisper ready to run on the CPU.

    `int8` quantises the linear layers dynamically (weights once, activations as they come). Raises WeightsError, naming every tensor that is
    missing, unexpected or of another shape.
    """
    words = vocabulary.english(vocab)
    try:
        data = torch.load(checkpoint, map_location="cpu", weights_only=True)
        dims, tensors = data["dims"], data["model_state_dict"]
        config = _config(dims, words)
    except Exception as error:  # torch.load raises many kinds, all of them mean the same here
        raise WeightsError(f"{checkpoint} is no Whisper checkpoint ({type(error).__name__}: {error}); fetch the weights again.") from error
    if config.vocab_size != words.size:
        raise WeightsError(f"{checkpoint} has {config.vocab_size} token ids, the vocabulary {words.size}; take an English-only model.")
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    _fill(model, {rename(name): tensor.float() for name, tensor in tensors.items()}, checkpoint)
    return Whisper(quantised(model) if int8 else model, words)


def rename(name: str) -> str:
    """OpenAI's name of a tensor as transformers has it."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return f"model.{name}"


def _config(dims: dict[str, int], words: Vocabulary) -> WhisperConfig:
    """OpenAI's `dims` as transformers' configuration."""
    return WhisperConfig(
        vocab_size=dims["n_vocab"],
        num_mel_bins=dims["n_mels"],
        d_model=dims["n_audio_state"],
        encoder_layers=dims["n_audio_layer"],
        encoder_attention_heads=dims["n_audio_head"],
        encoder_ffn_dim=4 * dims["n_audio_state"],
        decoder_layers=dims["n_text_layer"],
        decoder_attention_heads=dims["n_text_head"],
        decoder_ffn_dim=4 * dims["n_text_state"],
        max_source_positions=dims["n_audio_ctx"],
        max_target_positions=dims["n_text_ctx"],
        pad_token_id=words.end,
        bos_token_id=words.end,
        eos_token_id=words.end,
        decoder_start_token_id=words.start,
    )


def _fill(model: WhisperForConditionalGeneration, tensors: dict[str, Tensor], source: Path) -> None:
    """Put `tensors` into a model on the meta device; every one must fit. Raises WeightsError with the whole list of misfits."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items() if name != "proj_out.weight"}  # tied
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = [f"{name} is missing" for name in wanted.keys() - given.keys()]
    wrong += [f"{name} is unexpected" for name in given.keys() - wanted.keys()]
    wrong += [
        f"{name} has shape {given[name]} instead of {wanted[name]}"
        for name in wanted.keys() & given.keys()
        if given[name] != wanted[name]
    ]
    if wrong:
        raise WeightsError(f"{source} does not fit Whisper: {'; '.join(sorted(wrong))}.")
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"]
    model.load_state_dict(tensors, strict=True, assign=True)
    model.eval().requires_grad_(False)


def quantised(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """The same model with int8 linear layers; attention's softmax, norms, embeddings and convolutions stay float32."""
    out: WhisperForConditionalGeneration = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return out


def tiny(seed: int = 0) -> Whisper:
    """Random weights (about 300 kB) over a vocabulary of bytes: the whole path without a download."""
    words = vocabulary.bytewise()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(
            WhisperConfig(
                vocab_size=words.size,
                num_mel_bins=MELS,
                d_model=32,
                encoder_layers=1,
                encoder_attention_heads=2,
                encoder_ffn_dim=64,
                decoder_layers=2,
                decoder_attention_heads=2,
                decoder_ffn_dim=64,
                max_source_positions=1500,
                max_target_positions=448,
                init_std=0.3,
                pad_token_id=words.end,
                bos_token_id=words.end,
                eos_token_id=words.end,
                decoder_start_token_id=words.start,
            )
        )
    return Whisper(model.eval().requires_grad_(False), words)
