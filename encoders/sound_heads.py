"""What a recogniser's own layers tell beside words: whether the user's turn is over, and whether a sound only shows that somebody listens.

    frames [n, d]  states of the newest sound  ->  four looks, each at its own places of them   ->  log odds
    last [e]       the decoder's state after the last word (Whisper's)                          ->  log odds

Both are added, and to those of a turn's end what the LLM makes of the words (`duplex.predictor_sentence_end`), with which they were taught.
A recogniser makes a whole sentence of half of one, but its layers know how it was spoken and what else it may have been. Pooling an encoder
by attention to find the end of a turn is smart-turn's way (Pipecat, v2 and later); here the recogniser has computed the states anyway.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from duplex.checkpoint import fill, read_tensors
from duplex.errors import WeightsError
from encoders.ears import SoundStates

FOLDER = Path(__file__).parent / "weights"
"""The shipped weights, one file for each recogniser; the model cards lie beside them."""


def weights_of(heard_by: str) -> Path:
    """The file of the recogniser of an input: bridge (Whisper) or projector."""
    return FOLDER / f"sound_heads_{heard_by}.safetensors"


def shipped(heard_by: str) -> Path | None:
    """The same, where it was taught."""
    file = weights_of(heard_by)
    return file if file.is_file() else None


def newest(frames: NDArray[Any], places: int) -> NDArray[np.float32]:
    """[n, d] -> [places, d] the newest of them, zeros in front where there are fewer."""
    found = np.zeros((places, frames.shape[1]), np.float32)
    kept = frames[max(0, len(frames) - places) :]
    found[places - len(kept) :] = kept
    return found


class SoundHead(nn.Module):
    """Shapes: b sounds, n places, d and e the states' widths, i the inner width, l looks."""

    def __init__(self, places: int, width: int, last: int, inner: int = 64, looks: int = 4) -> None:
        """last: width of the decoder's state; 0 where there is none."""
        super().__init__()
        self.look, self.places = nn.Linear(width, looks), nn.Parameter(torch.zeros(places, looks))
        self.enter, self.mix = nn.Linear(width, inner), nn.Linear(looks * inner, inner)
        self.last = nn.Linear(last, inner) if last else None
        self.out = nn.Linear(inner * (2 if last else 1), 1)
        self.drop = nn.Dropout(0.6)

    def forward(self, frames: Tensor, last: Tensor | None) -> Tensor:
        """[b, n, d] and [b, e], both standardised -> [b] log odds."""
        x = self.drop(frames)
        looks = torch.softmax(self.look(x) + self.places, 1)  # [b, n, l]
        seen = looks.transpose(1, 2) @ functional.gelu(self.enter(x))  # [b, l, i]
        parts = [functional.gelu(self.mix(seen.flatten(1)))]
        if self.last is not None:
            assert last is not None
            parts.append(functional.gelu(self.last(self.drop(last))))
        told: Tensor = self.out(self.drop(torch.cat(parts, 1)))
        return told[:, 0]


class SoundHeads(nn.Module):
    """Both heads of one recogniser."""

    mean: Tensor
    deviation: Tensor
    last_mean: Tensor
    last_deviation: Tensor

    def __init__(self, places: int, width: int, last: int = 0) -> None:
        super().__init__()
        self.ends, self.listens = SoundHead(places, width, last), SoundHead(places, width, last)
        for name, size in (("mean", width), ("last_mean", last)):
            self.register_buffer(name, torch.zeros(size))
        for name, size in (("deviation", width), ("last_deviation", last)):
            self.register_buffer(name, torch.ones(size))

    @classmethod
    def load(cls, file: Path) -> Self:
        """From what `save` wrote. Raises WeightsError."""
        tensors = read_tensors(file)
        try:
            places, width, last = len(tensors["ends.places"]), len(tensors["mean"]), len(tensors["last_mean"])
        except KeyError as error:
            raise WeightsError(f"{file} holds no heads on a recogniser's states; run `duologue train sentence-end`.") from error
        heads = cls(places, width, last)
        fill(heads, tensors, file, "the heads on a recogniser's states", torch.float32)
        return heads.eval().requires_grad_(False)

    @property
    def places(self) -> int:
        """So many of the newest states are looked at."""
        return len(self.ends.places)

    def standardise(self, frames: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As the heads take them."""
        frames = (frames - self.mean) / self.deviation
        return frames, None if last is None else (last - self.last_mean) / self.last_deviation

    def fit(self, frames: Tensor, last: Tensor | None) -> None:
        """Learn mean and deviation from [b, n, d] and [b, e]."""
        flat = frames.flatten(0, 1)
        self.mean.copy_(flat.mean(0))
        self.deviation.copy_(flat.std(0).clamp(min=1e-3))
        if last is not None:
            self.last_mean.copy_(last.mean(0))
            self.last_deviation.copy_(last.std(0).clamp(min=1e-3))

    @torch.inference_mode()
    def tell(self, states: SoundStates) -> tuple[float, float]:
        """Log odds that the turn is over, to be added to those of its words; and P(the sound only shows that somebody listens)."""
        frames = torch.from_numpy(newest(states.frames, self.places))[None]
        last = None if states.last is None else torch.from_numpy(np.asarray(states.last, np.float32))[None]
        frames, last = self.standardise(frames, last)
        return float(self.ends(frames, last)), float(torch.sigmoid(self.listens(frames, last)))

    def save(self, file: Path) -> None:
        """fp16 safetensors. Raises OSError."""
        from safetensors.torch import save_file

        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.half().contiguous() for name, value in self.state_dict().items()}, file)
