"""Contexts that take steps together write what each would write alone; here without a graph, on a GPU the same kernels are recorded."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from agent.sampling import SamplingConfig
from agent.thinker import Thinker
from decoders import voice_lm_checkpoint
from decoders.qwen_steps import LEAST_SPAN, ROWS

PROMPTS = ("one", "two and more", "a third, rather longer than the others are", "x" * (LEAST_SPAN - 3))


def written(thinker: Thinker, together: bool, steps: int = 8) -> list[list[int]]:
    contexts = [thinker.open() for _ in PROMPTS]
    samplers = [thinker.sampler(SamplingConfig(temperature=0.8), seed) for seed in range(len(PROMPTS))]
    for context, prompt in zip(contexts, PROMPTS, strict=True):
        thinker.sync(context, thinker.encode(prompt))
    if together:
        rounds = [thinker.step_together(contexts, samplers) for _ in range(steps)]
    else:
        rounds = [[thinker.step(c, s) for c, s in zip(contexts, samplers, strict=True)] for _ in range(steps)]
    hidden = np.stack([[step.hidden for step in row] for row in rounds])
    assert np.isfinite(hidden).all()
    return [[step.token for step in row] for row in rounds]


def test_the_thinker_writes_the_same_together_and_alone() -> None:
    apart, joint = Thinker.tiny(), Thinker.tiny()
    joint.share(len(PROMPTS))
    expected = written(apart, together=False)
    assert written(joint, together=True) == expected
    gc.collect()
    assert written(joint, together=False) == expected


def test_states_and_scores_agree_and_neighbours_are_left_alone() -> None:
    apart, joint = Thinker.tiny(), Thinker.tiny()
    joint.share(3)
    a, b, other = apart.open(), joint.open(), joint.open()
    for thinker, context in ((apart, a), (joint, b), (joint, other)):
        thinker.sync(context, thinker.encode("what was said"))
    before = other.buffers.keys.clone()
    greedy = SamplingConfig(temperature=0.0)
    for _ in range(5):
        left, right = apart.step(a, apart.sampler(greedy)), joint.step(b, joint.sampler(greedy))
        assert left.token == right.token
        assert np.abs(left.hidden - right.hidden).max() < 1e-5
        assert (apart.logits(a) - joint.logits(b)).abs().max() < 1e-4
    assert torch.equal(other.buffers.keys, before)


def test_room_is_given_back_and_more_contexts_run_alone() -> None:
    thinker = Thinker.tiny()
    thinker.share(1)
    assert thinker.steps is not None
    kept, beyond = thinker.open(), thinker.open()
    assert kept.buffers.slot == 0 and beyond.buffers.slot == -1 and thinker.steps.free == 0
    thinker.sync(beyond, thinker.encode("still"))
    assert thinker.step(beyond, thinker.sampler(SamplingConfig())).token >= 0
    del kept
    gc.collect()
    assert thinker.steps.free == 1


def test_more_contexts_than_a_step_has_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoders.qwen_steps.ROWS", ROWS[:2])
    apart, joint = Thinker.tiny(), Thinker.tiny()
    joint.share(len(PROMPTS))
    assert written(joint, together=True, steps=3) == written(apart, together=False, steps=3)


def test_voice_states_write_the_same_together_and_alone() -> None:
    lm = voice_lm_checkpoint.tiny(0)
    texts = [torch.arange(20 + i, 33 + 2 * i) for i in range(3)]
    alone = []
    for seed, text in enumerate(texts):
        state = lm.open(seed=seed)
        alone.append([code for codes in (*lm.push(state, text), *lm.finish(state)) for code in codes])
    lm.share(3)
    states = [lm.open(seed=seed) for seed in range(3)]
    joint: list[list[int]] = [[] for _ in states]
    for state, text in zip(states, texts, strict=True):
        lm.take(state, text)
    while due := [index for index, state in enumerate(states) if lm.due(state)]:
        for index, codes in zip(due, lm.write_together([states[index] for index in due]), strict=True):
            joint[index] += codes
    for index, state in enumerate(states):
        joint[index] += [code for codes in lm.finish(state) for code in codes]
    assert joint == alone
