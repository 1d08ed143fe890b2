"""Our passes are the library's when the window is full, and causal and cuttable always."""

import numpy as np
import pytest
import torch

from encoders import mel, whisper_checkpoint
from encoders.whisper import Whisper


@pytest.fixture(scope="module")
def model() -> Whisper:
    return whisper_checkpoint.tiny()


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-6, 1, (count, 80)).astype(np.float32)


def test_a_full_window_gives_the_librarys_logits(model):
    window, ids = frames(3000), [model.vocabulary.start, model.vocabulary.no_timestamps, 104, 105]
    with torch.inference_mode():
        states = model.encoder(torch.from_numpy(mel.level(window).T.copy())[None]).last_hidden_state
        hidden = model.decoder(torch.tensor([ids]), encoder_hidden_states=states).last_hidden_state
        expected = model.head(hidden)[0].numpy()
    assert np.abs(model.step(model.encode(window), ids) - expected).max() < 1e-3 * np.abs(expected).max()


def test_steps_in_pieces_equal_one_step_and_a_cut_forgets(model):
    window, ids = frames(150), [257, 259, 104, 105, 106]
    whole = model.step(model.encode(window), ids)
    cache = model.encode(window)
    pieces = [model.step(cache, ids[:3]), model.step(cache, [1, 2])]
    cache.cut(3)
    assert len(cache) == 3
    pieces[1] = model.step(cache, ids[3:])
    assert np.abs(np.concatenate(pieces) - whole).max() < 1e-4
    cache.cut(0)
    assert np.abs(model.step(cache, ids) - whole).max() < 1e-4


def test_later_tokens_do_not_change_earlier_logits(model):
    window = frames(100)
    a, b = model.step(model.encode(window), [257, 259, 104]), model.step(model.encode(window), [257, 259, 105])
    assert np.abs(a[:2] - b[:2]).max() < 1e-5
    assert np.abs(a[2] - b[2]).max() > 1e-3


def test_remembered_silence_stands_for_the_rest_of_the_window(model):
    window = frames(200)
    padded = np.concatenate((window, np.full((2800, 80), -10, np.float32)))
    ids = [257, 259, 104]
    full, short = model.step(model.encode(padded), ids), model.step(model.encode(window), ids)
    assert np.corrcoef(full.ravel(), short.ravel())[0, 1] > 0.95
    cache = model.encode(window)
    assert cache.weight.shape[-1] == 100 + (1500 - 104 + 7) // 8
    assert torch.exp(cache.weight).sum() == pytest.approx(1500, rel=1e-4)


@pytest.mark.parametrize("count", [0, 3001])
def test_a_window_that_does_not_fit_is_refused(model, count):
    with pytest.raises(ValueError, match="1 to 3000"):
        model.encode(frames(count))


def test_odd_and_minimal_windows(model):
    for count in (1, 2, 3, 2999):
        assert np.isfinite(model.step(model.encode(frames(count)), [257, 259])).all()
