"""The head that tells where the user's sentence ends: it learns what can be learnt, keeps it in a file, and says what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from agent.chat import Chat
from agent.chat_template import Message
from agent.thinker import Thinker
from duplex.errors import ConfigError, WeightsError
from duplex.predictor import Ending
from duplex.predictor_sentence_end import WEIGHTS, SentenceEnd
from encoders.sound_heads_training import HeadTraining, Places, scores, train_heads

WIDTH = 64


def places(count: int, seed: int) -> Places:
    """One place in five is an end, told by the sum of three numbers of its state."""
    rng = np.random.default_rng(seed)
    states = rng.normal(2.0, 3.0, (count, WIDTH))
    told = states[:, :3].sum(axis=1) + rng.normal(0, 1.0, count)
    return Places(states.astype(np.float16), told > np.quantile(told, 0.8))


@pytest.fixture(scope="module")
def head() -> SentenceEnd:
    config = HeadTraining(epochs=12, batch=16, rate=3e-3)
    taught, curve = train_heads(places(2000, 0), {}, places(500, 1), {}, config, lambda *_: None)
    assert curve[-1][0] < curve[0][0] and max(found for _, found in curve) > 0.9
    return taught.words


def test_ends_and_other_places_weigh_alike(head: SentenceEnd) -> None:
    held = places(2000, 2)
    told = scores(head, held)
    assert np.median(told[held.ends]) > 1 > -1 > np.median(told[~held.ends])
    assert 0 <= head.probability(torch.from_numpy(held.states[0])) <= 1


def test_a_file_gives_the_same_head(head: SentenceEnd, tmp_path: Path) -> None:
    head.save(tmp_path / "made" / "head.safetensors")
    kept, held = SentenceEnd.load(tmp_path / "made" / "head.safetensors"), places(200, 3)
    assert kept.hidden == WIDTH
    np.testing.assert_allclose(scores(kept, held), scores(head, held), atol=0.05)


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    save_file({"up.bias": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="no sentence-end head"):
        SentenceEnd.load(tmp_path / "other.safetensors")
    save_file({"up.weight": torch.zeros(3, WIDTH)}, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError, match="does not fit"):
        SentenceEnd.load(tmp_path / "cut.safetensors")


def test_the_language_model_asks_the_head_that_was_taught_on_it(head: SentenceEnd) -> None:
    thinker = Thinker.tiny(0)
    plain, taught = Chat(thinker), Chat(thinker, None, head)
    context = plain.open()
    for _ in plain.sync_steps(context, plain.render("Be kind.", [Message("user", "What")], open_assistant=False, open_last=True)):
        pass
    state = thinker.state(context)
    assert taught.turn_end(context) == Ending(pytest.approx(head.probability(state)), learnt=True)
    assert plain.turn_end(context) == Ending(pytest.approx(plain.odds_of_end(state)))
    assert plain.odds_of_end(state) == pytest.approx(float(torch.softmax(thinker.logits(context), -1)[plain._ends].sum()))


def test_a_head_of_another_language_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="width 896"):
        Chat(Thinker.tiny(0), None, SentenceEnd(896))


def test_the_shipped_head_reads_the_default_language_model() -> None:
    assert SentenceEnd.load(WEIGHTS).hidden == 896
