"""The parts of the voice-token LM and their sizes: CosyVoice2's `Qwen2LM`, by the names of its own checkpoint.

Notable: the output table has three rows above the codes. `eos` ends the speech, the next one is never right, and `fill` asks for the
next group of text; fill is written but never read back. The text's own output head (`lm_head`, a copy of the token table) is in the
checkpoint and has no use.

Shapes: d hidden, c codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

SOS, TASK = 0, 1
"""Rows of `llm_embedding`: the start, and "the text has ended, go on with codes"."""


@dataclass(frozen=True)
class VoiceLMConfig:
    """Sizes (CosyVoice2-0.5B's unless told) and the rules of decoding."""

    text_vocabulary: int = 151936
    """Rows of the text-token table."""
    hidden_size: int = 896
    """Width d."""
    layers: int = 24
    """Transformer layers."""
    heads: int = 14
    """Query heads."""
    kv_heads: int = 2
    """Key and value heads."""
    feed_forward: int = 4864
    """Width of the gated layer."""
    rope_theta: float = 1e6
    """Base of the rotary frequencies."""
    eps: float = 1e-6
    """Of the root-mean-square norms."""
    codes: int = 6561
    """Speech codes; the outputs are these, then eos, an unused one, and fill."""
    text_group: int = 5
    """Text positions that are read at a time while the text still comes."""
    code_group: int = 15
    """Codes that are written after each of them."""
    min_codes_per_text: int = 2
    """The speech does not end before it has this many codes for each text position of the reply."""
    max_codes_per_text: int = 20
    """And is ended when it has this many, whatever the model says."""
    max_context_tokens: int = 4096
    """Positions of one state: voice prompt, text and codes together. 20 positions are 15 codes, at 25 codes/s 0.6 s of speech."""
    codes_per_step: int = 5
    """Most codes written between two chances for the caller to do something else."""
    as_upstream: bool = False
    """Decode exactly as CosyVoice does, with its quirks: after a fill, the last code is read a second time when the text ends; prompt
    codes that the text does not reach are dropped; a prompt of whole groups is continued without text; outputs that are never
    right are not masked, and end the speech (`unistream`) or raise. For comparisons."""

    def __post_init__(self) -> None:
        for name in ("text_vocabulary", "layers", "heads", "kv_heads", "feed_forward", "codes", "text_group", "code_group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; choose 1 or more")
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} is not an even number for each of {self.heads} heads; change one")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}; change one")
        if self.codes_per_step < 1:
            raise ValueError(f"codes_per_step is {self.codes_per_step}; choose 1 or more, 5 is usual")
        if not 0 <= self.min_codes_per_text <= self.max_codes_per_text or self.max_codes_per_text < 1:
            raise ValueError(
                f"min_codes_per_text {self.min_codes_per_text} and max_codes_per_text {self.max_codes_per_text} do not fit; "
                "choose 0 <= min <= max and max at least 1, 2 and 20 are usual"
            )
        if self.max_context_tokens < 2 * (self.text_group + self.code_group):
            raise ValueError(
                f"max_context_tokens is {self.max_context_tokens}; choose at least {2 * (self.text_group + self.code_group)}, "
                "which is two groups"
            )

    @property
    def eos(self) -> int:
        """The output that ends the speech."""
        return self.codes

    @property
    def fill(self) -> int:
        """The output that asks for the next group of text."""
        return self.codes + 2

    @property
    def outputs(self) -> int:
        """Rows of the output table."""
        return self.codes + 3


COSYVOICE2 = VoiceLMConfig()
"""The public model's sizes."""


class Backbone(nn.Module):
    """Holds Qwen2 where the checkpoint has it: `llm.model.…`."""

    def __init__(self, config: VoiceLMConfig) -> None:
        super().__init__()
        qwen = Qwen2Config(
            vocab_size=config.text_vocabulary,
            hidden_size=config.hidden_size,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            rms_norm_eps=config.eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_context_tokens,
            tie_word_embeddings=True,
        )
        self.model = Qwen2ForCausalLM(qwen)
        with torch.device("cpu"):  # its frequencies are computed, not stored, so they must be real on the meta device too
            self.model.model.rotary_emb = type(self.model.model.rotary_emb)(qwen)


class VoiceLMModules(nn.Module):
    """All weights, in CosyVoice2's names: `state_dict()` has exactly the keys of its llm.pt, until the layers are joined."""

    def __init__(self, config: VoiceLMConfig) -> None:
        super().__init__()
        self.llm = Backbone(config)
        self.llm_embedding = nn.Embedding(2, config.hidden_size)
        self.llm_decoder = nn.Linear(config.hidden_size, config.outputs)
        self.speech_embedding = nn.Embedding(config.outputs, config.hidden_size)
