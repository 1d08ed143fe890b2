"""How tokens sound, as vectors to begin with: tokens whose phones are alike in like places lie near each other.

A network that is to tell words from sounds learns faster, and words that it seldom meets, when the rows of its output layer know how words
sound before it begins (acoustically grounded word embeddings, Settle et al. 2019, arXiv:1903.12306). Here nothing is learnt for it: each
phone counts for its place from the word's beginning and from its end, and the principal components of that are kept.

Legend: V tokens, P phones, K width, L phones of a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CENTRES = (0.0, 1.0, 2.0, 3.2, 4.7, 6.7, 9.5)
"""Places, counted from an end, for which a phone counts, and with it those near."""
SIZE = 0.15
"""Root mean square of what comes out."""


def token_codes(phones: Sequence[NDArray[np.int64]], kinds: int, width: int) -> Tensor:
    """[V] of [L] phones from 0, an empty one for what has no sound -> [V, K]. kinds: P."""
    centres = np.array(CENTRES)
    widths = 0.5 + 0.2 * centres
    seen = np.zeros((len(phones), 2, len(centres), kinds), np.float32)
    for row, said in enumerate(phones):
        for side, order in enumerate((said, said[::-1])):
            for place, phone in enumerate(order):
                seen[row, side, :, phone] += np.exp(-(((place - centres) / widths) ** 2) / 2)
    flat = torch.from_numpy(seen).flatten(1).double()
    some = torch.tensor([len(one) > 0 for one in phones])
    made = torch.zeros(len(phones), width)
    if int(some.sum()) < 2:
        return made
    centred = flat[some] - flat[some].mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    kept = min(width, len(variances))
    variances, directions = variances[-kept:].clamp(min=1e-6), directions[:, -kept:]
    found = centred @ directions / variances.pow(0.25)  # half of the way to equal sizes
    made[some, :kept] = (SIZE * found / found.pow(2).mean().sqrt().clamp(min=1e-6)).float()
    return made
