"""What a user would otherwise build from the same weights: wait out 700 ms of silence, transcribe, generate, synthesise, play."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.chat_template import Message
from agent.parts import Parts
from agent.session import SessionConfig
from duplex.audio import AGENT_RATE_HZ, USER_RATE_HZ, Samples

SILENCE_S = 0.7
"""Silence after which such a cascade takes the turn as ended."""


@dataclass(frozen=True, slots=True)
class CascadeTurn:
    """One question through the cascade, each stage's seconds."""

    text: str
    reply: str
    listen_s: float
    think_s: float
    speak_s: float
    spoken_s: float

    @property
    def latency_s(self) -> float:
        """End of the user's speech to the agent's first sample."""
        return SILENCE_S + self.listen_s + self.think_s + self.speak_s


def transcribe_whole(parts: Parts, samples: Samples) -> str:
    """[n] user samples; at once when it fits a window of the ears, else window by window."""
    ears = parts.ears
    state = ears.open()
    ears.begin_turn(state, 0)
    block = 4 * USER_RATE_HZ
    if len(samples) > 3 * block:
        for at in range(0, len(samples) - block, block):
            ears.feed(state, samples[at : at + block])
            window = ears.window(state)
            ears.settle(state, window, ears.transcribe(window))
        samples = samples[at + block :]
    ears.feed(state, np.concatenate([samples, np.zeros(USER_RATE_HZ // 2, np.float32)]))
    return ears.transcribe(ears.window(state)).text


def reply_to(parts: Parts, config: SessionConfig, text: str, context: Any, seed: int) -> list[int]:
    """The LLM's whole reply to one written message, as tokens."""
    thinker = parts.thinker
    keys = thinker.render(config.response.system_prompt, [Message("user", text)], open_assistant=True)
    for _ in thinker.sync_steps(context, keys):
        pass
    sampler = thinker.sampler(seed)
    tokens: list[int] = []
    while len(tokens) < config.response.most_tokens:
        token = thinker.step(context, sampler).token
        if token in thinker.eos_ids:
            break
        tokens.append(token)
    return tokens


def synthesise(parts: Parts, tokens: list[int]) -> Samples:
    """A whole reply's sound, [n] at 24 kHz."""
    state = parts.voice.open(0)
    chunks = [c.samples for c in parts.voice.push(state, tokens)] + [c.samples for c in parts.voice.finish(state)]
    return np.concatenate(chunks) if chunks else np.zeros(0, np.float32)


def cascade_turn(parts: Parts, config: SessionConfig, samples: Samples, context: Any) -> CascadeTurn:
    """One spoken question through the cascade; `context` may already hold the system prompt, as a warm server's would."""
    t0 = time.perf_counter()
    text = transcribe_whole(parts, samples)
    t1 = time.perf_counter()
    tokens = reply_to(parts, config, text, context, seed=1)
    t2 = time.perf_counter()
    sound = synthesise(parts, tokens)
    t3 = time.perf_counter()
    return CascadeTurn(text, parts.thinker.decode(tokens), t1 - t0, t2 - t1, t3 - t2, len(sound) / AGENT_RATE_HZ)
