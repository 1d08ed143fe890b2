"""How the voice-token LM is taught: text and codes in one row, and what each position must write.

Notable: a layout is indices only, into the stack of the two special rows, the sample's text rows and its code rows. So it fits
text ids and an output projector's embeddings alike, and gradients reach whatever made the rows. It is the order in which `VoiceLM`
decodes: whole groups while the text lasts, each ending with a fill, then the rest with the task id, and the end.

Shapes: n text positions, m codes, t positions of the whole sequence, b samples, d hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from decoders.voice_lm import VoiceLM
from decoders.voice_lm_modules import SOS, TASK, VoiceLMConfig

IGNORE = -1
"""The target of a position that is not taught."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The order of one sample."""

    order: Tensor
    """[t] int64: 0 start, 1 task id, 2 .. 2 + n the text, then the codes."""
    targets: Tensor
    """[t] int64: the output at each position, IGNORE where there is none."""


def unistream_layout(text_length: int, codes: Sequence[int], config: VoiceLMConfig) -> Layout:
    """All text, the task id, all codes: t = n + m + 2."""
    n, m = _counts(text_length, codes)
    order = [SOS, *range(2, 2 + n), TASK, *range(2 + n, 2 + n + m)]
    return _layout(order, [IGNORE] * (1 + n) + [*codes, config.eos])


def bistream_layout(text_length: int, codes: Sequence[int], config: VoiceLMConfig) -> Layout:
    """Groups of text and codes, then the rest of both with the task id between them: t = n + m + 2.

    Every whole group of text has all its codes: ValueError when there are too few. What is drawn for teaching should have more
    (`allows_bistream`), so that the codes after the task id are speech that the text before it is for.
    """
    n, m = _counts(text_length, codes)
    group, block = config.text_group, config.code_group
    if m < n // group * block:
        raise ValueError(f"{m} codes are too few for {n} text positions in groups of {group}:{block}; use unistream_layout")
    order, targets = [SOS], [IGNORE]
    for k in range(n // group):
        written = list(codes[k * block : (k + 1) * block])
        order += [*range(2 + k * group, 2 + (k + 1) * group), *range(2 + n + k * block, 2 + n + (k + 1) * block)]
        targets += [IGNORE] * (group - 1) + written + [config.fill]
    text, code = n // group * group, n // group * block
    order += [*range(2 + text, 2 + n), TASK, *range(2 + n + code, 2 + n + m)]
    targets += [IGNORE] * (n - text) + [*codes[code:], config.eos]
    return _layout(order, targets)


def allows_bistream(text_length: int, code_count: int, config: VoiceLMConfig) -> bool:
    """Whether there are more codes to the text than the groups use up: upstream teaches half of such samples in groups."""
    return code_count * config.text_group > text_length * config.code_group


def arrange(lm: VoiceLM, layout: Layout, text: Tensor, codes: Sequence[int]) -> Tensor:
    """The rows of a layout: text [n, d] (embeddings) and codes [m] -> [t, d], with gradients to all of them."""
    table = lm.modules.speech_embedding.weight
    spoken = lm.modules.speech_embedding(torch.as_tensor(codes, dtype=torch.long, device=table.device))  # [m, d]
    rows = torch.cat((lm.modules.llm_embedding.weight, text.to(table.device, table.dtype), spoken))  # [2 + n + m, d]
    return rows[layout.order.to(table.device)]


def voice_lm_loss(lm: VoiceLM, samples: Sequence[tuple[Layout, Tensor]]) -> Tensor:
    """Mean cross-entropy (nats, no smoothing) over all taught positions of a batch of (layout, rows [t, d]); a scalar.

    Source: CosyVoice2's recipe, which draws the bistream layout for half of the samples that allow it.
    """
    rows = pad_sequence([sample for _, sample in samples], batch_first=True)  # [b, t, d]
    targets = pad_sequence([layout.targets for layout, _ in samples], batch_first=True, padding_value=IGNORE)  # [b, t]
    scores = lm.modules.llm_decoder(lm.qwen.states(rows))  # [b, t, outputs]
    return F.cross_entropy(scores.flatten(0, 1).float(), targets.flatten().to(scores.device), ignore_index=IGNORE)


def _counts(text_length: int, codes: Sequence[int]) -> tuple[int, int]:
    if text_length < 1 or not len(codes):
        raise ValueError(f"a sample needs text and codes; got {text_length} text positions and {len(codes)} codes")
    return text_length, len(codes)


def _layout(order: list[int], targets: list[int]) -> Layout:
    return Layout(torch.tensor(order, dtype=torch.long), torch.tensor(targets, dtype=torch.long))
