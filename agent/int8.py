"""Int8 matrix products on a CPU, and the int8 embedding that shares its rows with the output layer.

Weights are symmetric int8 with one scale per output row. Activations are quantised on the fly, one scale per token: a few
channels of Qwen's first token are hundreds of times larger than the rest, and with one scale per call they would drown every other
token of the same prefill. The integer kernels are torch's own (FBGEMM first: the quickest for one token at a time where it was
measured). Without any of them the weights are dequantised, which is slower and larger but gives the same answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

ENGINES = ("fbgemm", "x86", "onednn")
"""Integer engines in order of preference; all take per-channel int8 weights and float activations."""


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per row: [out, in] float -> ([out, in] int8, [out] float32 scale), weight ~ int8 * scale."""
    scale = weight.float().abs().amax(dim=1).clamp_min(1e-12) / 127.0
    return torch.round(weight.float() / scale[:, None]).clamp_(-127, 127).to(torch.int8), scale


def choose_engine() -> str | None:
    """The first of `ENGINES` that this build of torch has, or None."""
    supported = torch.backends.quantized.supported_engines
    return next((engine for engine in ENGINES if engine in supported), None)


def needs_seven_bits() -> bool:
    """True where the integer kernels add pairs in int16 and would saturate (x86 without VNNI): activations then get seven bits."""
    probe = getattr(torch.cpu, "_is_vnni_supported", None)
    return not (probe is not None and probe())


class Int8Linear(nn.Module):
    """`nn.Linear` for inference with int8 weights: [n, in] float32 -> [n, out] float32.

    Packing rearranges the weights for the kernel and copies them, so the tensors given may be views of a mapped file.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        engine: str | None = "auto",
        reduce_range: bool | None = None,
    ) -> None:
        """weight [out, in] int8, scale [out], bias [out] or None; engine "auto", one of `ENGINES`, or None for plain float."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Buffer(bias.float())
        self.engine = choose_engine() if engine == "auto" else engine
        self.reduce_range = needs_seven_bits() if reduce_range is None else reduce_range
        if self.engine is None:
            self.dense = nn.Buffer(weight.float() * scale.float()[:, None])
            return
        before = torch.backends.quantized.engine
        if before != self.engine:
            torch.backends.quantized.engine = self.engine
        zeros = torch.zeros(self.out_features, dtype=torch.long)
        with warnings.catch_warnings():  # torch means to drop quantised tensors one day; no other door to these kernels yet
            warnings.simplefilter("ignore", UserWarning)
            quantized = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(quantized, None)

    def forward(self, x: Tensor) -> Tensor:
        """[n, in] float32 -> [n, out] float32."""
        if self.engine is None:
            return torch.nn.functional.linear(x, self.dense, self.bias)
        if x.shape[0] == 1:  # one token: the kernel's own range finding is already per token
            y: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)
            return y if self.bias is None else y.add_(self.bias)
        peak = x.abs().amax(dim=1, keepdim=True).clamp_min_(1e-12)
        y = torch.ops.quantized.linear_dynamic(x / peak, self.packed, self.reduce_range)
        return y.mul_(peak) if self.bias is None else torch.addcmul(self.bias, y, peak)


class Int8Embedding(nn.Module):
    """Rows of an int8 table, dequantised when looked up. The table may be a mapped file: only rows in use become resident."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        """weight [vocabulary, d] int8, scale [vocabulary] float32."""
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.weight = nn.Buffer(weight)
        self.scale = nn.Buffer(scale)

    def forward(self, ids: Tensor) -> Tensor:
        """[n] int64 -> [n, d] float32."""
        return self.weight[ids].float().mul_(self.scale[ids][:, None])


class SplitLinear(nn.Module):
    """One linear layer cut along its outputs, because packing a very tall matrix in one piece is slow: [n, in] -> [n, out]."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=1)
