"""The own voice's parts under the clock: what each costs, and whether its stream of sound is what one long step makes of the same codes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from apps.bench_voice_clock import joins_told
from apps.bench_voice_stream import Thought, chunked
from decoders.edge_voice import EdgeVoice
from duplex.audio import AGENT_RATE_HZ, Samples


@contextmanager
def watched(parts: dict[str, tuple[Any, str]]) -> Iterator[dict[str, float]]:
    """Seconds spent in methods, by name: name -> (object, method). The objects' methods are theirs again afterwards."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - began

        return call

    for name, (owner, method) in parts.items():
        setattr(owner, method, timed(name, getattr(owner, method)))
    try:
        yield spent
    finally:
        for owner, method in parts.values():
            delattr(owner, method)


def costs(voice: EdgeVoice, thoughts: Sequence[Thought], group: int) -> str:
    """The real-time factor of each part on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    parts = {
        "reading": (voice.reader, "push"),
        "projector": (voice.speech.decoder, "project"),
        "voice LM": (voice.speech.decoder, "step"),
        "flow": (voice.token2wav.flow, "step"),
        "vocoder": (voice.token2wav.vocoder, "step"),
    }
    try:
        with watched(parts) as spent:
            began = time.perf_counter()
            audio = sum(len(chunked(voice, thought, group)[0]) for thought in thoughts) / AGENT_RATE_HZ
            whole = time.perf_counter() - began
    finally:
        torch.set_num_threads(before)
    told = ", ".join(f"{name} {spent[name] / audio:.3f}" for name in parts)
    return f"own voice, rtf by part on one thread: {told}, the rest {(whole - sum(spent.values())) / audio:.3f}; whole {whole / audio:.3f}."


def codes_of(voice: EdgeVoice, thought: Thought, group: int, seed: int = 0) -> list[int]:
    """The codes that a reply is spoken with."""
    codes: list[int] = []
    push = voice.token2wav.push

    def heard(state: Any, given: Sequence[int]) -> Any:
        codes.extend(given)
        return push(state, given)

    setattr(voice.token2wav, "push", heard)  # noqa: B010  (mypy holds that a method cannot be set)
    try:
        chunked(voice, thought, group, seed)
    finally:
        del voice.token2wav.push
    return codes


def streamed(voice: EdgeVoice, codes: Sequence[int]) -> tuple[Samples, list[int]]:
    """Codes one by one through flow and vocoder: sound [n] at 24 kHz before level and fades, and where its chunks meet."""
    wav = voice.open(0).wav
    made = [sound.samples for code in codes for sound in voice.token2wav.push(wav, (code,))]
    made += [sound.samples for sound in voice.token2wav.finish(wav)]
    joined = np.concatenate([np.zeros(0, np.float32), *made])
    ends = np.cumsum([len(samples) for samples in made])
    return joined, sorted({int(end) for end in ends if 0 < end < len(joined)})


def offline(voice: EdgeVoice, codes: Sequence[int]) -> Samples:
    """The same in a fresh state and one long step."""
    wav, token2wav = voice.open(0).wav, voice.token2wav
    with torch.inference_mode():
        frames = token2wav.flow.step(wav.flow, torch.tensor(codes, dtype=torch.int64), True)
        sound: Samples = token2wav.vocoder.step(wav.vocoder, frames, True).float().cpu().numpy()
    return sound


def stream_lines(voice: EdgeVoice, thoughts: Sequence[Thought], group: int) -> list[str]:
    """Streaming against offline for the same codes, and the joins of both."""
    sounds: list[Samples] = []
    wholes: list[Samples] = []
    joins: list[list[int]] = []
    worst = 0.0
    for thought in thoughts:
        codes = codes_of(voice, thought, group)
        if not codes:
            continue
        sound, places = streamed(voice, codes)
        whole = offline(voice, codes)
        if len(sound) != len(whole):
            return [f"own voice: streamed {len(sound)} samples, but one long step makes {len(whole)} of the same codes."]
        worst = max(worst, float(np.abs(sound - whole).max()))
        sounds.append(sound)
        wholes.append(whole)
        joins.append(places)
    return [
        f"own voice, streamed against one long step for the same codes: largest difference {worst:.1e} of full scale over "
        f"{len(sounds)} replies.",
        joins_told("own voice, streamed", sounds, joins),
        joins_told("own voice, one long step, at the same places", wholes, joins),
    ]
