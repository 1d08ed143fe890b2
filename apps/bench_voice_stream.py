"""A streaming voice under the clock: how soon it begins, what it costs, whether a minute of it holds beside the LLM, and its joins.

Notable: tokens and hidden states are made beforehand, so that only the voice is timed; in the minute that must hold, the LLM really decodes
in another thread, for as long as the voice speaks, and hands out one token per step.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from agent.chat_template import Message
from agent.parts import Parts
from decoders.voice import Speech, Voice
from duplex.audio import AGENT_RATE_HZ, Samples
from duplex.mel_filters import mel_filters

Thought = tuple[list[int], NDArray[np.float32] | None]
"""LLM tokens [n] and the states [n, d] that they were sampled from."""

AUDIBLE = 10 ** (-40 / 20)  # of full scale
SPAN = 512  # samples on each side of a join that are compared: 21 ms
BANDS = 40
FLOOR_DB = -70.0


@dataclass(frozen=True, slots=True)
class Start:
    """How one reply began."""

    tokens: int
    """LLM tokens that the voice had to see before its first sound."""
    compute_s: float
    """From the last of these tokens to the sound."""
    silence_s: float
    """At the beginning of the sound, before anything is heard."""
    whole_s: float
    """Work for the whole reply."""
    audio_s: float
    """Its length."""


def start(voice: Voice, thought: Thought, group: int, seed: int = 0) -> Start:
    """Speak a reply as fast as it goes, `group` tokens at a time."""
    state = voice.open(seed)
    tokens, hidden = thought
    sound: list[Samples] = []
    first: tuple[int, float] | None = None
    whole = 0.0
    for at in range(0, len(tokens) + group, group):
        now = slice(at, at + group)
        ended = at >= len(tokens)
        chunks = voice.finish(state) if ended else voice.push(state, tokens[now], None if hidden is None else hidden[now])
        began = time.perf_counter()
        for chunk in chunks:
            if first is None and len(chunk.samples):
                first = min(at + group, len(tokens)), time.perf_counter() - began
            sound.append(chunk.samples)
        whole += time.perf_counter() - began
    joined = np.concatenate([np.zeros(0, np.float32), *sound])
    loud = np.flatnonzero(np.abs(joined) > AUDIBLE)
    silence = int(loud[0]) if len(loud) else len(joined)
    seen, took = first or (len(tokens), whole)
    return Start(seen, took, silence / AGENT_RATE_HZ, whole, len(joined) / AGENT_RATE_HZ)


@dataclass(frozen=True, slots=True)
class Steady:
    """A long reply in real time beside a decoding LLM."""

    audio_s: float
    underruns: int
    """Times that the sound ran out before the reply had ended."""
    silent_s: float
    """How long it was out, in all."""
    tokens_per_s: float
    """What the LLM decoded meanwhile."""
    busy_s: float
    """Work of the voice."""
    least_ahead_s: float
    """The least sound that was waiting when a chunk came, after the first second."""


def steady(voice: Voice, parts: Parts, system_prompt: str, thought: Thought, group: int, ahead_s: float = 2.0) -> Steady:
    """Speak a reply at the pace at which it is played, never more than `ahead_s` in advance, while the LLM decodes in another thread.

    The session lets the voice work further ahead; so little makes the worst case visible.
    """
    tokens, hidden = thought
    made: queue.Queue[int] = queue.Queue()
    over = threading.Event()
    decoded = 0

    def think() -> None:
        nonlocal decoded
        thinker: Any = parts.thinker
        context, sampler, room = thinker.open(), thinker.sampler(1), 0
        keys = thinker.render(system_prompt, [Message("user", "Tell me a long story.")], open_assistant=True)
        while not over.is_set():
            if room == 0:  # begins anew rather than run out of context
                for _ in thinker.sync_steps(context, keys):
                    pass
                room = 200
            thinker.step(context, sampler)
            room -= 1
            decoded += 1
            if decoded <= len(tokens):
                made.put(decoded - 1)

    thread = threading.Thread(target=think, daemon=True)
    began = time.perf_counter()
    thread.start()
    try:
        return _spoken(voice, tokens, hidden, group, ahead_s, made, lambda: decoded / (time.perf_counter() - began))
    finally:
        over.set()
        thread.join()


def _spoken(
    voice: Voice,
    tokens: Sequence[int],
    hidden: NDArray[np.float32] | None,
    group: int,
    ahead_s: float,
    made: queue.Queue[int],
    pace: Any,
) -> Steady:
    state = voice.open(0)
    ends = 0.0  # when the sound so far will have been played; 0 before the first
    audio = busy = silent = 0.0
    underruns, least = 0, float("inf")
    for at in range(0, len(tokens) + group, group):
        now = slice(at, at + group)
        for _ in tokens[now]:
            made.get()
        if at >= len(tokens):
            chunks = voice.finish(state)
        else:
            chunks = voice.push(state, tokens[now], None if hidden is None else hidden[now])
        while True:
            began = time.perf_counter()
            chunk: Speech | None = next(chunks, None)
            arrived = time.perf_counter()
            busy += arrived - began
            if chunk is None:
                break
            length = len(chunk.samples) / AGENT_RATE_HZ
            if not length:
                continue
            if ends and arrived > ends:
                underruns += 1
                silent += arrived - ends
            if audio > 1.0:
                least = min(least, ends - arrived)
            ends = max(ends, arrived) + length
            audio += length
            time.sleep(max(ends - time.perf_counter() - ahead_s, 0.0))
    return Steady(audio, underruns, silent, pace(), busy, least if least < float("inf") else 0.0)


def chunked(voice: Voice, thought: Thought, group: int, seed: int = 0) -> tuple[Samples, list[int]]:
    """A reply's sound [n] at 24 kHz, and where its chunks meet (sample indexes)."""
    state, sound = voice.open(seed), []
    tokens, hidden = thought
    for at in range(0, len(tokens), group):
        now = slice(at, at + group)
        sound += [chunk.samples for chunk in voice.push(state, tokens[now], None if hidden is None else hidden[now])]
    sound += [chunk.samples for chunk in voice.finish(state)]
    ends = np.cumsum([len(samples) for samples in sound])
    joined = np.concatenate([np.zeros(0, np.float32), *sound])
    return joined, sorted({int(end) for end in ends if 0 < end < len(joined)})


