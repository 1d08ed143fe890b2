"""Repetition-aware sampling against CosyVoice's own draws, and its rules one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoders.ras import GREEDY, USUAL, RasConfig, draw, nucleus
from tests.decoders.reference_voice_lm import REFERENCE


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("case", range(3))
def test_draws_what_the_reference_draws(case: int) -> None:
    tensors, info = REFERENCE
    name = f"ras/cases/{case}"
    scores = tensors["ras/logits"].log_softmax(0)
    assert draw(scores, info[f"{name}/history"], USUAL, seeded(info[f"{name}/seed"])) == info[f"{name}/token"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.floats(0.05, 1.0), st.integers(1, 30))
def test_the_nucleus_is_what_a_walk_down_the_sorted_list_takes(levels: list[int], top_p: float, top_k: int) -> None:
    probabilities = torch.tensor(levels, dtype=torch.float32).softmax(0)
    taken: list[int] = []
    total = torch.zeros(())
    for index in sorted(range(len(levels)), key=lambda index: (-levels[index], index)):
        if total < top_p and len(taken) < top_k:
            taken.append(index)
            total = total + probabilities[index]
    ours = nucleus(probabilities, top_p, top_k).tolist()
    assert abs(len(ours) - len(taken)) <= (abs(float(probabilities[ours].sum()) - top_p) < 1e-5)  # a sum may round either way
    assert ours[: len(taken)] == taken[: len(ours)]


def test_a_repetition_is_drawn_again_from_all_but_itself() -> None:
    scores = torch.tensor([9.0, 0.0, 0.0, 0.0])
    drawn = {draw(scores, [0], USUAL, seeded(seed)) for seed in range(60)}
    assert drawn == {1, 2, 3}
    assert {draw(scores, [0], RasConfig(window=0), seeded(seed)) for seed in range(60)} == {0}


def test_only_the_window_counts_and_only_its_share() -> None:
    scores = torch.tensor([9.0, 0.0, 0.0, 0.0])
    assert draw(scores, [0, *[1] * 10], USUAL, seeded(1)) == 0
    assert draw(scores, [0, *[1] * 9], USUAL, seeded(1)) != 0
    assert draw(scores, [0, 0, *[1] * 8], RasConfig(tau=0.3), seeded(1)) == 0
    assert draw(scores, [0, 0, 0, *[1] * 7], RasConfig(tau=0.3), seeded(1)) != 0


def test_the_only_choice_may_repeat() -> None:
    scores = torch.full((4,), float("-inf"))
    scores[2] = 1.0
    assert draw(scores, [2, 2, 2], USUAL, seeded(0)) == 2


def test_temperature() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0])
    assert draw(scores, [1] * 10, GREEDY, seeded(0)) == 1
    generator = seeded(0)
    draw(scores, [], GREEDY, generator)
    assert torch.equal(generator.get_state(), seeded(0).get_state())
    cold = [draw(scores, [], RasConfig(temperature=0.01), seeded(seed)) for seed in range(30)]
    warm = [draw(scores, [], RasConfig(temperature=100.0, top_p=1.0), seeded(seed)) for seed in range(30)]
    assert set(cold) == {1} and set(warm) == {0, 1, 2}


def test_scores_are_left_alone_and_half_precision_is_taken() -> None:
    scores = torch.randn(50, generator=seeded(5))
    kept = scores.clone()
    draw(scores, list(range(50)), USUAL, seeded(1))
    assert torch.equal(scores, kept)
    assert 0 <= draw(scores.bfloat16(), [], USUAL, seeded(1)) < 50


@pytest.mark.parametrize("config", [USUAL, GREEDY])
@pytest.mark.parametrize("score", [float("-inf"), float("nan")])
def test_nothing_to_draw_is_told(config: RasConfig, score: float) -> None:
    with pytest.raises(ValueError, match="masked"):
        draw(torch.full((5,), score), [], config, seeded(0))


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"top_k": 0}, {"window": -1}, {"tau": 0.0}, {"temperature": -1.0}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RasConfig(**wrong)  # type: ignore[arg-type]
