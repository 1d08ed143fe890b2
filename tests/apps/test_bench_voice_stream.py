"""A voice under the clock: starts, underruns and joins are found where they were put."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from agent.build import build_parts
from agent.parts import Parts
from agent.profiles import load_profile
from apps.bench_voice_clock import joins_told, starts, steady_line
from apps.bench_voice_stream import chunked, clicks, elsewhere, spectral_steps, start, steady
from decoders.voice import Speech
from duplex.audio import AGENT_RATE_HZ, Samples
from tests.clock import Clock

RNG = np.random.default_rng(0)


@dataclass
class Timed:
    """A voice that says nothing before `after` tokens, then a chunk per group, each of which takes `cost_s`."""

    after: int = 0
    cost_s: float = 0.0
    length_s: float = 0.1
    silence_s: float = 0.0

    def open(self, seed: int = 0, speaker: Any = None) -> list[int]:
        return []

    def push(self, state: list[int], tokens: Sequence[int], hidden: Any = None) -> Iterator[Speech]:
        first = not state
        state += tokens
        if len(state) >= self.after:
            yield self._chunk(silent=first)

    def finish(self, state: list[int]) -> Iterator[Speech]:
        yield self._chunk(silent=False)

    def _chunk(self, *, silent: bool) -> Speech:
        time.sleep(self.cost_s)
        sound = np.full(round(self.length_s * AGENT_RATE_HZ), 0.1, np.float32)
        if silent:
            sound[: round(self.silence_s * AGENT_RATE_HZ)] = 0.0
        return Speech(sound, ())


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the voices here and of what measures them."""
    clock = Clock()
    for module in ("apps.bench_voice_stream", __name__):
        monkeypatch.setattr(f"{module}.time", clock)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return build_parts(load_profile("tiny"))


def test_the_start_is_counted_in_tokens_and_timed() -> None:
    found = start(Timed(after=10, cost_s=0.02), (list(range(20)), None), 5)
    assert found.tokens == 10
    assert 0.02 <= found.compute_s < 0.2
    assert found.audio_s == pytest.approx(0.1 * 4)  # groups 2, 3, 4 and the end
    assert found.whole_s >= 4 * 0.02
    assert start(Timed(silence_s=0.05), (list(range(20)), None), 5).silence_s == pytest.approx(0.05)


def test_hidden_states_go_with_their_tokens() -> None:
    seen: list[Any] = []

    class Listening(Timed):
        def push(self, state: list[int], tokens: Sequence[int], hidden: Any = None) -> Iterator[Speech]:
            seen.append((list(tokens), hidden[:, 0].tolist()))
            return super().push(state, tokens, hidden)

    tokens = list(range(12))
    start(Listening(), (tokens, np.arange(12, dtype=np.float32)[:, None]), 5)
    assert seen == [(tokens[at : at + 5], [float(t) for t in tokens[at : at + 5]]) for at in (0, 5, 10)]


def test_a_fast_voice_has_no_underrun_and_a_slow_one_has(parts: Parts) -> None:
    tokens = list(range(40))
    good = steady(Timed(), parts, "Talk.", (tokens, None), 5, ahead_s=0.3)
    assert (good.underruns, good.silent_s) == (0, 0.0)
    assert good.audio_s == pytest.approx(0.9)
    assert good.tokens_per_s > 0
    slow = steady(Timed(cost_s=0.15), parts, "Talk.", (tokens, None), 5, ahead_s=0.3)
    assert slow.underruns >= 6
    assert slow.silent_s > 0.2


def test_chunks_are_joined_in_order() -> None:
    sound, joins = chunked(Timed(length_s=0.05), (list(range(15)), None), 5)
    assert len(sound) == 4 * 1200
    assert joins == [1200, 2400, 3600]


def noise(count: int) -> Samples:
    return (0.1 * RNG.standard_normal(count)).astype(np.float32)


def test_a_spectral_step_is_seen_where_it_is() -> None:
    smooth = noise(48_000)
    stepped = smooth.copy()
    joins = list(range(4_800, 48_000, 4_800))
    for index, join in enumerate(joins):
        if index % 2 == 0:
            stepped[join : join + 4_800] *= 10 ** (12 / 20)
    usual = np.median(spectral_steps(smooth, joins))
    assert np.median(spectral_steps(stepped, joins)) > usual + 4
    apart = elsewhere(48_000, joins, np.random.default_rng(1))
    assert np.median(spectral_steps(stepped, apart)) < usual + 1.5
    assert all(min(abs(place - join) for join in joins) > 960 for place in apart)
    assert len(spectral_steps(np.zeros(48_000, np.float32), joins)) == 0


def test_a_click_is_heard_where_it_is() -> None:
    tone = (0.2 * np.sin(np.arange(24_000) * 2 * np.pi * 220 / 24_000)).astype(np.float32) + 0.001 * noise(24_000)
    torn = tone.copy()
    torn[12_000:] += 0.1
    assert clicks(torn, [12_000])[0] > 3 * clicks(tone, [12_000])[0]
    assert clicks(torn, [6_000])[0] < 4


def test_the_report_says_it_in_words(parts: Parts) -> None:
    thoughts = [(list(range(20)), None)] * 2
    assert starts("a voice", Timed(after=10), thoughts, 5, 1).startswith(
        "a voice, 1 thread: first sound after 10 LLM tokens (most 10)"
    )
    told = joins_told("a voice", [noise(48_000)], [[9_600, 19_200]])
    assert told.startswith("a voice: spectral step at 2 joins")
    assert "none was found" in joins_told("a voice", [np.zeros(48_000, np.float32)], [[9_600]])
    assert "0 underruns" in steady_line("a voice", Timed(), parts, "Talk.", thoughts[0], 5)
