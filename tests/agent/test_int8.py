"""Int8 products against the same products in float."""

from __future__ import annotations

import pytest
import torch

from agent.int8 import ENGINES, Int8Embedding, Int8Linear, SplitLinear, quantize_rows

AVAILABLE = [engine for engine in ENGINES if engine in torch.backends.quantized.supported_engines]


@pytest.fixture
def weight() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(48, 64) * torch.logspace(-3, 1, 48)[:, None]  # rows of very different size


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_rows_keep_their_own_precision(weight: torch.Tensor) -> None:
    rows, scale = quantize_rows(weight)
    assert rows.dtype == torch.int8 and int(rows.abs().max()) == 127
    error = (rows * scale[:, None] - weight).abs().amax(dim=1)
    assert bool((error <= scale / 2 * 1.001).all())


def test_a_row_of_zeros_stays_zero() -> None:
    rows, scale = quantize_rows(torch.zeros(2, 8))
    assert not rows.any() and bool(torch.isfinite(scale).all())


@pytest.mark.parametrize("engine", [*AVAILABLE, None])
@pytest.mark.parametrize("n", [1, 7])
def test_product_equals_the_dequantised_product(weight: torch.Tensor, engine: str | None, n: int) -> None:
    rows, scale = quantize_rows(weight)
    bias = torch.randn(48)
    x = torch.randn(n, 64)
    exact = x @ (rows * scale[:, None]).T + bias
    layer = Int8Linear(rows, scale, bias, engine=engine)
    # seven bits of activation leave about two per cent, eight about one
    assert relative(layer(x), exact) < (1e-5 if engine is None else 0.03)


@pytest.mark.skipif(not AVAILABLE, reason="this build of torch has no integer engine")
def test_one_huge_token_does_not_blur_the_others(weight: torch.Tensor) -> None:
    rows, scale = quantize_rows(weight)
    layer = Int8Linear(rows, scale)
    x = torch.randn(4, 64)
    x[0] *= 5000.0
    exact = x @ (rows * scale[:, None]).T
    for token in range(4):
        assert relative(layer(x)[token], exact[token]) < 0.04


def test_splitting_changes_nothing(weight: torch.Tensor) -> None:
    rows, scale = quantize_rows(weight)
    x = torch.randn(1, 64)
    parts = SplitLinear([Int8Linear(rows[:20], scale[:20]), Int8Linear(rows[20:], scale[20:])])
    assert torch.equal(parts(x), Int8Linear(rows, scale)(x))


def test_embedding_rows(weight: torch.Tensor) -> None:
    rows, scale = quantize_rows(weight)
    ids = torch.tensor([3, 0, 47, 3])
    assert torch.allclose(Int8Embedding(rows, scale)(ids), weight[ids], atol=float(scale.max()))
