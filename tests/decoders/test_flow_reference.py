"""The flow against tensors of CosyVoice's own, made at a small size with weights that both sides rebuild from their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from decoders.flow import Flow, fixed_noise, moments
from decoders.flow_streaming import attention_mask
from decoders.flow_training import direction_loss
from tests.decoders.device_checks import apart, reference_flow
from tests.reference_weights import load_reference

REFERENCE = Path(__file__).parent / "reference" / "flow.safetensors"
KEPT = 4
"""Every so many channels of the encoder's 512 are kept in the file."""


@pytest.fixture(scope="module")
def reference() -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_reference(REFERENCE)


@pytest.fixture(scope="module")
def data(reference: tuple[dict[str, Tensor], dict[str, Any]]) -> dict[str, Tensor]:
    return reference[0]


@pytest.fixture(scope="module")
def flow(reference: tuple[dict[str, Tensor], dict[str, Any]]) -> Flow:
    return reference_flow(reference[1], "cpu")


def all_codes(data: dict[str, Tensor]) -> Tensor:
    return torch.cat((data["inputs/prompt_token"], data["inputs/token"]), dim=1)


def test_noise_and_times_are_theirs(data: dict[str, Tensor]) -> None:
    noise = fixed_noise(80, 15_000, 0)
    assert torch.equal(noise[:256].T, data["rand_noise_seed0_first256"][0])
    assert torch.allclose(moments(10), data["t_span"], atol=1e-7, rtol=0)


@torch.inference_mode()
def test_encoder_with_full_attention(flow: Flow, data: dict[str, Tensor]) -> None:
    embedded = flow.input_embedding(all_codes(data))
    assert apart(flow.encoder(embedded)[..., ::KEPT], data["outputs/encoder_full"]) < 1e-5
    assert apart(flow.encode(all_codes(data)), data["outputs/mu_full"]) < 1e-5


@torch.inference_mode()
def test_encoder_in_chunks_with_its_taps(flow: Flow, data: dict[str, Tensor]) -> None:
    taps: dict[str, Tensor] = {}
    places = {
        "pre_lookahead": flow.encoder.pre_lookahead_layer,
        "encoders.0": flow.encoder.encoders[0],
        "up_layer": flow.encoder.up_layer,
        "up_encoders.0": flow.encoder.up_encoders[0],
    }
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: taps.__setitem__(name, output))
        for name, module in places.items()
    ]
    try:
        output = flow.encoder(flow.input_embedding(all_codes(data)), chunk=25)
    finally:
        for hook in hooks:
            hook.remove()
    assert apart(output[..., ::KEPT], data["outputs/encoder_chunk"]) < 1e-5
    assert apart(flow.encoder_proj(output), data["outputs/mu_chunk"]) < 1e-5
    for name in ("pre_lookahead", "encoders.0", "up_encoders.0"):
        assert apart(taps[name][..., ::KEPT], data[f"outputs/encoder_chunk_taps/{name}"]) < 1e-5
    assert apart(taps["up_layer"][..., ::KEPT].transpose(1, 2), data["outputs/encoder_chunk_taps/up_layer"]) < 1e-5


@torch.inference_mode()
def test_encoder_that_looks_ahead(flow: Flow, data: dict[str, Tensor]) -> None:
    embedded = flow.input_embedding(all_codes(data))
    output = flow.encoder(embedded[:, :-3], embedded[:, -3:], chunk=25)
    assert apart(output[..., ::KEPT], data["outputs/encoder_chunk_context"]) < 1e-5


def estimate(flow: Flow, data: dict[str, Tensor], mask: Tensor | None) -> Tensor:
    """Their channels-first inputs through the estimator, channels first again."""
    x, mu, cond = (data[f"estimator_inputs/{name}"].transpose(1, 2) for name in ("x", "mu", "cond"))
    given = flow.conditions(mu, data["estimator_inputs/spks"], cond)
    estimator = flow.decoder.estimator
    return estimator(torch.cat((x, given), dim=2), estimator.shifts(data["estimator_inputs/t"]), mask).transpose(1, 2)


@torch.inference_mode()
def test_estimator(flow: Flow, data: dict[str, Tensor]) -> None:
    time = flow.decoder.estimator.time_mlp(data["estimator_inputs/t"])
    assert apart(time, data["outputs/estimator_time_emb"]) < 1e-5
    assert apart(estimate(flow, data, None), data["outputs/estimator_full"]) < 1e-5
    assert apart(estimate(flow, data, attention_mask(0, 120, 50)), data["outputs/estimator_chunk"]) < 1e-5


@torch.inference_mode()
def test_estimator_of_padded_rows(flow: Flow, data: dict[str, Tensor]) -> None:
    kept = data["estimator_pad_mask"]  # [B, 1, T]
    output = estimate(flow, data, attention_mask(0, 120, None, kept[:, 0].bool())) * kept
    assert apart(output, data["outputs/estimator_full_padmask"]) < 1e-5


def test_mel_offline(flow: Flow, data: dict[str, Tensor]) -> None:
    state = flow.open(data["inputs/prompt_token"][0], data["inputs/prompt_feat"][0], data["inputs/embedding"][0])
    mel = flow.step(state, data["inputs/token"][0], final=True, full_attention=True)
    assert apart(mel, data["outputs/mel_offline"][0]) < 1e-4


@pytest.mark.parametrize("cached", [True, False])
def test_mel_in_one_long_step(flow: Flow, data: dict[str, Tensor], cached: bool) -> None:
    state = flow.open(data["inputs/prompt_token"][0], data["inputs/prompt_feat"][0], data["inputs/embedding"][0], cached=cached)
    mel = flow.step(state, data["inputs/token"][0], final=True)
    assert apart(mel, data["outputs/mel_stream_finalize"][0]) < 1e-4


@pytest.mark.parametrize("cached", [True, False])
def test_mel_streamed_as_they_stream_it(flow: Flow, reference: tuple[dict[str, Tensor], dict[str, Any]], cached: bool) -> None:
    data, info = reference
    codes = data["inputs/token"][0]
    state = flow.open(data["inputs/prompt_token"][0], data["inputs/prompt_feat"][0], data["inputs/embedding"][0], cached=cached)
    given = 0
    for hop, (offset, length) in enumerate(info["outputs/stream_hops"]):
        upto = offset + length + 3
        mel = flow.step(state, codes[given:upto])
        given = upto
        assert apart(mel, data[f"outputs/stream_chunks/{hop}"][0]) < 1e-4
    other = state.fork()
    tail = flow.step(other, codes[given:], final=True, full_attention=True)
    assert apart(tail, data["outputs/stream_tail_offline_mask"][0]) < 1e-4
    tail = flow.step(state, codes[given:], final=True)
    assert apart(tail, data["outputs/mel_stream_finalize"][0][:, -tail.shape[1] :]) < 1e-4


@torch.inference_mode()
def test_loss_with_their_draws(flow: Flow, data: dict[str, Tensor]) -> None:
    draws = {name.removeprefix("cfm_loss/"): value for name, value in data.items() if name.startswith("cfm_loss/")}
    x1, mu, cond, z = (draws[name].transpose(1, 2) for name in ("x1", "mu", "cond", "z"))
    kept = draws["mask"][:, 0].bool()
    loss = direction_loss(flow, x1, kept, mu, draws["spks"], cond, z, draws["t"].flatten(), draws["cfg_keep"], chunk=None)
    assert abs(float(loss) / float(draws["loss"]) - 1.0) < 1e-5
