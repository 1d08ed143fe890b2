"""Everything that a GPU is to run, run on tensors that have a GPU's device and no content: an operation across devices is an error.

No GPU is needed. What such tensors cannot do (draws, values read back, the inverse STFT) is left to `tests/test_on_devices.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from agent.thinker import Thinker
from decoders import flow_checkpoint, hift_checkpoint, voice_lm_checkpoint
from decoders.flow_steps import SharedFlow
from decoders.qwen import Qwen
from decoders.qwen_steps import SharedSteps
from encoders.input_projector import InputProjector, InputProjectorConfig
from encoders.sensevoice_checkpoint import tiny as tiny_sensevoice

GPU = torch.device("meta")  # as good as any that is not the CPU: what counts is that the two never meet


def moved(value: Any) -> Any:
    """A tensor without content, as if on a GPU, of the same shape and type."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device=GPU)
    if isinstance(value, list):
        return [moved(item) for item in value]
    return {key: moved(item) for key, item in value.items()} if isinstance(value, dict) else value


def move(module: nn.Module) -> None:
    """All that a module holds, to the GPU."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                part._parameters[name] = nn.Parameter(moved(parameter), requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            part._buffers[name] = moved(buffer)


def move_attributes(thing: Any) -> None:
    """The tensors that a plain object holds, to the GPU."""
    for name, value in list(vars(thing).items()):
        setattr(thing, name, moved(value))


@pytest.fixture
def gpu() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)  # tables that are moved to the GPU before use


def test_these_tensors_do_find_a_mismatch(gpu: FakeTensorMode) -> None:
    with gpu, pytest.raises(Exception, match="devices"):
        torch.zeros(2, device=GPU) + torch.zeros(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_language_model(gpu: FakeTensorMode, dtype: torch.dtype) -> None:
    thinker = Thinker.tiny()
    model = thinker._qwen.model.to(dtype)
    with gpu, torch.inference_mode():
        move(model)
        qwen = Qwen(model, 512)
        steps = SharedSteps(qwen, 3, qwen.logits, graphs=False)
        prompt = steps.open()
        qwen.forward(torch.zeros(7, 64, dtype=dtype, device=GPU), prompt, 0)
        qwen.forward(torch.zeros(1, 64, dtype=dtype, device=GPU), prompt, 7)
        hidden, scores = steps.run(torch.zeros(2, 64, dtype=dtype, device=GPU), [0, 1], [8, 300])
        assert hidden.device == scores.device == GPU and scores.dtype == torch.float32


def test_voice_language_model(gpu: FakeTensorMode) -> None:
    lm = voice_lm_checkpoint.tiny(0)
    with gpu, torch.inference_mode():
        move(lm.modules)
        lm.qwen = Qwen(lm.modules.llm.model, 512)
        lm.share(2, graphs=False)
        state = lm._fresh(torch.zeros(12, 64, device=GPU), (), None, 0, lm_sampling())
        state.text_positions = 12
        assert lm.due(state) and lm._read_together([state]).device == GPU
        lm._wrote(state, 5, [])
        assert lm._read_together([state]).device == GPU


def lm_sampling() -> Any:
    from decoders.ras import USUAL

    return USUAL


class Times:
    """The solver's times, whose values a tensor without content could not give."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __getitem__(self, index: slice) -> Tensor:
        return torch.zeros(self.steps)

    def diff(self) -> Any:
        values = torch.zeros(self.steps)
        values.tolist = lambda: [1.0 / self.steps] * self.steps  # type: ignore[method-assign]
        return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flow(gpu: FakeTensorMode, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = flow_checkpoint.tiny(0, dtype=dtype)
    shared = SharedFlow(flow, 2, 100)
    with gpu, torch.inference_mode():
        move(flow)
        move_attributes(shared)
        move_attributes(shared.slots)
        shared.device = GPU
        plan = shared._plan(2, 100)
        assert plan.graph is None
        frames = shared._forward(plan, 100)
        assert frames.device == GPU and frames.dtype == torch.float32
        monkeypatch.setattr("decoders.flow.moments", Times)
        mean = flow.encode(
            torch.zeros(1, 25, dtype=torch.int64, device=GPU), torch.zeros(1, 3, dtype=torch.int64, device=GPU), chunk=25
        )
        given = flow.conditions(mean, flow.speakers(torch.zeros(1, 192, device=GPU)), torch.zeros_like(mean))
        assert flow.decoder(given, 2, 0).device == GPU


def test_vocoder_up_to_its_inverse_stft(gpu: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    vocoder = hift_checkpoint.tiny(0)
    monkeypatch.setattr("decoders.hift.waveform", lambda x, n_fft, hop, peak: x.float().new_zeros((x.shape[2] - 1) * hop))
    monkeypatch.setattr(vocoder.m_source, "draw", lambda frames, generator, device: torch.zeros(frames * 480, 9, device=device))
    with gpu, torch.inference_mode():
        move(vocoder)
        state = vocoder.open(None)
        for frames in (24, 50, 7):
            assert vocoder.step(state, torch.zeros(80, frames, device=GPU), frames == 7).device == GPU


def test_ears_and_input_projector(gpu: FakeTensorMode) -> None:
    network = tiny_sensevoice().network
    projector = InputProjector(InputProjectorConfig(encoder_dim=32, llm_dim=64, ffn_dim=32))
    with gpu, torch.inference_mode():
        move(network)
        move(projector)
        states = network(torch.zeros(1, 30, 560, device=GPU))
        assert network.ctc(states).device == GPU
        assert projector(states)[0].device == GPU
        assert projector(states, torch.zeros(1, dtype=torch.int64))[0].device == GPU
