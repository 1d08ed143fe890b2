"""OpenAI's Whisper checkpoint into transformers' classes, and a tiny build with random weights.

Notable: the mapping is strict in both directions. Every tensor of the file has its place, every parameter of the model is filled,
and one error lists all misfits at once.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from duplex.errors import WeightsError
from encoders import vocabulary
from encoders.mel import MELS
from encoders.vocabulary import Vocabulary
from encoders.whisper import Whisper

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


def load(checkpoint: Path, vocab: Path, *, int8: bool = True) -> Whisper:
    """OpenAI's English-only checkpoint (`tiny.en.pt`) and `gpt2.tiktoken` -> a Whisper ready to run on the CPU.

    `int8` quantises the linear layers dynamically (weights once, activations as they come). Raises WeightsError, naming each tensor
    that is missing, unexpected or of another shape.
    """
    words = vocabulary.english(vocab)
    try:
        data = torch.load(checkpoint, map_location="cpu", weights_only=True)
        dims, tensors = data["dims"], data["model_state_dict"]
        config = _config(dims, words)
    except Exception as error:  # torch.load raises many kinds, all of them mean the same here
        raise WeightsError(
            f"{checkpoint} is no Whisper checkpoint ({type(error).__name__}: {error}); fetch the weights again."
        ) from error
    if config.vocab_size != words.size:
        raise WeightsError(
            f"{checkpoint} has {config.vocab_size} token ids, the vocabulary {words.size}; take an English-only model."
        )
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
    model.train(False).requires_grad_(False)


def quantised(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """The model, its decoder's linear layers changed in place to int8 with a scale per output channel.

    The encoder stays float32: it is a few milliseconds of the work, and its activations lose words in int8. Softmax, norms and
    embeddings stay float32 as well.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its move to another package at each call
        which = {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
        for part, name in ((model.model, "decoder"), (model, "proj_out")):
            inner = nn.ModuleDict({name: getattr(part, name)})
            torch.ao.quantization.quantize_dynamic(inner, which, dtype=torch.qint8, inplace=True)
            setattr(part, name, inner[name])
    return model


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
    model.train(False).requires_grad_(False)
    model.model.decoder.embed_positions.weight.mul_(2.0)  # tied embeddings would only repeat the last token
    for layer in model.model.decoder.layers:
        layer.encoder_attn.out_proj.weight.mul_(6.0)  # and the sound should matter
    return Whisper(model, words)
