"""From many steps to one: pairs of moments, and a student that reaches in one step what took its teacher eight."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from decoders.flow import Flow, fixed_noise
from decoders.flow_checkpoint import tiny
from decoders.flow_distillation import conditions, draw_pairs, span_loss, times_on, walk
from decoders.flow_speech import Crops
from decoders.flow_voice import VOICE

SMALL = dataclasses.replace(
    VOICE,
    mel=6,
    encoder=dataclasses.replace(VOICE.encoder, width=16, heads=2, feed_forward=16, blocks=1),
    estimator=dataclasses.replace(VOICE.estimator, channels=16, mid_stages=1, heads=2, head_width=8),
)


def crops(rows: int = 4, length: int = 10, seed: int = 0) -> Crops:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(SMALL.vocabulary, (rows, length), generator=generator)
    frames = torch.randn(rows, length * SMALL.ratio, SMALL.mel, generator=generator)
    return Crops(codes, torch.tensor([length] * (rows - 1) + [length // 2]), frames, torch.tensor([True] * (rows - 1) + [False]))


@pytest.fixture
def flow() -> Flow:
    return tiny(1, SMALL)


def test_pairs_are_whole_halves_and_quarters_of_the_way() -> None:
    begin, end = draw_pairs(3000, 8, torch.Generator().manual_seed(0))
    found = {(int(a), int(b)) for a, b in zip(begin, end, strict=True)}
    assert found == {(0, 8), (0, 4), (4, 8), (0, 2), (2, 4), (4, 6), (6, 8)}
    assert ((end - begin) == 8).float().mean() == pytest.approx(0.5, abs=0.03)
    assert ((end - begin) == 4).float().mean() == pytest.approx(1 / 3, abs=0.03)


def test_the_moments_of_few_steps_are_among_those_of_many() -> None:
    eight = times_on(torch.device("cpu"), 8)
    for steps in (1, 2, 4):
        assert torch.allclose(times_on(torch.device("cpu"), steps), eight[:: 8 // steps], atol=1e-7)


def test_a_fresh_student_is_its_teacher(flow: Flow) -> None:
    seen = conditions(flow, crops(), chunked=True)
    noise = torch.randn(4, 40, 6)
    assert torch.equal(walk(flow, seen, noise, 4, spans=True), walk(flow, seen, noise, 4, spans=False))


def test_a_walk_is_what_the_flow_itself_does(flow: Flow) -> None:
    given = crops(rows=1)
    given = dataclasses.replace(given, counts=torch.tensor([10]), unfinished=torch.tensor([False]))
    noise = fixed_noise(SMALL.mel, SMALL.max_frames, SMALL.noise_seed)[:40].unsqueeze(0)
    frames = walk(flow, conditions(flow, given, chunked=True), noise, 2, spans=True)[-1]
    wanted = flow.step(flow.open(torch.arange(0), torch.zeros(0, 6), steps=2), given.codes[0], final=True)
    assert torch.allclose(frames[0].T, wanted, atol=1e-5)


def test_a_student_learns_to_get_there_in_one_step(flow: Flow) -> None:
    given, generator = crops(), torch.Generator().manual_seed(3)
    flow.requires_grad_(True)
    with torch.no_grad():  # directions that turn on the way, so that one step of the teacher goes astray
        for stage in flow.decoder.estimator.stages:
            stage[0].mlp[1].weight *= 12.0
    flow.requires_grad_(False)
    student = copy.deepcopy(flow)
    student.decoder.requires_grad_(True)
    seen = conditions(flow, given, chunked=False)
    optimizer = torch.optim.Adam(student.decoder.parameters(), lr=3e-3)

    def astray() -> float:
        noise = torch.randn(given.frames.shape, generator=torch.Generator().manual_seed(9))
        wanted = walk(flow, seen, noise, 8, spans=False)[-1]
        return float((walk(student, seen, noise, 1, spans=True)[-1] - wanted)[seen.counted].square().mean())

    before = astray()
    for _ in range(60):
        points = walk(flow, seen, torch.randn(given.frames.shape, generator=generator), 8, spans=False)
        loss = span_loss(student, seen, points, *draw_pairs(4, 8, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert astray() < 0.5 * before


def test_frames_that_do_not_count_teach_nothing(flow: Flow) -> None:
    given = crops()
    seen = conditions(flow, given, chunked=True)
    points = walk(flow, seen, torch.randn(given.frames.shape), 8, spans=False)
    begin, end = torch.zeros(4, dtype=torch.int64), torch.full((4,), 8)
    loss = span_loss(flow, seen, points, begin, end)
    points[8][~seen.counted] += 100.0
    assert torch.equal(span_loss(flow, seen, points, begin, end), loss)
