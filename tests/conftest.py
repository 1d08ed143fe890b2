"""What every test shares: one torch thread, programs that Ctrl-C reaches, and the real weights for those that ask for them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import weights
from duplex.errors import WeightsError


def in_ci() -> bool:
    """Whether a missing requirement is a failure instead of a reason to skip."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs an NVIDIA GPU; skipped without one, in CI too, whose machines have none")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("PyTorch finds no NVIDIA GPU here")


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_reaches_programs() -> None:
    """A shell without job control starts its background programs with Ctrl-C ignored, and programs that a test starts inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """More threads than free cores make small layers many times slower, and timings depend on the neighbours."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def edge_weights() -> dict[str, Path]:
    """Paths of the profile `edge` by artifact name, from the cache; never fetches. Skips when missing, fails in CI."""
    try:
        return weights.locate("edge")
    except WeightsError as error:
        if in_ci():
            pytest.fail(str(error))
        pytest.skip(str(error))
