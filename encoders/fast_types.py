"""Which types a device computes in quickly."""

from __future__ import annotations

import torch


def fast_in_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are quicker than in float32: on a GPU, and on a CPU that has instructions for them."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
