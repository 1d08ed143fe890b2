"""The reference tensors on a GPU, where there is one; and the checks themselves, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.decoders.device_checks import CHECKS, Found, exact


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("check", CHECKS)
def test_reference(check: Callable[[str], Iterator[Found]], device: str) -> None:
    exact()
    found = list(check(device))
    assert found
    for name, difference, bound in found:
        print(f"{name}: {difference:.2e} (at most {bound:.0e})")
    assert not [entry for entry in found if entry[1] > entry[2]]
    if device == "cuda":
        assert not [name for name, *_ in found if "NOT recorded" in name]
