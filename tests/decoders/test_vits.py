"""The split voice: pieces equal the whole, seeds repeat, damage is reported."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from decoders.phonemes import Lexicon, PhonemeTable
from decoders.tiny_voice import tiny_graphs
from decoders.vits import HOP, Vits, VitsConfig, split_vits
from duplex.errors import WeightsError


def pieces_against_whole(vits: Vits, latents: np.ndarray) -> float:
    frames = latents.shape[1]
    whole = vits.render(latents, 0, frames)
    cuts = [0, 5, 21, *range(61, frames, 40), frames]
    joined = np.concatenate([vits.render(latents, a, b) for a, b in itertools.pairwise(cuts)])
    assert len(whole) == len(joined) == frames * HOP
    return float(np.abs(whole - joined).max())


def test_tiny_pieces_equal_the_whole() -> None:
    vits = Vits(tiny_graphs())
    plan = vits.plan([1, 0, *range(4, 36), 2], np.random.default_rng(0))
    assert plan.durations.sum() == plan.latents.shape[1] > 61
    assert pieces_against_whole(vits, plan.latents) <= 1e-5


def test_seed_decides() -> None:
    vits = Vits(tiny_graphs())
    one, same, other = (vits.plan(range(9), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.latents, same.latents) and np.array_equal(one.durations, same.durations)
    assert one.latents.shape != other.latents.shape or not np.array_equal(one.latents, other.latents)


def test_length_scale_stretches() -> None:
    short, long = (
        Vits(tiny_graphs(), VitsConfig(length_scale=scale)).plan(range(30), np.random.default_rng(0)) for scale in (1.0, 2.0)
    )
    assert long.durations.sum() > 1.5 * short.durations.sum()


def test_file_that_is_no_voice(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"this is not a model")
    with pytest.raises(WeightsError):
        split_vits(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path.write_bytes(tiny_graphs()["decoder"])
    with pytest.raises(WeightsError, match="expected layout"):
        split_vits(path, tmp_path / "out")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        Vits.load(tmp_path)


@pytest.mark.parametrize("bad", [{"noise_scale": -1}, {"length_scale": 0}, {"threads": 0}])
def test_configuration_is_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        VitsConfig(**bad)  # type: ignore[arg-type]


@pytest.mark.weights
def test_split_of_the_published_voice_equals_it(edge_weights: dict[str, Path], tmp_path: Path) -> None:
    """Without noise, the three graphs must say, sample for sample, what the published graph says."""
    import onnxruntime as ort

    split = split_vits(edge_weights["vits-joe"], tmp_path / "split")
    vits = Vits.load(split, VitsConfig(noise_scale=0.0, noise_w=0.0))
    table = PhonemeTable.load(edge_weights["vits-joe-config"])
    ids = table.encode(Lexicon()(["the", "capital", "of", "france", "is", "paris"]), ["", "", "", "", "", "."]).ids
    plan = vits.plan(ids, np.random.default_rng(0))
    whole = ort.InferenceSession(str(edge_weights["vits-joe"]), providers=["CPUExecutionProvider"])
    feed = {"input": np.array([ids]), "input_lengths": np.array([len(ids)]), "scales": np.array([0, 1, 0], np.float32)}
    published = whole.run(None, feed)[0].reshape(-1)
    ours = vits.render(plan.latents, 0, plan.latents.shape[1])
    assert np.abs(published - ours).max() <= 1e-3
    assert pieces_against_whole(vits, plan.latents) <= 1e-4
