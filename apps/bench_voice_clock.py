"""The report of a streaming voice under the clock: what apps/bench_voice_stream.py measures, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from agent.parts import Parts
from apps.bench_voice_stream import Start, Thought, chunked, clicks, elsewhere, spectral_steps, start, steady
from decoders.voice import Voice
from duplex.audio import Samples


def starts(name: str, voice: Voice, thoughts: Sequence[Thought], group: int, threads: int) -> str:
    """How soon it begins and what it costs, over some replies. Changes and restores torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        start(voice, thoughts[0], group)  # unheard: the first one pays for memory
        found = [start(voice, thought, group) for thought in thoughts]
    finally:
        torch.set_num_threads(before)
    return told(name, found, threads)


def told(name: str, found: Sequence[Start], threads: int) -> str:
    """The line of `starts`."""
    compute = 1000 * np.asarray([one.compute_s for one in found])
    tokens = np.asarray([one.tokens for one in found])
    silence = 1000 * np.median([one.silence_s for one in found])
    rtf = sum(one.whole_s for one in found) / max(sum(one.audio_s for one in found), 1e-9)
    spread = f"(p95 {np.percentile(compute, 95):.0f}, worst {compute.max():.0f})"
    return (
        f"{name}, {threads} thread{'s' if threads > 1 else ''}: first sound after {np.median(tokens):.0f} LLM tokens "
        f"(most {tokens.max()}) and {np.median(compute):.0f} ms of work {spread}, which begins with {silence:.0f} ms of silence; "
        f"rtf {rtf:.3f} over {len(found)} replies."
    )


def steady_line(name: str, voice: Voice, parts: Parts, system_prompt: str, thought: Thought, group: int) -> str:
    """A long reply in real time beside the LLM."""
    found = steady(voice, parts, system_prompt, thought, group)
    return (
        f"{name}: {found.audio_s:.0f} s in real time, at most 2 s ahead, beside an LLM that decoded {found.tokens_per_s:.1f} tokens/s: "
        f"{found.underruns} underruns ({1000 * found.silent_s:.0f} ms); the voice worked {found.busy_s:.1f} s; at least "
        f"{found.least_ahead_s:.2f} s of sound were waiting when a chunk came."
    )


def joins_line(name: str, voice: Voice, thoughts: Sequence[Thought], group: int) -> str:
    """Steps of the spectrum and clicks where chunks meet, against the same between them."""
    made = [chunked(voice, thought, group) for thought in thoughts]
    return joins_told(name, [sound for sound, _ in made], [places for _, places in made])


def joins_told(name: str, sounds: Sequence[Samples], joins: Sequence[Sequence[int]]) -> str:
    """The line of `joins_line`, for sounds that are there already (such as the offline pass, with the streamed one's places)."""
    rng = np.random.default_rng(0)
    away = [elsewhere(len(sound), places, rng) for sound, places in zip(sounds, joins, strict=True)]
    figures = []
    for measure, unit in ((spectral_steps, " dB"), (clicks, "")):
        at = np.concatenate([measure(sound, places) for sound, places in zip(sounds, joins, strict=True)])
        apart = np.concatenate([measure(sound, places) for sound, places in zip(sounds, away, strict=True)])
        figures.append(_both(at, apart, unit))
    return f"{name}: spectral step at {figures[0]}; click at {figures[1]}."


def _both(at: NDArray[np.float64], apart: NDArray[np.float64], unit: str) -> str:
    if not len(at) or not len(apart):
        return "joins: none was found in sound"
    high = np.percentile(at, 95), np.percentile(apart, 95)
    return (
        f"{len(at)} joins {np.median(at):.2f}{unit} (p95 {high[0]:.2f}), elsewhere {np.median(apart):.2f}{unit} (p95 {high[1]:.2f})"
    )
