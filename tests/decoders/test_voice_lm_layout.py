"""What the voice LM is taught, against CosyVoice's layouts and loss, and against what it decodes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from decoders.ras import GREEDY
from decoders.voice_lm import VoiceLM
from decoders.voice_lm_layout import (
    IGNORE,
    Layout,
    allows_bistream,
    arrange,
    bistream_layout,
    unistream_layout,
    voice_lm_loss,
)
from tests.decoders.reference_voice_lm import REFERENCE, reference_config, reference_lm

BUILD = {"unistream": unistream_layout, "bistream": bistream_layout}


@pytest.fixture(scope="module")
def lm() -> VoiceLM:
    return reference_lm()


def batch(lm: VoiceLM, mode: str) -> list[tuple[Layout, Tensor]]:
    tensors = REFERENCE[0]
    samples = []
    for row in range(2):
        n, m = int(tensors["train_layout/text_len"][row]), int(tensors["train_layout/speech_len"][row])
        codes = tensors["train_layout/speech"][row, :m].tolist()
        layout = BUILD[mode](n, codes, lm.config)
        samples.append((layout, arrange(lm, layout, lm.embed(tensors["train_layout/text"][row, :n]), codes)))
    return samples


@pytest.mark.parametrize("mode", BUILD)
def test_layout_and_loss_are_the_references(lm: VoiceLM, mode: str) -> None:
    tensors = REFERENCE[0]
    samples = batch(lm, mode)
    for row, (layout, rows) in enumerate(samples):
        length = int(tensors[f"train_layout/{mode}/lm_input_len"][row])
        assert layout.targets.tolist() == tensors[f"train_layout/{mode}/target"][row, :length].tolist()
        assert torch.equal(rows, tensors[f"train_layout/{mode}/lm_input"][row, :length])
    torch.testing.assert_close(voice_lm_loss(lm, samples), tensors[f"train_layout/{mode}/loss"], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (4, 13), (5, 16), (7, 30), (10, 31), (11, 80)])
def test_every_row_is_used_once_and_every_code_taught_once(n: int, m: int) -> None:
    config = reference_config()
    codes = list(range(100, 100 + m))
    for build in BUILD.values():
        layout = build(n, codes, config)
        assert sorted(layout.order.tolist()) == list(range(n + m + 2))
        taught = [target for target in layout.targets.tolist() if target not in (IGNORE, config.fill)]
        assert taught == [*codes, config.eos]


def test_too_few_codes_are_told() -> None:
    config = reference_config()
    assert allows_bistream(10, 31, config) and not allows_bistream(10, 30, config)
    with pytest.raises(ValueError, match="29 codes are too few for 10 text positions"):
        bistream_layout(10, list(range(29)), config)
    with pytest.raises(ValueError, match="needs text and codes"):
        unistream_layout(0, [1], config)


def test_decoding_follows_the_layout_that_was_taught() -> None:
    """Greedy decoding, and the likeliest outputs over the layout of what was decoded, say the same at each position."""
    lm = reference_lm(eos_bias=12.0)
    text = REFERENCE[0]["inputs/text"][0]
    state = lm.open(sampling=GREEDY)
    codes = [code for piece in (lm.push(state, lm.embed(text)), lm.finish(state)) for step in piece for code in step]
    layout = bistream_layout(len(text), codes, lm.config)
    scores = lm.modules.llm_decoder(lm.qwen.states(arrange(lm, layout, lm.embed(text), codes)[None]))[0]
    taught = (layout.targets != IGNORE) & (layout.targets != lm.config.fill)
    inside = torch.arange(len(taught)) < layout.order.tolist().index(1)
    scores[inside, lm.config.eos : lm.config.fill] = float("-inf")
    assert scores.argmax(-1)[taught].tolist() == layout.targets[taught].tolist()


def test_one_step_of_training_lowers_the_loss() -> None:
    lm = reference_lm()
    lm.modules.requires_grad_(True)
    before = voice_lm_loss(lm, batch(lm, "bistream"))
    before.backward()
    missing = [name for name, parameter in lm.modules.named_parameters() if parameter.grad is None and "embed_tokens" not in name]
    assert missing == []
    with torch.no_grad():
        for parameter in lm.modules.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad
    assert voice_lm_loss(lm, batch(lm, "bistream")) < before
