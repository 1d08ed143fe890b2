"""Whisper's encoder and decoder passes, on only as much audio as there is.

Notable: Whisper was trained on 30 s windows filled up with silence, and the small models lose their end-of-text when that silence
is cut away (tiny.en on short questions: 140 % word errors, endless repeats). Computing it anew costs more than the speech itself.
But silence is always the same, so `Whisper` computes the keys and values of a silent 30 s window once, keeps every eighth
position, and lets each window attend to them as the rest of its 30 s: speech at positions 0..p, remembered silence beyond, each
kept position weighted as eight. Word errors are those of the full window at a fifth of the cost.

`step` is a decoder pass over any number of tokens with a cache that can be cut back, which is what verifying an earlier
hypothesis needs. Both passes call the parts of transformers' modules directly, since those insist on 30 s and on a cache of their
own; with a full window they give the library's results, and a test holds them to it.

Legend: t mel frames, p encoder positions (t / 2), s kept silent positions, d model width, k tokens in a step, c tokens in the
cache, h heads, v vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import WhisperForConditionalGeneration

from encoders.mel import MELS, SILENCE, Mel, level
from encoders.vocabulary import Vocabulary

SILENT_STRIDE = 8  # one of so many silent positions is kept

KeysValues = tuple[Tensor, Tensor]  # [1, h, n, d/h] each


@dataclass(slots=True)
class Cache:
    """Keys and values of one decoding; owned by the caller of `step`."""

    cross: list[KeysValues]
    """Per layer, those of the window and of the silence after it, n = p + s."""
    weight: Tensor
    """[1, 1, 1, p + s], added to attention scores: 0 for the window, log of what a kept position stands for in the silence."""
    own: list[KeysValues]
    """Per layer, those of the tokens so far, n = c; empty before the first step."""
    sound: Tensor
    """[p, d] the encoder's states of the window."""
    said: Tensor
    """[c, d] the decoder's states after each token."""

    def __len__(self) -> int:
        return self.own[0][0].shape[2] if self.own else 0

    def cut(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        self.own = [(k[:, :, :length], v[:, :, :length]) for k, v in self.own] if length else []
        self.said = self.said[:length]


class Whisper:
    """An encoder-decoder, its vocabulary, and the two passes over it. Immutable after construction, so threads may share it."""

    def __init__(self, model: WhisperForConditionalGeneration, vocab: Vocabulary) -> None:
        self.vocabulary = vocab
        self.encoder: Any = model.model.encoder
        self.decoder: Any = model.model.decoder
        self.head: Any = model.proj_out
        self.max_frames: int = 2 * model.config.max_source_positions
        self.max_tokens: int = model.config.max_target_positions
        self._silent_own, self._silent_cross = self._silence()

    @torch.inference_mode()
    def _silence(self) -> tuple[list[KeysValues], list[KeysValues]]:
        """Keys and values of a window of silence, per encoder layer and per decoder layer, n = all positions."""
        own: list[KeysValues] = []
        x = self._encode(np.full((self.max_frames, MELS), SILENCE, np.float32), None, keep=own)
        return own, self._cross(x)

    def _encode(self, features: Mel, weight: Tensor | None, keep: list[KeysValues] | None = None) -> Tensor:
        """[t, 80] scaled features -> [1, p, d]. With `weight` [1, 1, 1, p + s], attend to the kept silence too."""
        encoder = self.encoder
        x = torch.from_numpy(np.ascontiguousarray(features.T))[None]  # [1, 80, t]
        x = functional.gelu(encoder.conv1(x))
        x = functional.gelu(encoder.conv2(x)).transpose(1, 2)  # [1, p, d]
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        for i, layer in enumerate(encoder.layers):
            attention = layer.self_attn
            y = layer.self_attn_layer_norm(x)
            pair = _heads(attention, attention.k_proj(y)), _heads(attention, attention.v_proj(y))
            if keep is not None:
                keep.append(pair)
            if weight is not None:
                pair = _followed(pair, self._silent_own[i])
            x = x + _attend(attention, y, *pair, weight)
            x = x + layer.fc2(functional.gelu(layer.fc1(layer.final_layer_norm(x))))
        out: Tensor = encoder.layer_norm(x)
        return out

    def _cross(self, states: Tensor) -> list[KeysValues]:
        """[1, p, d] encoder states -> what each decoder layer attends to."""
        attentions = [layer.encoder_attn for layer in self.decoder.layers]
        return [(_heads(a, a.k_proj(states)), _heads(a, a.v_proj(states))) for a in attentions]

    @torch.inference_mode()
    def encode(self, frames: Mel) -> Cache:
        """[t, 80] log10 mel power of a whole window -> an empty decoder cache that attends to it.

        Raises ValueError when the window is empty or longer than the model's position table (30 s).
        """
        if not 0 < len(frames) <= self.max_frames:
            raise ValueError(f"a window has 1 to {self.max_frames} mel frames, not {len(frames)}; shorten it")
        p = (len(frames) + 1) // 2
        rest = self.max_frames // 2 - p
        kept = len(_kept(p, self.max_frames // 2))
        weight = torch.zeros(1, 1, 1, p + kept)
        if kept:
            weight[..., p:] = math.log(rest / kept)
        states = self._encode(level(frames), weight)
        cross = [_followed(pair, silent) for pair, silent in zip(self._cross(states), self._silent_cross, strict=True)]
        return Cache(cross, weight, [], states[0], states.new_zeros(0, states.shape[2]))

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
            x = x + _attend(layer.encoder_attn, layer.encoder_attn_layer_norm(x), *cache.cross[i], cache.weight)
            x = x + layer.fc2(functional.gelu(layer.fc1(layer.final_layer_norm(x))))
        cache.own = grown
        states = decoder.layer_norm(x)
        cache.said = torch.cat((cache.said, states[0]))
        logits: NDArray[np.float32] = self.head(states)[0].numpy()
        return logits


def _heads(attention: Any, x: Tensor) -> Tensor:
    """[1, n, d] -> [1, h, n, d/h]."""
    return x.view(1, x.shape[1], attention.num_heads, attention.head_dim).transpose(1, 2)


def _kept(p: int, positions: int) -> range:
    """The silent positions kept after a window of p."""
    return range(p + SILENT_STRIDE // 2, positions, SILENT_STRIDE)


def _followed(pair: KeysValues, silent: KeysValues) -> KeysValues:
    """Keys and values of a window, with those of the kept silence appended."""
    p, positions = pair[0].shape[2], silent[0].shape[2]
    kept = _kept(p, positions)
    chosen = slice(kept.start, kept.stop, kept.step)
    return torch.cat((pair[0], silent[0][:, :, chosen]), dim=2), torch.cat((pair[1], silent[1][:, :, chosen]), dim=2)


def _attend(attention: Any, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """One multi-head attention: queries from x [1, k, d] over given keys and values -> [1, k, d]."""
    mixed = functional.scaled_dot_product_attention(_heads(attention, attention.q_proj(x)), keys, values, attn_mask=mask)
    out: Tensor = attention.out_proj(mixed.transpose(1, 2).reshape(x.shape))
    return out
