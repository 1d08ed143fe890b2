"""The memories of causal networks, and the mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from decoders.flow_streaming import KeyValues, Past, attention_mask, causal


@settings(max_examples=30, deadline=None)
@given(kernel=st.integers(1, 5), pieces=st.lists(st.integers(1, 4), min_size=1, max_size=5))
@torch.inference_mode()
def test_a_causal_convolution_in_pieces(kernel: int, pieces: list[int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(3, 4, kernel)
    x = torch.randn(2, sum(pieces), 3)
    past = Past()
    output = torch.cat([causal(conv, piece, past) for piece in x.split(pieces, dim=1)], dim=1)
    wanted = conv(F.pad(x.transpose(1, 2), (kernel - 1, 0))).transpose(1, 2)
    assert torch.allclose(output, wanted, atol=1e-5)
    assert torch.allclose(causal(conv, x, None), wanted, atol=1e-5)


def test_keys_and_values_of_a_fork() -> None:
    one = KeyValues()
    rows = torch.arange(40.0).reshape(1, 2, 10, 2)
    one.extend(rows[:, :, :3], -rows[:, :, :3])
    other = one.fork()
    keys, values = one.extend(rows[:, :, 3:7], -rows[:, :, 3:7])
    theirs, _ = other.extend(100 + rows[:, :, 3:5], rows[:, :, 3:5])
    assert torch.equal(keys, rows[:, :, :7]) and torch.equal(values, -rows[:, :, :7])
    assert torch.equal(theirs, torch.cat((rows[:, :, :3], 100 + rows[:, :, 3:5]), dim=2))
    assert KeyValues().fork().length == 0


def test_the_mask_is_block_causal_on_an_absolute_grid() -> None:
    mask = attention_mask(1, 4, 3)
    assert mask is not None
    seen = [row.nonzero().flatten().tolist() for row in mask]
    assert seen == [[0, 1, 2], [0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_nothing_is_masked_within_one_chunk() -> None:
    assert attention_mask(3, 3, 3) is None
    assert attention_mask(0, 9, None) is None
    assert attention_mask(0, 0, 3) is None
    assert attention_mask(2, 2, 3) is not None


def test_padding_is_hidden_from_all() -> None:
    kept = torch.tensor([[True, True, False], [True, True, True]])
    for chunk, shape in ((None, (2, 1, 3, 3)), (2, (2, 1, 3, 3))):
        mask = attention_mask(0, 3, chunk, kept)
        assert mask is not None and mask.shape == shape
        assert not mask[0, :, :, 2].any()
    mask = attention_mask(0, 3, 2, kept)
    assert mask is not None and mask[1, 0].tolist() == [[True, True, False]] * 2 + [[True, True, True]]


def test_a_window_hides_what_is_older() -> None:
    mask = attention_mask(0, 6, 2, window=2)
    assert mask is not None
    assert [row.nonzero().flatten().tolist() for row in mask] == [
        [0, 1],
        [0, 1],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [2, 3, 4, 5],
    ]
    assert attention_mask(4, 2, 2, window=2, first=2) is None  # a step that kept just that much
    later = attention_mask(4, 4, 2, window=2, first=2)
    assert later is not None and torch.equal(later, attention_mask(0, 8, 2, window=2)[4:, 2:])  # type: ignore[index]


def test_padding_far_behind_its_row_still_sees_something() -> None:
    kept = torch.tensor([[True] * 2 + [False] * 8, [True] * 10])
    mask = attention_mask(0, 10, 2, kept, window=2)
    assert mask is not None and bool(mask.any(3).all())
    assert not mask[0, 0, :2, 2:].any() and torch.equal(mask[1, 0], attention_mask(0, 10, 2, window=2))  # type: ignore[arg-type]


def test_a_memory_with_a_window_keeps_the_newest() -> None:
    kept = KeyValues(most=3)
    rows = torch.arange(24.0).reshape(1, 1, 12, 2)
    for begin in range(0, 12, 2):
        keys, values = kept.extend(rows[:, :, begin : begin + 2], -rows[:, :, begin : begin + 2])
        assert torch.equal(keys, rows[:, :, max(begin - 3, 0) : begin + 2]) and torch.equal(values, -keys)
    assert kept.length == 3
    other = kept.fork()
    other.extend(rows[:, :, :2], rows[:, :, :2])
    assert torch.equal(kept.extend(rows[:, :, :1], rows[:, :, :1])[0], torch.cat((rows[:, :, 9:], rows[:, :, :1]), dim=2))