def spectral_steps(sound: Samples, places: Sequence[int]) -> NDArray[np.float64]:
    """How much the spectrum changes at each place, in dB: the mean difference, over mel bands, of 21 ms before and after it.

    Places nearer to an end than that, and those in silence, are left out.
    """
    at = np.asarray([place for place in places if SPAN <= place <= len(sound) - SPAN], np.int64)
    if not len(at):
        return np.zeros(0)
    frames = sliding_window_view(sound, SPAN)
    window = np.hanning(SPAN)
    bank = mel_filters(AGENT_RATE_HZ, SPAN, BANDS)

    def level(begin: NDArray[np.int64]) -> NDArray[np.float64]:
        power = np.square(np.abs(np.fft.rfft(frames[begin] * window))) @ bank
        return np.asarray(10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10))), np.float64)

    before, after = level(at - SPAN), level(at)
    sounding = np.maximum(before.max(axis=1), after.max(axis=1)) > FLOOR_DB + 20
    return np.asarray(np.abs(after - before).mean(axis=1)[sounding], np.float64)


def clicks(sound: Samples, places: Sequence[int]) -> NDArray[np.float64]:
    """How far each place's sample is from where the samples around it lead (cubic), as a multiple of the same in the 10 ms around it."""
    around = AGENT_RATE_HZ // 200
    curve = np.abs(np.convolve(sound, [1, -3, 3, -1], mode="same"))
    found = []
    for place in places:
        near = curve[max(place - around, 0) : place + around]
        usual = float(np.sqrt(np.mean(np.square(near)))) if len(near) else 0.0
        if usual > 1e-6:
            found.append(float(curve[max(place - 2, 0) : place + 3].max()) / usual)
    return np.asarray(found, np.float64)


def elsewhere(length: int, joins: Sequence[int], rng: np.random.Generator, count: int = 2000) -> list[int]:
    """Random places at least 40 ms from any join."""
    places = rng.integers(SPAN, max(length - SPAN, SPAN + 1), count)
    far = AGENT_RATE_HZ // 25
    near = np.asarray(joins)
    return [int(place) for place in places if not len(near) or np.abs(near - place).min() > far]
