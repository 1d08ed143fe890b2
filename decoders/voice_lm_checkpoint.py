"""The voice-token LM from its official file, back into it, or with random weights.

Notable: the file is loaded by its own names, strictly, and only then are q, k, v and gate, up joined, which is how `VoiceLM` runs;
`official_tensors` takes them apart again. Files of the neighbouring CosyVoice models look alike, so they are told by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decoders.voice_lm import VoiceLM
from decoders.voice_lm_modules import COSYVOICE2, VoiceLMConfig, VoiceLMModules
from duplex.checkpoint import fill, read_tensors
from duplex.errors import WeightsError

FILE = "llm.pt"
"""In the folder of CosyVoice2-0.5B."""
BACKBONE = "CosyVoice-BlankEN/config.json"
"""Beside it: the sizes of its Qwen2."""
TOKENS, HEAD = "llm.model.model.embed_tokens.weight", "llm.model.lm_head.weight"
"""The text-token table, and its copy, which a file may leave out."""


def load(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    config: VoiceLMConfig = COSYVOICE2,
) -> VoiceLM:
    """CosyVoice2-0.5B's voice LM from its model folder.

    config: the rules of decoding, and the sizes where the folder has no CosyVoice-BlankEN/config.json. Raises WeightsError
    when the file is missing or damaged, is another model's, or does not fit, with all that does not.
    """
    tensors = read_tensors(folder / FILE)
    return from_tensors(tensors, _sizes(folder / BACKBONE, config), folder / FILE, dtype, device)


def from_tensors(
    tensors: Mapping[str, Tensor],
    config: VoiceLMConfig,
    source: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> VoiceLM:
    """A voice LM from tensors by their official names; source is named when they do not fit (WeightsError)."""
    if other := _another_model(tensors):
        raise WeightsError(f"{source} is {other}; give the folder of CosyVoice2-0.5B, whose {FILE} is wanted here.")
    given = dict(tensors)
    if TOKENS in given:
        given.setdefault(HEAD, given[TOKENS])
    with torch.device("meta"):
        modules = VoiceLMModules(config)
    fill(modules, given, source, "the voice LM of CosyVoice2-0.5B", dtype)
    del modules.llm.model.lm_head, given  # half a gigabyte that nothing reads
    return VoiceLM(config, modules.to(device))


def official_tensors(lm: VoiceLM) -> dict[str, Tensor]:
    """The weights by their official names, as `from_tensors` and CosyVoice read them; views, not copies."""
    config = lm.config
    width = config.hidden_size // config.heads
    parts = {
        "self_attn.qkv_proj": (
            ("self_attn.q_proj", config.heads * width),
            ("self_attn.k_proj", config.kv_heads * width),
            ("self_attn.v_proj", config.kv_heads * width),
        ),
        "mlp.gate_up_proj": (("mlp.gate_proj", config.feed_forward), ("mlp.up_proj", config.feed_forward)),
    }
    official: dict[str, Tensor] = {}
    for name, tensor in lm.modules.state_dict().items():
        joined = next((joined for joined in parts if f".{joined}." in name), None)
        if joined is None:
            official[name] = tensor
            continue
        pieces = tensor.split([rows for _, rows in parts[joined]])
        official.update({name.replace(joined, part): piece for (part, _), piece in zip(parts[joined], pieces, strict=True)})
    official[HEAD] = official[TOKENS]
    return official


def random(config: VoiceLMConfig, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> VoiceLM:
    """A voice LM of any size that has learnt nothing, for measuring and for tests: same shapes, same work."""
    with torch.device("meta"):
        modules = VoiceLMModules(config)
        del modules.llm.model.lm_head
    rotary = modules.llm.model.model.rotary_emb  # real already, and computed rather than drawn
    modules.llm.model.model.rotary_emb = nn.Identity()
    modules.to(dtype).to_empty(device=device)
    modules.llm.model.model.rotary_emb = rotary.to(device)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in modules.named_parameters():
        if parameter.dim() == 1:
            parameter.data.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        else:
            parameter.data.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    return VoiceLM(config, modules)


def tiny(seed: int = 0, text_vocabulary: int = 259, codes: int = 6561, rules: VoiceLMConfig = COSYVOICE2) -> VoiceLM:
    """A random voice LM of about a megabyte or, with fewer codes, less: hidden 64, 2 layers; decoding as in `rules`.

    Its end of speech is made likely, so it speaks a few codes longer than it must instead of twenty for each text position.
    """
    sizes = replace(
        rules, text_vocabulary=text_vocabulary, codes=codes, hidden_size=64, layers=2, heads=4, kv_heads=2, feed_forward=128
    )
    lm = random(sizes, seed)
    lm.modules.llm_decoder.bias.data[sizes.eos] = 4.0
    return lm


def _sizes(path: Path, config: VoiceLMConfig) -> VoiceLMConfig:
    """config, with the sizes that a Qwen2 config.json gives; as it is when there is no such file."""
    if not path.is_file():
        return config
    try:
        given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        theta = given.get("rope_theta") or given.get("rope_parameters", {})["rope_theta"]
        return replace(
            config,
            text_vocabulary=int(given["vocab_size"]),
            hidden_size=int(given["hidden_size"]),
            layers=int(given["num_hidden_layers"]),
            heads=int(given["num_attention_heads"]),
            kv_heads=int(given["num_key_value_heads"]),
            feed_forward=int(given["intermediate_size"]),
            rope_theta=float(theta),
            eps=float(given["rms_norm_eps"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} does not tell the sizes of a Qwen2 ({error!r}); fetch it again, or remove it.") from error


def _another_model(tensors: Mapping[str, Tensor]) -> str:
    """The model that these tensors belong to, when it is a neighbour of the one that is wanted; "" otherwise."""
    names = list(tensors)
    if any(name.startswith(("text_embedding.", "text_encoder.", "text_encoder_affine_layer.")) for name in names):
        return "the language model of CosyVoice (the first, 300M), which has a text encoder of its own"
    if "speech_embedding.weight" in tensors and "llm_embedding.weight" not in tensors:
        rows = tensors["speech_embedding.weight"].shape[0]
        return f"the language model of CosyVoice3, which keeps its special tokens among {rows} speech tokens"
    if any(name.startswith("decoder.estimator.") for name in names):
        return "a flow model (flow.pt)"
    if any(name.startswith(("conv_pre.", "generator.conv_pre.")) for name in names):
        return "a vocoder (hift.pt)"
    return ""
