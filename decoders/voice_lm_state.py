"""One reply that the voice-token LM is speaking, between two of its steps.

Shapes: n text positions, d hidden, m positions at the end of the sequence.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from decoders.qwen import KeyValues
from decoders.ras import RasConfig


class VoiceContextFull(RuntimeError):
    """The state has no room for the next group: end the reply here, and say the rest in a fresh state."""


class Stage(Enum):
    """Where a state is."""

    TEXT = "text still comes"
    REST = "the text has ended"
    END = "the speech has ended"


Step = Generator[slice, int, list[int]]
"""A step in the making: asks for an output by giving the range that is banned, is sent the one that was drawn, and ends with its codes."""


@dataclass(slots=True)
class VoiceLMState:
    """One reply being spoken. Owned by the caller; only `VoiceLM` writes to it."""

    cache: KeyValues
    sampling: RasConfig
    generator: torch.Generator
    text: Tensor
    """[n, d] text positions that are not in the sequence yet, the prompt's text first."""
    prompt_codes: tuple[int, ...]
    """The prompt's codes that are not in the sequence yet."""
    unread: Tensor
    """[m, d] the end of the sequence, of which the cache knows nothing yet."""
    last_read: Tensor
    """[m, d] the rows of the newest forward pass."""
    next_fill: int
    """The fill is due when so many outputs have been written."""
    length: int = 0
    """Positions in the cache."""
    text_positions: int = 0
    """Text of the reply so far (without the prompt's)."""
    outputs: list[int] = field(default_factory=list)
    """Everything written, fills included."""
    written: int = 0
    """Codes among them."""
    writing: bool = False
    """In the middle of a group's codes."""
    stage: Stage = Stage.TEXT
    min_codes: int = 0
    """Set when the text has ended, and so is the next."""
    max_codes: int = 0
    whole: bool = False
    """The text was there at once: `unistream`."""
