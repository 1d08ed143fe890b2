"""Shapes and keys of both forms, and that each can be the bridge exactly."""

from __future__ import annotations

import pytest
import torch

from decoders.output_projector import BridgeProjector, OutputProjector, ProjectorConfig
from decoders.voice_lm import VoiceLM
from decoders.voice_lm_checkpoint import random, tiny
from decoders.voice_lm_modules import VoiceLMConfig

SMALL = VoiceLMConfig(text_vocabulary=40, hidden_size=32, layers=1, heads=2, kv_heads=1, feed_forward=32, codes=27)
TOKENS = [3, 39, 0, 3]


@pytest.fixture(scope="module")
def lm() -> VoiceLM:
    return tiny(1, text_vocabulary=40, codes=27)


def draws(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def test_full_size_shapes_and_keys() -> None:
    with torch.device("meta"):
        projector = OutputProjector(ProjectorConfig())
    assert {name: tuple(value.shape) for name, value in projector.state_dict().items()} == {
        "linear.weight": (896, 7168),
        "linear.bias": (896,),
    }
    assert round(projector.linear.weight.numel() / 1e6, 1) == 6.4


def test_minmo_form_reads_the_embedding_and_then_the_hidden_state() -> None:
    projector = OutputProjector(ProjectorConfig(llm_width=12, width=5))
    embeddings, hidden = draws(7, 12), draws(7, 12).flip(0)
    weight, bias = projector.linear.weight, projector.linear.bias
    expected = embeddings @ weight[:, :12].T + hidden @ weight[:, 12:].T + bias
    torch.testing.assert_close(projector(None, embeddings, hidden), expected)


def test_bridge_keys_leave_the_table_out(lm: VoiceLM) -> None:
    projector = BridgeProjector.bridge(lm, 48)
    assert {name: tuple(value.shape) for name, value in projector.state_dict().items()} == {
        "hidden.weight": (64, 48),
        "hidden.bias": (64,),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untrained_bridge_is_the_voice_lms_embedding_bit_for_bit(dtype: torch.dtype) -> None:
    lm = random(SMALL, 0, dtype)
    own = lm.embed(TOKENS)
    projector = BridgeProjector.bridge(lm, 48)
    assert projector(TOKENS, None, draws(4, 48)).dtype == dtype
    assert torch.equal(projector(TOKENS, None, draws(4, 48)), own)
    assert torch.equal(projector(TOKENS, None, None), own)
    same = OutputProjector.bridge(lm.hidden_size).to(dtype)
    assert torch.equal(same(TOKENS, own, draws(4, 32)), own)


def test_training_moves_the_bridge_away(lm: VoiceLM) -> None:
    projector = BridgeProjector.bridge(lm, 48)
    hidden = draws(4, 48)
    projector(TOKENS, None, hidden).square().sum().backward()
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter -= 0.1 * parameter.grad
    assert not torch.equal(projector(TOKENS, None, hidden), lm.embed(TOKENS))


def test_what_cannot_be_projected_is_told(lm: VoiceLM) -> None:
    bridge, minmo = BridgeProjector.bridge(lm, 48), OutputProjector(ProjectorConfig(12, 5))
    with pytest.raises(ValueError, match="no tokens"):
        bridge(None, None, draws(4, 48))
    with pytest.raises(ValueError, match="4 tokens came with 3"):
        bridge(TOKENS, None, draws(3, 48))
    with pytest.raises(ValueError, match=r"hidden states are \[n, 48\]"):
        bridge(TOKENS, None, draws(4, 47))
    with pytest.raises(ValueError, match="text ids go from 0 to 39"):
        bridge([40], None, None)
    with pytest.raises(ValueError, match=r"LLM embeddings are \[n, 12\]"):
        minmo(None, draws(2, 11), draws(2, 12))
    with pytest.raises(ValueError, match="set width"):
        BridgeProjector(lm, ProjectorConfig(48, 63))
    with pytest.raises(ValueError, match="choose 1 or more"):
        ProjectorConfig(0, 5)
