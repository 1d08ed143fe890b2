"""Drawing tokens: greedy, the limits on what may be drawn, the penalty, and seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agent.sampling import Sampler, SamplingConfig

LOGITS = torch.tensor([0.0, 3.0, 2.9, -1.0, 2.0, 1.0])


def draws(config: SamplingConfig, n: int, seed: int = 0, **limits: list[int]) -> list[int]:
    sampler = Sampler(config, seed=seed, **limits)
    return [sampler.draw(LOGITS) for _ in range(n)]


def free(**changes: float) -> SamplingConfig:
    return SamplingConfig(**({"temperature": 1.0, "top_k": 6, "top_p": 1.0, "repetition_penalty": 1.0} | changes))  # type: ignore[arg-type]


def test_zero_temperature_takes_the_likeliest_and_leaves_the_logits_alone() -> None:
    before = LOGITS.clone()
    assert draws(free(temperature=0.0), 3, banned=[4]) == [1, 1, 1]
    assert torch.equal(LOGITS, before)


def test_banned_tokens_never_come() -> None:
    drawn = draws(free(temperature=5.0), 300, banned=[1, 2])
    assert set(drawn) == {0, 3, 4, 5}


def test_top_k_and_top_p_keep_only_the_likeliest() -> None:
    assert set(draws(free(temperature=2.0, top_k=3), 300)) == {1, 2, 4}
    probabilities = LOGITS.softmax(0)
    nucleus = float(probabilities[1]) + 0.01  # the second is needed to reach this, the third is not
    assert set(draws(free(top_p=nucleus), 300)) == {1, 2}


def test_frequencies_follow_the_softmax() -> None:
    counts = np.bincount(draws(free(), 4000), minlength=6) / 4000
    assert np.abs(counts - LOGITS.softmax(0).numpy()).max() < 0.03


def test_penalty_turns_greedy_away_from_what_was_said_except_from_ends() -> None:
    assert draws(free(temperature=0.0, repetition_penalty=2.0), 3) == [1, 2, 4]
    assert draws(free(temperature=0.0, repetition_penalty=2.0), 3, exempt=[1]) == [1, 1, 1]


@given(st.integers(0, 2**32 - 1))
def test_same_seed_same_draws(seed: int) -> None:
    assert draws(free(), 20, seed) == draws(free(), 20, seed)


def test_other_seed_other_draws() -> None:
    assert draws(free(), 40, 1) != draws(free(), 40, 2)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"repetition_penalty": 0.9}, {"seed": -1}],
)
def test_wrong_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingConfig(**wrong)  # type: ignore[arg-type]
