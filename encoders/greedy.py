"""Greedy decoding that can never run on, and that starts from a draft.

Notable: interim transcripts of one turn mostly repeat each other, so the last one is offered as a draft: one decoder pass scores
all its tokens at once, the prefix that greedy decoding would have written anyway is kept, and only what follows is decoded token
by token. In float32 the result is that of decoding from nothing; with int8 layers, whose activation scales depend on how many
tokens go through together, a close call between two words may fall differently (about one transcript in eight, no worse on
average). Length is capped by the duration of the audio, and a text that goes round in circles is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.ears import SoundStates
from encoders.mel import FRAME_RATE_HZ, Mel
from encoders.whisper import Whisper

_LONGEST_LOOP = 12  # tokens


@dataclass(frozen=True, slots=True)
class GreedyConfig:
    """When decoding stops, and when its result is taken for no speech."""

    tokens_per_s: float = 7.0
    """At most so many tokens per second of audio (fast English has about 5)."""
    extra_tokens: int = 8
    """And so many besides."""
    no_speech_above: float = 0.6
    """The model's own probability of no speech above which an unlikely text is dropped."""
    unlikely_below: float = -0.6
    """Mean log probability per token (nats) below which a text is unlikely."""

    def __post_init__(self) -> None:
        if self.tokens_per_s <= 0 or self.extra_tokens < 1:
            raise ValueError("tokens_per_s must be above 0 and extra_tokens at least 1")
        if not 0 <= self.no_speech_above <= 1:
            raise ValueError("no_speech_above is a probability; keep it in [0, 1]")
        if self.unlikely_below > 0:
            raise ValueError("unlikely_below is a log probability; keep it at or below 0")


@dataclass(frozen=True, slots=True)
class Decoded:
    """What was decoded from one window."""

    ids: tuple[int, ...]
    """Token ids without specials; () when taken for no speech."""
    no_speech: float
    """The model's probability that the window holds no speech."""
    mean_log_prob: float
    """Mean log probability of the tokens written, the end included."""
    accepted: int
    """Tokens of the draft that stood."""
    listening: float | None = None
    """The probability that it begins with a word by which listeners show that they listen; None where the vocabulary has none."""
    states: SoundStates | None = None
    """Of the whole window, silence included, and of the decoder when it ended."""


def decode(model: Whisper, frames: Mel, draft: Sequence[int] = (), config: GreedyConfig | None = None) -> Decoded:
    """The greedy transcript of [t, 80] log10 mel frames, silence at the end included; `draft` only makes it faster."""
    config = config or GreedyConfig()
    words = model.vocabulary
    limit = min(int(len(frames) / FRAME_RATE_HZ * config.tokens_per_s) + config.extra_tokens, model.max_tokens - 3)
    prompt = [words.start, words.no_timestamps]
    ids = [i for i in draft if i < words.end][:limit]

    cache = model.encode(frames)
    logits = model.step(cache, [*prompt, *ids])
    no_speech = float(np.exp(_log_softmax(logits[:1])[0, words.no_speech]))
    logits = logits[1:].copy()  # row i says what follows the first i drafted tokens
    logits[:, words.suppressed] = -np.inf
    logits[0, words.blank] = -np.inf
    listening = float(np.exp(_log_softmax(logits[:1])[0, list(words.openers)]).sum()) if words.openers else None
    picks = logits.argmax(axis=1)
    differs = np.flatnonzero(picks[:-1] != ids)
    accepted = int(differs[0]) if len(differs) else len(ids)
    scores = [float(x) for x in _picked(logits[: accepted + 1], picks[: accepted + 1])]
    cache.cut(len(prompt) + accepted)

    drafted = iter(ids[:accepted])
    ids, token = [], next(drafted, int(picks[accepted]))
    while token != words.end and len(ids) < limit:
        ids.append(token)
        if loop := circle(ids):
            del scores[len(ids) :], ids[len(ids) - loop :]
            break
        if len(ids) < accepted:
            token = next(drafted)
        elif len(ids) == accepted:
            token = int(picks[accepted])
        else:
            logits = model.step(cache, [token])
            logits[:, words.suppressed] = -np.inf
            chosen = logits.argmax(axis=1)
            scores.extend(float(x) for x in _picked(logits, chosen))
            token = int(chosen[0])
    mean, written = float(np.mean(scores)), len(ids)
    if no_speech > config.no_speech_above and mean < config.unlikely_below:
        ids = []
    states = SoundStates(cache.sound.numpy(), cache.said[len(prompt) + written - 1].numpy())
    return Decoded(tuple(ids), no_speech, mean, accepted, listening, states)


def circle(ids: Sequence[int]) -> int:
    """How many tokens at the end only repeat the ones before them: 0, or the length of all repeats but the first.

    A circle is a phrase of up to 12 tokens said four times over, or three times when it has six tokens or more; a single token
    counts from eight on ("no no no no" is something people say).
    """
    for period in range(1, _LONGEST_LOOP + 1):
        times = 8 if period == 1 else 4 if period < 6 else 3
        span = ids[-period * times :]
        if len(span) == period * times and all(span[i] == span[i % period] for i in range(period, len(span))):
            return period * (times - 1)
    return 0


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis; -inf stays -inf."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    scores: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return scores


def _picked(logits: NDArray[np.float32], picks: NDArray[np.int64]) -> NDArray[np.float32]:
    """[n, v] logits and [n] ids -> [n] log probabilities of those ids."""
    highest = logits.max(axis=-1)
    taken = np.take_along_axis(logits, picks[:, None], axis=-1)[:, 0]
    scores: NDArray[np.float32] = taken - highest - np.log(np.exp(logits - highest[:, None]).sum(axis=-1))
    return scores
