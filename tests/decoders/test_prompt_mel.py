"""The prompt's mel is the reference's, and as long as two frames per code need it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from decoders.prompt_mel import PromptMelConfig, prompt_mel
from tests.reference_weights import load_reference

HERE = Path(__file__).parent / "reference"


def test_equals_the_reference():
    tensors, info = load_reference(HERE / "mel24k.safetensors")
    assert (info["mel_args/n_fft"], info["mel_args/hop"], info["mel_args/fmax"]) == (1920, 480, 8000)
    ours = prompt_mel(tensors["wav24k"][0])
    theirs = tensors["mel"][0].T
    assert ours.shape == theirs.shape == (100, 80)
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("samples", [721, 960, 24_000, 24_479, 24_480])
def test_one_frame_per_whole_hop(samples):
    sound = torch.randn(samples, generator=torch.Generator().manual_seed(0)) * 0.1
    assert prompt_mel(sound).shape == (samples // 480, 80)


def test_silence_is_the_floor():
    assert torch.allclose(prompt_mel(torch.zeros(4800)), torch.tensor(1e-5).log(), atol=1.0)


def test_a_tone_lies_in_its_band():
    time_s = np.arange(24_000) / 24_000
    low, high = (
        prompt_mel(torch.from_numpy(np.sin(2 * np.pi * hz * time_s).astype(np.float32)))[20].argmax() for hz in (300, 3000)
    )
    assert low < high < 80


@pytest.mark.parametrize("sound", [torch.zeros(720), torch.zeros(2, 4800)])
def test_what_cannot_be_transformed_is_told(sound):
    with pytest.raises(ValueError, match="mono sound of more than 720 samples"):
        prompt_mel(sound)


@pytest.mark.parametrize("wrong", [{"hop_samples": 481}, {"hop_samples": 0}, {"high_hz": 13_000.0}, {"floor": 0.0}, {"bands": 0}])
def test_impossible_settings_are_told(wrong):
    with pytest.raises(ValueError):
        PromptMelConfig(**wrong)
