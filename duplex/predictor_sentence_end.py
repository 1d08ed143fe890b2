"""How likely the user's sentence ends after the words so far: a small head on the LLM's last state, which has read them.

The LLM's own odds of a full stop (agent.chat) tell it too, but an LLM that writes code or prose has learnt where sentences end on paper.
This head was taught on what people say to an agent: wherever one of their sentences could break off, against where it ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from duplex.checkpoint import fill, read_tensors
from duplex.errors import WeightsError

WEIGHTS = Path(__file__).parent / "weights" / "sentence_end.safetensors"
"""The shipped weights; the model card lies beside them."""


class SentenceEnd(nn.Module):
    """Shapes: h the LLM's width, i the head's inner width."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, hidden: int, inner: int = 48) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(hidden))
        self.register_buffer("deviation", torch.ones(hidden))
        self.up, self.down = nn.Linear(hidden, inner), nn.Linear(inner, 1)
        self.drop = nn.Dropout(0.3)

    @classmethod
    def load(cls, file: Path = WEIGHTS) -> Self:
        """From what `save` wrote. Raises WeightsError."""
        tensors = read_tensors(file)
        if "up.weight" not in tensors or tensors["up.weight"].ndim != 2:
            raise WeightsError(f"{file} holds no sentence-end head; run `duologue train sentence-end`.")
        inner, hidden = tensors["up.weight"].shape
        head = cls(hidden, inner)
        fill(head, tensors, file, "the sentence-end head", torch.float32)
        return head.eval().requires_grad_(False)

    @property
    def hidden(self) -> int:
        """Width of the states that it reads."""
        return len(self.mean)

    def forward(self, states: Tensor) -> Tensor:
        """[.., h] final-layer states after the last word -> [..] log odds; ends and other places weigh alike."""
        told: Tensor = self.down(self.drop(functional.gelu(self.up(self.drop((states - self.mean) / self.deviation)))))
        return told[..., 0]

    def fit(self, states: Tensor) -> None:
        """Learn mean and deviation from [n, h]."""
        self.mean.copy_(states.mean(0))
        self.deviation.copy_(states.std(0).clamp(min=1e-3))

    def probability(self, state: Tensor) -> float:
        """[h] -> P(the sentence ends here), of a place that is as likely an end as not."""
        with torch.inference_mode():
            return float(torch.sigmoid(self(state.to(self.mean.device, self.mean.dtype))))

    def save(self, file: Path) -> None:
        """fp16 safetensors. Raises OSError."""
        from safetensors.torch import save_file

        file.parent.mkdir(parents=True, exist_ok=True)
        tensors: Mapping[str, Tensor] = self.state_dict()
        save_file({name: value.half().contiguous() for name, value in tensors.items()}, file)
