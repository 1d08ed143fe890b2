"""CosyVoice2's voice-token LM at the small size of its reference tensors, rebuilt from names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoders.voice_lm import VoiceLM
from decoders.voice_lm_checkpoint import from_tensors
from decoders.voice_lm_modules import VoiceLMConfig, VoiceLMModules
from tests.reference_weights import load_reference, reference_state

FOLDER = Path(__file__).parent / "reference"
REFERENCE: tuple[dict[str, Tensor], dict[str, Any]] = load_reference(FOLDER / "qwen2lm_tiny.safetensors")


def reference_config(**rules: Any) -> VoiceLMConfig:
    """The sizes of the reference."""
    info = REFERENCE[1]
    size = {key.removeprefix("tiny_qwen2_config/"): value for key, value in info.items() if key.startswith("tiny_qwen2_config/")}
    return VoiceLMConfig(
        text_vocabulary=size["vocab_size"],
        hidden_size=size["hidden_size"],
        layers=size["num_hidden_layers"],
        heads=size["num_attention_heads"],
        kv_heads=size["num_key_value_heads"],
        feed_forward=size["intermediate_size"],
        rope_theta=size["rope_theta"],
        eps=size["rms_norm_eps"],
        codes=info["speech_token_size"],
        **{"max_context_tokens": 512, **rules},
    )


def reference_lm(eos_bias: float = 0.0, **rules: Any) -> VoiceLM:
    """The reference's weights under other rules of decoding; eos_bias is added to the bias of the end."""
    tensors, info = REFERENCE
    config = reference_config(**rules)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in VoiceLMModules(config).state_dict().items()}
    state = reference_state(shapes, info["weights_seed"])
    state["llm_decoder.weight"] *= info["llm_decoder_gain"]
    state["llm_decoder.bias"][config.eos] += eos_bias
    state |= {name.removeprefix("state/"): value for name, value in tensors.items() if name.startswith("state/")}
    return from_tensors(state, config, "the reference")
