"""Where bfloat16 is fast."""

from __future__ import annotations

import pytest
import torch

from encoders.fast_types import fast_in_bfloat16


def test_a_gpu_is_fast_and_a_cpu_only_with_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fast_in_bfloat16(torch.device("cuda"))
    for avx, amx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert fast_in_bfloat16(torch.device("cpu")) == (avx or amx)
