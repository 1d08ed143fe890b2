"""The bank is the one that the transformers library makes for the same settings."""

import numpy as np
import pytest
from transformers.audio_utils import mel_filter_bank

from duplex.mel_filters import hz_to_mel, mel_filters, mel_to_hz


@pytest.mark.parametrize(
    ("rate_hz", "fft_samples", "bands", "low_hz", "high_hz"),
    [
        (16_000, 400, 80, 0.0, 8000.0),
        (16_000, 400, 128, 0.0, 8000.0),
        (24_000, 1920, 80, 0.0, 8000.0),
        (22_050, 1024, 40, 300.0, 11_025.0),
    ],
)
def test_equals_the_librarys_bank(rate_hz, fft_samples, bands, low_hz, high_hz):
    library = mel_filter_bank(fft_samples // 2 + 1, bands, low_hz, high_hz, rate_hz, norm="slaney", mel_scale="slaney")
    ours = mel_filters(rate_hz, fft_samples, bands, low_hz, high_hz)
    assert ours.shape == (fft_samples // 2 + 1, bands) and ours.dtype == np.float32
    assert np.abs(ours - library).max() < 1e-8


def test_no_upper_edge_means_half_the_rate():
    assert np.array_equal(mel_filters(16_000, 400, 80), mel_filters(16_000, 400, 80, 0.0, 8000.0))


def test_the_scale_turns_back():
    for hz in (0.0, 20.0, 999.0, 1000.0, 1001.0, 7999.0):
        assert float(mel_to_hz(np.array(hz_to_mel(hz)))) == pytest.approx(hz, abs=1e-6)


def test_a_bank_is_made_once_and_cannot_be_changed():
    bank = mel_filters(16_000, 400, 80)
    assert mel_filters(16_000, 400, 80) is bank
    with pytest.raises(ValueError, match="read-only"):
        bank[0, 0] = 1.0


@pytest.mark.parametrize(
    "arguments", [(16_000, 400, 80, 0.0, 9000.0), (16_000, 400, 80, 500.0, 400.0), (16_000, 400, 0), (0, 400, 80)]
)
def test_impossible_settings_are_told(arguments):
    with pytest.raises(ValueError, match="mel filters"):
        mel_filters(*arguments)
