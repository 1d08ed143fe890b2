"""Training by the clock: it learns, ends when told, and goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from decoders.flow_distillation import conditions, walk
from decoders.flow_polish import Polish, one_pass
from decoders.flow_speech import Crops, SpeechStore, store
from decoders.flow_trainer import DISTIL, POLISH, TEACH, FlowTrainer, FlowTrainerConfig, Progress, begin, calm, judged, resume
from decoders.flow_voice import VOICE
from duplex.errors import WeightsError

SMALL = dataclasses.replace(
    VOICE,
    mel=4,
    encoder=dataclasses.replace(VOICE.encoder, width=16, heads=2, feed_forward=16, blocks=1),
    estimator=dataclasses.replace(VOICE.estimator, channels=16, mid_stages=0, heads=2, head_width=8),
)
QUICK = FlowTrainerConfig(
    seconds=2.0, rows=4, length=8, rate=1e-2, polish_share=0.0, decay=0.8, warm_steps=5, tell_s=0.25, save_s=0.3
)


def clock(step_s: float = 0.03) -> Callable[[], float]:
    """Time that goes on by so much at each look."""
    return itertools.count(0.0, step_s).__next__


def speech() -> SpeechStore:
    """Frames are the first digit of their code, loud, and a little noise."""
    codes = torch.randint(SMALL.vocabulary, (600,), generator=torch.Generator().manual_seed(0))
    frames = (codes % 7 - 3.0).repeat_interleave(4).unsqueeze(1).expand(-1, 4) / 2.0
    frames = frames + 0.1 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    return store([(codes, frames, torch.tensor([20] * 30))], torch.zeros(4), torch.ones(4))


@pytest.fixture
def held() -> Crops:
    return speech().beginnings(15, 6)


def test_it_learns_in_the_time_it_is_given(held: Crops, tmp_path: Path) -> None:
    trainer = begin(SMALL, QUICK, "cpu")
    before = judged(trainer.average, held, 0, spans=False).error
    trainer.run(speech(), held, tmp_path / "flow.pt", clock=clock())
    assert 2.0 <= trainer.spent < 2.04
    assert trainer.teacher is not None and {one.part for one in trainer.curve} == {TEACH, DISTIL}
    assert judged(trainer.teacher, held, 0, spans=False).error < 0.8 * before
    assert all(math.isfinite(one.loss) and math.isfinite(one.held) for one in trainer.curve)
    encoder, own = trainer.teacher.encoder.state_dict(), trainer.average.encoder.state_dict()
    assert all(torch.equal(encoder[name], own[name]) for name in own)  # the second part leaves the encoder alone


def same(one: FlowTrainer, other: FlowTrainer) -> bool:
    a, b = one.average.state_dict(), other.average.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("distil", [0.0, 1.0])
def test_a_stopped_run_goes_on(distil: float, tmp_path: Path) -> None:
    path = tmp_path / "flow.pt"
    config = dataclasses.replace(QUICK, seconds=0.6, distil_share=distil)
    trainer = begin(SMALL, config, "cpu")
    trainer.run(speech(), None, clock=clock())
    trainer.config = dataclasses.replace(config, seconds=2 * trainer.spent)  # as if it had been stopped half way
    trainer.save(path)
    other = resume(path, SMALL, trainer.config, "cpu")
    assert other.part == trainer.part == (DISTIL if distil else TEACH)
    assert other.spent == pytest.approx(trainer.spent) and other.step == trainer.step > 0 and same(trainer, other)
    assert len(other.curve) == len(trainer.curve)
    other.run(speech(), None, clock=clock())
    assert other.spent >= other.config.seconds and other.step > trainer.step and not same(trainer, other)


def test_the_last_part_makes_one_pass_sound_better(held: Crops, tmp_path: Path) -> None:
    """With a distance that hears the first channel alone."""
    polish = Polish(
        lambda made, true: (made - true)[..., 0].abs().mean(), torch.zeros(4), torch.ones(4), temperature=0.5, sound_codes=3
    )
    known = begin(SMALL, QUICK, "cpu")
    known.run(speech(), None, clock=clock())
    config = dataclasses.replace(QUICK, distil_share=0.0, polish_share=1.0, polish_rate=5e-3)
    trainer = begin(SMALL, config, "cpu", known.average)

    def heard() -> float:
        noise = torch.randn(held.frames.shape, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            frames = one_pass(trainer.average, held, 0.5 * noise, chunked=True)
        return float((frames - held.frames)[..., 0].abs().mean())

    before = heard()
    trainer.run(speech(), held, tmp_path / "flow.pt", polish, clock=clock())
    assert trainer.part == POLISH and {one.part for one in trainer.curve} == {POLISH} and heard() < 0.8 * before
    trainer.config = dataclasses.replace(config, seconds=2 * trainer.spent)  # as if it had been stopped half way
    trainer.save(tmp_path / "half.pt")
    other = resume(tmp_path / "half.pt", SMALL, trainer.config, "cpu")
    assert other.part == POLISH and other.step == trainer.step and same(trainer, other)
    with pytest.raises(ValueError, match="judges sound"):
        other.run(speech(), None, clock=clock())
    with pytest.raises(WeightsError, match="other sizes"):
        begin(dataclasses.replace(SMALL, mel=5), QUICK, "cpu", known.average)


def test_one_pass_is_what_the_flow_gives_in_one_step(held: Crops) -> None:
    trainer = begin(SMALL, QUICK, "cpu")
    noise = torch.randn(held.frames.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        seen = conditions(trainer.average, held, chunked=True)
        assert torch.allclose(
            one_pass(trainer.average, held, noise, chunked=True), walk(trainer.average, seen, noise, 1, spans=True)[-1], atol=1e-5
        )


def test_an_ended_run_is_a_beginning(tmp_path: Path) -> None:
    trainer = begin(SMALL, dataclasses.replace(QUICK, seconds=0.4), "cpu")
    trainer.run(speech(), None, tmp_path / "flow.pt", clock=clock(0.1))
    other = resume(tmp_path / "flow.pt", SMALL, QUICK, "cpu")
    assert (other.part, other.spent, other.step) == (TEACH, 0.0, 0)
    teacher, learner = trainer.teacher, other.learner.state_dict()
    assert teacher is not None
    assert all(torch.equal(learner[name], value) for name, value in teacher.state_dict().items())


def test_weights_that_became_nonsense_come_back(held: Crops) -> None:
    trainer = begin(SMALL, dataclasses.replace(QUICK, distil_share=0.0), "cpu")

    def spoil(progress: Progress) -> None:
        if progress.spent < 0.9:
            with torch.no_grad():
                trainer.learner.encoder_proj.weight.fill_(math.nan)

    trainer.run(speech(), held, tell=spoil, clock=clock())
    assert trainer.slower == 0.5**3  # spoilt at each of three reports in the first second, found at the next
    assert all(value.isfinite().all() for value in trainer.average.state_dict().values())
    assert math.isfinite(trainer.curve[-1].loss) and math.isfinite(trainer.curve[-1].held)


def test_noise_that_is_not_taken_away_is_made_up_for(held: Crops) -> None:
    trainer = begin(SMALL, QUICK, "cpu")  # knows nothing yet, and leaves all of the noise where it is
    temperature = calm(trainer.average, held, 1, spans=False)
    lively = [judged(trainer.average, held, 1, spans=False, temperature=t).liveliness for t in (temperature, 1.0)]
    assert 0.0 < temperature < 1.0 and abs(lively[0] - 1.0) < 0.1 < abs(lively[1] - 1.0)


def test_what_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    path = tmp_path / "flow.pt"
    path.write_bytes(b"nothing of this kind")
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint"):
        resume(path, SMALL, QUICK, "cpu")
    begin(SMALL, QUICK, "cpu").save(path)
    with pytest.raises(WeightsError, match="another size"):
        resume(path, dataclasses.replace(SMALL, chunk=6), QUICK, "cpu")
    with pytest.raises(ValueError, match="multiple of 4"):
        FlowTrainerConfig(teacher_steps=6)
