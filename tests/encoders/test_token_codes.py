"""Codes of tokens: alike where they sound alike."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.token_codes import SIZE, token_codes

WORDS = st.lists(st.lists(st.integers(0, 11), max_size=14), min_size=3, max_size=20)


def arrays(words):
    return [np.array(one, np.int64) for one in words]


def test_what_sounds_alike_lies_near():
    pick = np.random.default_rng(0)
    others = [pick.integers(0, 12, pick.integers(2, 9)).tolist() for _ in range(300)]
    word, one_off, turned, longer = [1, 2, 3, 4, 5], [1, 2, 9, 4, 5], [5, 4, 3, 2, 1], [7, 1, 2, 3, 4, 5]
    codes = token_codes(arrays([word, one_off, turned, longer, word, *others]), 12, 32)
    near = torch.nn.functional.cosine_similarity(codes[:1], codes)
    assert torch.allclose(codes[4], codes[0])
    assert near[1] > 0.4 and near[3] > 0.3 and near[2] < near[3]
    assert float(near[5:].mean()) == pytest.approx(0.0, abs=0.1)


@given(words=WORDS, width=st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_any_tokens_have_codes_and_those_without_a_sound_nought(words, width):
    codes = token_codes(arrays(words), 12, width)
    assert codes.shape == (len(words), width) and bool(codes.isfinite().all())
    silent = torch.tensor([not one for one in words])
    assert not codes[silent].any()
    if len({tuple(one) for one in words if one}) > 1:
        assert float(codes[~silent].pow(2).mean().sqrt()) == pytest.approx(SIZE * (min(width, 168) / width) ** 0.5, rel=0.02)
