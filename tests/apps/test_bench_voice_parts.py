"""The own voice taken apart: codes are those it speaks with, time is told by part, and one long step makes the same sound."""

from __future__ import annotations

import numpy as np
import pytest

from apps.bench_voice_parts import codes_of, costs, offline, stream_lines, streamed, watched
from apps.bench_voice_stream import Thought, chunked
from decoders.edge_voice import EdgeVoice
from tests.clock import Clock
from tests.decoders.test_edge_voice import WORDS
from tests.decoders.test_edge_voice import voice as voice  # a fixture


@pytest.fixture(scope="module")
def thought() -> Thought:
    return list(WORDS), np.random.default_rng(0).normal(size=(len(WORDS), 8)).astype(np.float32)


def test_the_codes_are_those_of_the_sound(voice: EdgeVoice, thought: Thought) -> None:
    codes = codes_of(voice, thought, 5)
    assert codes == codes_of(voice, thought, 3)  # however the text came
    assert codes != codes_of(voice, thought, 5, seed=1)
    sound, joins = streamed(voice, codes)
    assert len(sound) == round(len(codes) * voice.code_samples)
    assert len(joins) > 3
    spoken, _ = chunked(voice, thought, 5)
    assert len(sound) - 5 * voice.code_samples < len(spoken) <= len(sound)  # but for the silence before the first word


def test_one_long_step_makes_the_same_sound(voice: EdgeVoice, thought: Thought) -> None:
    codes = codes_of(voice, thought, 5)
    np.testing.assert_allclose(offline(voice, codes), streamed(voice, codes)[0], atol=1e-5)
    told = stream_lines(voice, [thought], 5)
    assert "largest difference" in told[0]
    assert len(told) == 3


def test_time_is_told_by_part_and_the_parts_are_left_as_they_were(voice: EdgeVoice, thought: Thought) -> None:
    before = voice.token2wav.flow.step
    told = costs(voice, [thought], 5)
    for part in ("reading", "projector", "voice LM", "flow", "vocoder", "the rest", "whole"):
        assert part in told
    assert voice.token2wav.flow.step == before


def test_what_a_method_spends_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("apps.bench_voice_parts.time", clock)

    class Sleeper:
        def rest(self) -> int:
            clock.sleep(0.02)
            return 3

    sleeper = Sleeper()
    with watched({"sleep": (sleeper, "rest")}) as spent:
        assert sleeper.rest() + sleeper.rest() == 6
    assert 0.04 <= spent["sleep"] < 0.2
    sleeper.rest()
    assert spent["sleep"] < 0.2
    assert "rest" not in vars(sleeper)
