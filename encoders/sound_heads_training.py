"""Teaching the heads that tell where the user's turn ends: one on the LLM's state after the words, and two on each recogniser's states.

The log odds of words and sound are added, so they are taught together; the words besides alone, for recognisers without heads. Written
sentences keep the first honest about every place where one may break off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from duplex.predictor_sentence_end import SentenceEnd
from duplex.scenario_probe import area
from encoders.sound_heads import SoundHead, SoundHeads


@dataclass(frozen=True, slots=True)
class Places:
    """Where sentences could break off, or did."""

    states: NDArray[np.float16]
    """[n, h] the LLM's final-layer state after the word."""
    ends: NDArray[np.bool_]
    """[n] whether the sentence ended there."""

    def __len__(self) -> int:
        return len(self.ends)


@dataclass(frozen=True, slots=True)
class Sounds:
    """What a recogniser's layers made of sounds."""

    frames: NDArray[np.float16]
    """[n, p, d] of the newest sound; zeros in front where there was less."""
    last: NDArray[np.float16] | None
    """[n, e] the decoder's state after the last word."""
    yes: NDArray[np.bool_]
    """[n] what is to be told."""

    def __len__(self) -> int:
        return len(self.yes)


@dataclass(frozen=True, slots=True)
class HeardPlaces:
    """What one recogniser heard."""

    places: Places
    """Silences of the user's turn, and whether it was over."""
    over: Sounds
    """The same as sound."""
    listening: Sounds
    """Sounds over the agent's voice, and whether they ask for nothing."""


@dataclass(frozen=True)
class HeadTraining:
    """How the heads learn."""

    inner: int = 64
    """Width of the head on the LLM's state."""
    epochs: int = 14
    """Passes over what was heard, or read where nothing was heard."""
    batch: int = 64
    """Of what was heard; four times as much of what is written."""
    rate: float = 1e-3
    decay: float = 0.05
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Heads:
    """What is taught."""

    words: SentenceEnd
    sounds: Mapping[str, SoundHeads]


Tell = Callable[[int, float, float], None]
"""(pass, loss, mean area under the curve on what was kept back)."""


def train_heads(
    written: Places,
    heard: Mapping[str, HeardPlaces],
    held_written: Places,
    held: Mapping[str, HeardPlaces],
    c: HeadTraining,
    tell: Tell,
) -> tuple[Heads, list[tuple[float, float]]]:
    """The heads of the pass that judged what was kept back best, and (loss, area under the curve) of every pass. Minutes on one thread."""
    torch.manual_seed(c.seed)
    pick = np.random.default_rng(c.seed)
    words = SentenceEnd(written.states.shape[1], c.inner)
    words.fit(torch.from_numpy(written.states.astype(np.float32)))
    sounds = {name: _new(one) for name, one in heard.items()}
    parts = [words, *sounds.values()]
    parameters = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=c.rate, weight_decay=c.decay)
    per_epoch = max([len(written) // (4 * c.batch), *(len(one.over) // c.batch for one in heard.values()), 1])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.epochs * per_epoch)
    best: tuple[float, list[dict[str, Tensor]]] | None = None
    curve = []
    for epoch in range(c.epochs):
        total = 0.0
        for part in parts:
            part.train()
        for _ in range(per_epoch):
            chosen = pick.integers(0, len(written), 4 * c.batch)
            loss = _balanced(words(_floats(written.states[chosen])), written.ends[chosen])
            for name, one in heard.items():
                loss = loss + _heard_loss(words, sounds[name], one, pick, c.batch)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        heads = Heads(words, sounds)
        found = float(np.nanmean([a for one in judged(heads, held_written, held).values() for a in one.values()]))
        curve.append((total / per_epoch / (1 + 3 * len(heard)), found))
        tell(epoch + 1, *curve[-1])
        if best is None or found > best[0]:
            best = found, [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
    assert best is not None
    for part, kept in zip(parts, best[1], strict=True):
        part.load_state_dict(kept)
        part.eval().requires_grad_(False)
    return Heads(words, sounds), curve


def _new(heard: HeardPlaces) -> SoundHeads:
    _, places, width = heard.over.frames.shape
    heads = SoundHeads(places, width, 0 if heard.over.last is None else heard.over.last.shape[1])
    some = np.linspace(0, len(heard.over) - 1, min(len(heard.over), 1000)).astype(int)
    heads.fit(*_sound(heard.over, some))
    return heads


def _heard_loss(words: SentenceEnd, heads: SoundHeads, heard: HeardPlaces, pick: np.random.Generator, batch: int) -> Tensor:
    chosen = pick.integers(0, len(heard.over), batch)
    by_words = words(_floats(heard.places.states[chosen]))
    by_sound = heads.ends(*heads.standardise(*_sound(heard.over, chosen)))
    other = pick.integers(0, len(heard.listening), batch)
    listening = heads.listens(*heads.standardise(*_sound(heard.listening, other)))
    ends = heard.over.yes[chosen]
    return _balanced(by_words, ends) + _balanced(by_words + by_sound, ends) + _balanced(listening, heard.listening.yes[other])


def _balanced(told: Tensor, yes: NDArray[np.bool_]) -> Tensor:
    """Cross entropy in which both kinds weigh alike."""
    wanted = torch.from_numpy(yes.astype(np.float32))
    share = float(yes.mean())
    weights = torch.ones_like(wanted)
    if 0 < share < 1:
        weights = torch.where(wanted > 0, 0.5 / share, 0.5 / (1 - share))
    return functional.binary_cross_entropy_with_logits(told, 0.96 * wanted + 0.02, weights)


def _floats(values: NDArray[np.float16]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _sound(sounds: Sounds, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
    return _floats(sounds.frames[chosen]), None if sounds.last is None else _floats(sounds.last[chosen])


def scores(head: SentenceEnd, places: Places) -> NDArray[np.float64]:
    """[n] log odds of an end, by the words."""
    head.eval()
    with torch.inference_mode():
        told: NDArray[np.float64] = head(_floats(places.states)).double().numpy()
    return told


def sound_scores(heads: SoundHeads, head: SoundHead, sounds: Sounds) -> NDArray[np.float64]:
    """[n] log odds, by the sound."""
    heads.eval()
    parts = np.array_split(np.arange(len(sounds)), max(len(sounds) // 256, 1))
    with torch.inference_mode():
        told = [head(*heads.standardise(*_sound(sounds, part))).double().numpy() for part in parts]
    return np.concatenate(told)


def judged(heads: Heads, written: Places, heard: Mapping[str, HeardPlaces]) -> dict[str, dict[str, float]]:
    """Areas under the curve: of written sentences, and of what each recogniser heard: by the words, by both, and who only listens."""
    found = {"written": {"words": area(scores(heads.words, written), written.ends)}}
    for name, one in heard.items():
        sounds = heads.sounds[name]
        by_words = scores(heads.words, one.places)
        both = by_words + sound_scores(sounds, sounds.ends, one.over)
        listening = sound_scores(sounds, sounds.listens, one.listening)
        found[name] = {
            "words": area(by_words, one.over.yes),
            "words and sound": area(both, one.over.yes),
            "who only listens": area(listening, one.listening.yes),
        }
    return found
