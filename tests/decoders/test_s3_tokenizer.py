"""The speech tokenizer agrees with the reference number by number, padded or not, and joins its windows without a seam."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoders import s3_tokenizer_mel
from decoders.s3_tokenizer import S3Tokenizer, S3TokenizerConfig, inside, join_digits, split_digits
from decoders.s3_tokenizer_mel import code_count, log_mel, tokenize_windows
from duplex.checkpoint import fill, misfits
from tests.reference_weights import load_reference, read_keys, reference_state

HERE = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def reference():
    return load_reference(HERE / "s3tok_mini.safetensors")


@pytest.fixture(scope="module")
def model(reference):
    tensors, info = reference
    mini = S3Tokenizer(
        S3TokenizerConfig(
            bands=info["config/n_mels"],
            width=info["config/n_audio_state"],
            heads=info["config/n_audio_head"],
            layers=info["config/n_audio_layer"],
        )
    )
    state = reference_state({name: value.shape for name, value in mini.state_dict().items()}, info["weights_seed"])
    state |= {name.removeprefix("state/"): value for name, value in tensors.items() if name.startswith("state/")}
    fill(mini, state, "the reference", "the speech tokenizer")
    return mini


def test_keys_at_full_size_are_the_published_ones():
    with torch.device("meta"):
        full = S3Tokenizer()
    wanted = read_keys(HERE / "s3tokenizer_v2_full.txt")
    assert len(wanted) == 102
    assert misfits(wanted, {name: tuple(value.shape) for name, value in full.state_dict().items()}) == ""


def test_log_mel_equals_the_reference(reference):
    tensors, info = reference
    for row, samples in enumerate(info["wav_lens"]):
        ours = log_mel(tensors["wav"][row, :samples])
        assert ours.shape[1] == int(tensors["mel_len"][row]) == samples // 160
        assert (ours - tensors["mel"][row, :, : ours.shape[1]]).abs().max() < 5e-5


@torch.inference_mode()
def test_network_equals_the_reference_with_padding(model, reference):
    tensors, _ = reference
    lengths = tensors["mel_len"]
    hidden = model.encoder(tensors["mel"], lengths)
    projected = model.quantizer._codebook.project_down(hidden)
    codes = model(tensors["mel"], lengths)
    for row, count in enumerate(tensors["code_len"].tolist()):
        assert count == code_count(int(lengths[row]))
        for ours, name in ((hidden, "hidden"), (projected, "project_down")):
            theirs = tensors[name][row, :count]
            assert (ours[row, :count] - theirs).abs().max() / theirs.abs().max() < 1e-5, name
        assert codes[row, :count].tolist() == tensors["code"][row, :count].tolist()


def test_sound_to_codes_equals_the_reference(model, reference):
    tensors, info = reference
    for row, samples in enumerate(info["wav_lens"]):
        ours = model.tokenize(tensors["wav"][row, :samples].numpy())
        assert ours.dtype == torch.int64
        assert ours.tolist() == tensors["code"][row, : int(tensors["code_len"][row])].tolist()
        assert len(set(ours.tolist())) > 10


@torch.inference_mode()
def test_what_stands_past_a_length_changes_nothing(model, reference):
    mel = reference[0]["mel"]
    lengths = torch.tensor([201, 96])
    loud = torch.where(inside(lengths, mel.shape[2])[:, None], mel, torch.tensor(7.0))
    quiet, noisy = model.encoder(mel, lengths), model.encoder(loud, lengths)
    for row, frames in enumerate(lengths.tolist()):
        count = code_count(frames)
        alone = model.encoder(mel[row : row + 1, :, :frames], None)[0]
        assert torch.equal(quiet[row, :count], noisy[row, :count])
        assert (alone - quiet[row, :count]).abs().max() < 1e-5


@given(st.lists(st.integers(0, 6560), max_size=30))
def test_digits_turn_back_into_codes(codes):
    digits = split_digits(torch.tensor(codes, dtype=torch.int64), 8)
    assert digits.shape == (len(codes), 8)
    assert join_digits(digits).tolist() == codes


def test_digits_are_least_significant_first(model):
    assert model.digits(torch.tensor([[5]])).tolist() == [[[2, 1, 0, 0, 0, 0, 0, 0]]]
    for wrong in (-1, 6561):
        with pytest.raises(ValueError, match="0 to 6560"):
            model.digits(torch.tensor([0, wrong]))


@torch.inference_mode()
def test_neighbouring_projections_are_neighbouring_digits(model):
    codebook = model.quantizer._codebook
    hidden = torch.randn(50, 128, generator=torch.Generator().manual_seed(0))
    z = codebook.project_down(hidden)
    assert torch.equal(codebook(hidden), (z.abs() > np.arctanh(0.5)).float() * z.sign() + 1)


@settings(max_examples=60)
@given(frames=st.integers(1, 9000))
def test_windows_join_without_a_seam(frames):
    """A pass that tells where it is: every window's codes carry the time that they stand for."""
    mel = torch.arange(frames, dtype=torch.float32)[None]
    seen = []

    def one_pass(window):
        seen.append(window.shape[1])
        return window[0, ::4].long() // 4

    assert tokenize_windows(mel, one_pass).tolist() == list(range(code_count(frames)))
    assert max(seen) <= s3_tokenizer_mel.WINDOW_FRAMES
    assert len(seen) == (1 if frames <= 3000 else -(-(frames - 400) // 2600))


def test_a_long_sound_is_cut_into_windows():
    tiny = S3Tokenizer.tiny()
    sound = (np.random.default_rng(0).standard_normal(16_000 * 40) * 0.1).astype(np.float32)
    codes = tiny.tokenize(sound)
    mel = log_mel(torch.from_numpy(sound))
    with torch.inference_mode():
        first, second = tiny(mel[None, :, :3000])[0], tiny(mel[None, :, 2600:])[0]
    assert codes.tolist() == first[:700].tolist() + second[50:].tolist()


def test_tiny_is_reproducible_leaves_the_seed_alone_and_varies_with_the_sound():
    sound = (np.random.default_rng(0).standard_normal(16_000) * 0.1).astype(np.float32)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = S3Tokenizer.tiny(1), S3Tokenizer.tiny(1), S3Tokenizer.tiny(2)
    assert torch.equal(torch.rand(1), expected)
    codes = one.tokenize(sound)
    assert len(codes) == 25 and len(set(codes.tolist())) > 5
    assert torch.equal(codes, same.tokenize(sound)) and not torch.equal(codes, other.tokenize(sound))


@pytest.mark.parametrize("sound", [np.zeros(200, np.float32), np.zeros((2, 16_000), np.float32)])
def test_what_is_no_sound_is_told(sound):
    with pytest.raises(ValueError, match="mono sound of more than 200 samples"):
        S3Tokenizer.tiny().tokenize(sound)


@pytest.mark.parametrize("wrong", [{"width": 130, "heads": 20}, {"memory_taps": 30}, {"layers": 0}])
def test_impossible_settings_are_told(wrong):
    with pytest.raises(ValueError, match="speech tokenizer"):
        S3TokenizerConfig(**wrong)
