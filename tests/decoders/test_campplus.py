"""The speaker encoder has the published keys, and agrees with FunASR's own class at full size with the same random weights."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from decoders.campplus import CamPlus, CamPlusConfig, segment_means, speaker_features
from duplex.checkpoint import fill, misfits
from tests.reference_weights import load_reference, read_keys, reference_state

HERE = Path(__file__).parent / "reference"


def random_state(model, seed=0):
    """Weights by the reference rule, with norms as training leaves them: variances positive, counts whole."""
    state = reference_state({name: value.shape for name, value in model.state_dict().items()}, seed)
    for name in state:
        if name.endswith("running_var"):
            state[name] = state[name].abs() * 20 + 0.5
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
    return state


@pytest.fixture(scope="module")
def full():
    model = CamPlus()
    fill(model, random_state(model), "random", "CAM++")
    return model


def test_keys_at_full_size_are_the_published_ones():
    with torch.device("meta"):
        model = CamPlus()
    wanted = read_keys(HERE / "campplus.txt")
    assert len(wanted) == 937
    assert misfits(wanted, {name: tuple(value.shape) for name, value in model.state_dict().items()}) == ""


def test_features_equal_the_reference():
    tensors, _ = load_reference(HERE / "mel24k.safetensors")
    theirs = tensors["campplus_fbank"]
    ours = speaker_features(tensors["wav16k"][0].numpy())[0]
    assert ours.shape == theirs.shape == (123, 80)
    assert ours.mean(0).abs().max() < 1e-4
    assert (ours - (theirs - theirs.mean(0))).abs().max() < 1e-3


def funasr_class():
    try:
        from funasr.models.campplus.model import CAMPPlus
    except ImportError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"FunASR is not installed ({error})")
    return CAMPPlus


@pytest.mark.parametrize("frames", [40, 399, 400, 523])
@torch.inference_mode()
def test_equals_funasr_at_full_size(full, frames):
    theirs = funasr_class()(embedding_size=192)
    theirs.load_state_dict(full.state_dict(), strict=True)
    theirs.train(False)
    drift = torch.sin(torch.arange(frames) / 40)[None, :, None] * 3  # so that segments differ
    features = torch.randn(2, frames, 80, generator=torch.Generator().manual_seed(1)) * 2 + drift
    expected = theirs(features)
    assert (full(features) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_segments_average_what_is_there():
    x = torch.randn(2, 3, 230, generator=torch.Generator().manual_seed(0))
    means = segment_means(x)
    expected = torch.stack((x[..., :100].mean(-1), x[..., 100:200].mean(-1), x[..., 200:].mean(-1)), dim=-1)
    assert (means - expected).abs().max() < 1e-6
    assert segment_means(x[..., :100]).shape == (2, 3, 1)


def test_batch_rows_do_not_mix():
    tiny = CamPlus.tiny()
    features = torch.randn(3, 250, 80, generator=torch.Generator().manual_seed(0))
    together, alone = tiny(features), torch.cat([tiny(row[None]) for row in features])
    assert together.shape == (3, 192)
    assert (together - alone).abs().max() < 1e-5


def test_loudness_hardly_matters_and_the_sound_does():
    tiny = CamPlus.tiny()
    sound = (np.random.default_rng(0).standard_normal(32_000) * 0.1).astype(np.float32)
    time_s = np.arange(32_000) / 16_000
    tone = (0.1 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)
    one, loud, other = tiny.embed(sound), tiny.embed(sound * 4), tiny.embed(tone)
    assert one.shape == (192,) and one.dtype == torch.float32
    assert (one - loud).norm() < 1e-3 * one.norm() < (one - other).norm()


def test_tiny_is_reproducible():
    sound = (np.random.default_rng(0).standard_normal(16_000) * 0.1).astype(np.float32)
    assert torch.equal(CamPlus.tiny(1).embed(sound), CamPlus.tiny(1).embed(sound))
    assert not torch.equal(CamPlus.tiny(1).embed(sound), CamPlus.tiny(2).embed(sound))


def test_too_short_is_told():
    with pytest.raises(ValueError, match="at least 45 ms"):
        CamPlus.tiny().embed(np.zeros(700, np.float32))


@pytest.mark.parametrize("wrong", [{"bands": 81}, {"layers": (1, 2)}, {"growth": 0}])
def test_impossible_settings_are_told(wrong):
    with pytest.raises(ValueError, match="speaker encoder"):
        CamPlusConfig(**wrong)
