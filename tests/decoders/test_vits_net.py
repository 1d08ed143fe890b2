"""The VITS voice as a torch module: batches, files, and parity with the graphs that onnxruntime runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from decoders.vits import Vits
from decoders.vits_net import HOP, VitsNet, VitsNetConfig
from decoders.vits_text import TAIL, inverse_spline
from duplex.errors import WeightsError

TINY = VitsNetConfig(symbols=40, channels=16, inner=24, layers=2, heads=2, generator=16)


@pytest.fixture(scope="module")
def tiny() -> VitsNet:
    torch.manual_seed(3)
    return VitsNet(TINY)


def test_a_row_of_a_batch_is_what_it_is_alone(tiny: VitsNet) -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 40, (3, 17), generator=generator)
    lengths = torch.tensor([17, 9, 5])
    noise = torch.randn(3, 2, 17, generator=generator)
    mean, deviation, durations = tiny.prior(ids, lengths, noise)
    drawn = torch.randn(3, 16, int(durations.sum(1).max()), generator=generator)
    latents = tiny.latents(mean, deviation, durations, drawn)
    for row, length in enumerate(lengths.tolist()):
        alone = tiny.prior(ids[row : row + 1, :length], lengths[row : row + 1], noise[row : row + 1, :, :length])
        frames = int(alone[2].sum())
        own = tiny.latents(*alone, drawn[row : row + 1, :, :frames])
        assert torch.equal(alone[2][0], durations[row, :length])
        assert not durations[row, length:].any()
        torch.testing.assert_close(own[0], latents[row, :frames], atol=1e-5, rtol=1e-5)
        assert not latents[row, frames:].any()


def test_frames_can_be_made_a_multiple(tiny: VitsNet) -> None:
    ids, lengths = torch.randint(1, 40, (4, 11)), torch.tensor([11, 11, 7, 3])
    plain, _ = tiny.speak(ids, lengths, torch.Generator().manual_seed(5)), None
    latents, durations = tiny.speak(ids, lengths, torch.Generator().manual_seed(5), multiple=4)
    assert not (durations.sum(1) % 4).any()
    held = durations - plain[1]
    assert torch.equal(held.argmax(1)[held.sum(1) > 0], (lengths - 1)[held.sum(1) > 0])
    assert bool((held.sum(1) < 4).all()) and bool((held >= 0).all())
    assert latents.shape == (4, int(durations.sum(1).max()), 16)
    assert tiny.render(latents).shape == (4, latents.shape[1] * HOP)


def test_equal_generators_speak_alike(tiny: VitsNet) -> None:
    ids, lengths = torch.randint(1, 40, (2, 9)), torch.tensor([9, 4])
    one, other = (tiny.speak(ids, lengths, torch.Generator().manual_seed(seed))[0] for seed in (7, 7))
    assert torch.equal(one, other)


def test_packed_and_read_back(tiny: VitsNet, tmp_path: Path) -> None:
    tiny.pack(tmp_path / "voice.safetensors")
    back = VitsNet.load(tmp_path / "voice.safetensors")
    assert back.config == TINY
    for name, value in tiny.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value, atol=1e-2, rtol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["voice.safetensors"]


def test_a_foreign_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is missing"):
        VitsNet.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"12345678 not a file of tensors")
    with pytest.raises(WeightsError, match="packed voice"):
        VitsNet.load(tmp_path / "bad.safetensors")


def test_the_spline_is_monotonic_and_ends_in_the_identity() -> None:
    generator = torch.Generator().manual_seed(2)
    widths, heights, slopes = (torch.randn(1, count, generator=generator).expand(400, -1) for count in (10, 10, 9))
    y = torch.linspace(-TAIL - 1, TAIL + 1, 400)
    x = inverse_spline(y, widths, heights, slopes)
    assert bool((x.diff() > 0).all())
    outside = y.abs() > TAIL
    assert torch.equal(x[outside], y[outside])
    assert float((x.diff() / y.diff()).max()) > 1.5  # and it does bend


@pytest.mark.weights
def test_it_is_the_voice_that_onnxruntime_runs(edge_weights: dict[str, Path]) -> None:
    split = edge_weights["vits-joe-split"]
    net, graphs = VitsNet.load(split), Vits.load(split)
    rng = np.random.default_rng(0)
    rows = [np.stack([rng.integers(3, 150, count), np.zeros(count, int)], 1).reshape(-1).tolist() for count in (14, 6)]
    rows = [[1, 0, *row, 2] for row in rows]
    ids = torch.zeros(2, max(map(len, rows)), dtype=torch.int64)
    noise = torch.zeros(2, 2, ids.shape[1])
    plans = []
    for row, own in enumerate(rows):
        ids[row, : len(own)] = torch.tensor(own)
        plans.append(graphs.plan(own, np.random.default_rng(row)))
        noise[row, :, : len(own)] = torch.from_numpy(np.random.default_rng(row).standard_normal((1, 2, len(own)), np.float32)[0])
    mean, deviation, durations = net.prior(ids, torch.tensor([len(own) for own in rows]), noise)
    drawn = torch.zeros(2, 192, int(durations.sum(1).max()))
    for row, own in enumerate(rows):
        assert durations[row, : len(own)].tolist() == plans[row].durations.tolist()
        again = np.random.default_rng(row)
        again.standard_normal((1, 2, len(own)), np.float32)
        frames = plans[row].latents.shape[1]
        drawn[row, :, :frames] = torch.from_numpy(again.standard_normal((192, frames), np.float32))
    latents = net.latents(mean, deviation, durations, drawn)
    for row, plan in enumerate(plans):
        frames = plan.latents.shape[1]
        wanted = torch.from_numpy(plan.latents.T.copy())
        assert float((latents[row, :frames] - wanted).abs().max() / wanted.abs().max()) < 1e-4
        sound = net.render(wanted[None])[0].numpy()
        assert np.abs(sound - graphs.render(plan.latents, 0, frames)).max() < 1e-4
