"""A sample becomes a voice whose parts fit together, or one sentence that says what is wrong with it; a kept voice comes back whole."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from decoders.campplus import CamPlus
from decoders.s3_tokenizer import S3Tokenizer
from decoders.voice_prompt import (
    VoicePrompt,
    cached_voice_prompt,
    load_voice_prompt,
    make_voice_prompt,
    save_voice_prompt,
    voice_key,
)
from decoders.voice_prompt_sample import VoiceSampleConfig, clipped_share, prepare_sample
from duplex.errors import InputError, OutputError

TOKENIZER, SPEAKER = S3Tokenizer.tiny(), CamPlus.tiny()


def speech(seconds, rate_hz=16_000, seed=0):
    """Noise with the rhythm of syllables, at about -20 dB."""
    count = round(seconds * rate_hz)
    rhythm = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * np.arange(count) / rate_hz)
    return (np.random.default_rng(seed).standard_normal(count) * rhythm * 0.1).astype(np.float32)


def make(samples, rate_hz=16_000, text="Hello there."):
    return make_voice_prompt(samples, rate_hz, text, TOKENIZER, SPEAKER)


def equal(one, other):
    parts = ((one.codes, other.codes), (one.mel, other.mel), (one.speaker, other.speaker))
    return one.text == other.text and all(torch.equal(a, b) for a, b in parts)


def test_parts_fit_together():
    prompt = make(speech(3.0), text="  Hello \n there. ")
    assert prompt.text == "Hello there."
    assert prompt.codes.shape == (75,) and prompt.mel.shape == (150, 80) and prompt.speaker.shape == (192,)
    assert len(set(prompt.codes.tolist())) > 5


@settings(max_examples=12, deadline=None)
@given(samples=st.integers(44_100, 80_000), rate_hz=st.sampled_from([16_000, 22_050, 44_100]))
def test_two_frames_per_code_at_any_length(samples, rate_hz):
    prompt = make(speech(samples / rate_hz, rate_hz), rate_hz)
    length_s = samples / rate_hz
    assert len(prompt.mel) == 2 * len(prompt.codes)
    assert abs(len(prompt.codes) - 25 * length_s) <= 1.5


def test_stereo_at_44100_is_mixed_down_and_resampled():
    mono = speech(2.0, 44_100)
    side = speech(2.0, 44_100, seed=1)
    stereo = np.stack((mono + side, mono - side), axis=1)
    assert equal(make(stereo, 44_100), make(((mono + side) + (mono - side)) / 2, 44_100))
    prompt = make(stereo, 44_100)
    assert len(prompt.codes) == 50


def test_a_tone_is_where_it_was_after_resampling():
    ours, direct = (prompt_of_tone(rate_hz).mel[10:90] for rate_hz in (44_100, 24_000))
    band = int(direct[20].argmax())
    assert (ours[:, band] - direct[:, band]).abs().max() < 0.01


def prompt_of_tone(rate_hz):
    time_s = np.arange(2 * rate_hz) / rate_hz
    return make((0.3 * np.sin(2 * np.pi * 1000 * time_s)).astype(np.float32), rate_hz)


def test_quiet_ends_are_cut_off():
    silence = np.zeros(32_000, np.float32)
    kept = prepare_sample(np.concatenate((silence, speech(2.0), silence)), 16_000)
    assert abs(len(kept) - 32_000 - 2 * 1600) <= 2 * 320
    hiss = (np.random.default_rng(1).standard_normal(32_000) * 1e-4).astype(np.float32)
    assert len(prepare_sample(np.concatenate((hiss, speech(2.0), hiss)), 16_000)) == len(kept)
    gap = np.concatenate((speech(1.0), silence, speech(1.0)))
    assert len(prepare_sample(gap, 16_000)) > 63_000  # a pause stays


def test_an_offset_is_no_sound():
    with pytest.raises(InputError, match="silent"):
        make(np.full(48_000, 0.2, np.float32))


BAD = {
    "silence": (np.zeros(48_000, np.float32), 16_000, r"is silent \(its loudest part has -120 dB\); give 1 to 30 s of one person"),
    "hiss": (speech(3.0) * 1e-3, 16_000, "is silent"),
    "0.2 s": (speech(0.2), 16_000, r"holds only 0\.2 s of sound, which is too short; give 1 to 30 s of one person"),
    "0.2 s in silence": (np.pad(speech(0.2), 16_000), 16_000, r"holds only 0\.4 s of sound, which is too short"),
    "10 minutes": (np.tile(speech(10.0), 60), 16_000, "holds 600 s of sound, which is too long; give 1 to 30 s"),
    "NaN": (np.where(np.arange(48_000) == 99, np.nan, speech(3.0)), 16_000, "no numbers"),
    "infinite": (np.where(np.arange(48_000) == 99, np.inf, speech(3.0)), 16_000, "no numbers"),
    "clipped": (np.clip(speech(3.0) * 20, -1, 1), 16_000, r"clipped \(\d+% of it\); record it again at a lower level"),
    "16-bit numbers": (speech(3.0) * 32_768, 16_000, "reach .* instead of 1"),
    "telephone": (speech(3.0, 8000), 8000, "has 8000 Hz; record it with 16000 Hz or more"),
    "empty": (np.zeros(0, np.float32), 16_000, "is empty"),
    "three axes": (np.zeros((2, 2, 2), np.float32), 16_000, "is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_is_told_in_one_sentence(name):
    samples, rate_hz, message = BAD[name]
    with pytest.raises(InputError, match=message) as caught:
        make(samples, rate_hz)
    assert re.fullmatch(r"[A-Z][^\n]*\.", str(caught.value)) and len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["", " \n", "word " * 100])
def test_a_text_that_is_not_spoken_is_told(text):
    with pytest.raises(InputError, match="words"):
        make(speech(2.0), text=text)


def test_a_loud_tone_is_not_clipped_and_a_clipped_one_is():
    tone = np.sin(2 * np.pi * 150 * np.arange(48_000) / 16_000)
    coarse = np.round(tone * 32_767).astype(np.int16).astype(np.float32) / 32_768
    assert clipped_share(coarse) < 0.005
    assert clipped_share(np.clip(coarse, -0.8, 0.8)) > 0.3


def test_a_kept_voice_comes_back(tmp_path):
    prompt = make(speech(2.0), text="你好 “hello”.")
    save_voice_prompt(prompt, tmp_path / "new" / "voice.safetensors", "key")
    assert equal(load_voice_prompt(tmp_path / "new" / "voice.safetensors", "key"), prompt)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["voice.safetensors"]


def test_a_kept_voice_is_read_strictly(tmp_path):
    path = tmp_path / "voice.safetensors"
    with pytest.raises(InputError, match="missing"):
        load_voice_prompt(path)
    save_voice_prompt(make(speech(2.0)), path, "key")
    with pytest.raises(InputError, match="another sample, text or weights"):
        load_voice_prompt(path, "other")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="damaged"):
        load_voice_prompt(path)
    path.write_bytes(whole)
    tensors = load_file(path)
    metadata = {"format": "duologue voice 1", "text": "", "key": ""}
    for changed, message in (
        ({**tensors, "mel": tensors["mel"][:-1].clone()}, "two mel frames per code"),
        ({**tensors, "codes": tensors["codes"] - 7000}, "codes from 0"),
        ({**tensors, "speaker": tensors["speaker"] * np.nan}, "finite"),
        ({**tensors, "mel": tensors["mel"].half()}, "float32"),
        ({"mel": tensors["mel"]}, "not a voice of this program"),
    ):
        save_file(changed, path, metadata)
        with pytest.raises(InputError, match=message):
            load_voice_prompt(path)
    save_file(tensors, path, {})
    with pytest.raises(InputError, match="not a voice of this program"):
        load_voice_prompt(path)


def test_a_voice_is_made_once_and_a_damaged_one_anew(tmp_path, caplog):
    prompt, made = make(speech(2.0)), []

    def again():
        made.append(1)
        return prompt

    for _ in range(3):
        assert equal(cached_voice_prompt(tmp_path, "0" * 32, again), prompt)
    assert len(made) == 1
    (tmp_path / f"{'0' * 32}.safetensors").write_bytes(b"nothing")
    assert equal(cached_voice_prompt(tmp_path, "0" * 32, again), prompt)
    assert len(made) == 2 and "damaged" in caplog.text
    (tmp_path / "file").write_text("in the way")
    assert equal(cached_voice_prompt(tmp_path / "file" / "voices", "1" * 32, again), prompt)
    assert "could not be kept" in caplog.text


def test_a_voice_that_cannot_be_kept_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="could not be kept"):
        save_voice_prompt(make(speech(2.0)), tmp_path / "file" / "voice.safetensors")


def test_the_key_changes_with_everything_that_matters():
    samples = speech(1.0)
    key = voice_key(samples, 16_000, "Hello there.", "weights")
    assert re.fullmatch("[0-9a-f]{32}", key)
    assert key == voice_key(samples.astype(np.float64), 16_000, " Hello  there. ", "weights")
    others = {
        voice_key(samples[:-1], 16_000, "Hello there.", "weights"),
        voice_key(samples.reshape(-1, 2), 16_000, "Hello there.", "weights"),
        voice_key(samples, 24_000, "Hello there.", "weights"),
        voice_key(samples, 16_000, "Hello where.", "weights"),
        voice_key(samples, 16_000, "Hello there.", "other weights"),
    }
    assert len(others | {key}) == 6


def test_parts_that_do_not_fit_make_no_voice():
    codes, mel, speaker = torch.zeros(5, dtype=torch.int64), torch.zeros(10, 80), torch.zeros(192)
    VoicePrompt("", codes, mel, speaker)
    for wrong in ((codes[:0], mel[:0], speaker), (codes, mel[:9], speaker), (codes.int(), mel, speaker), (codes, mel / 0, speaker)):
        with pytest.raises(ValueError, match="a voice prompt"):
            VoicePrompt("", *wrong)


@pytest.mark.parametrize(
    "wrong", [{"shortest_s": 0.1}, {"shortest_s": 31.0}, {"silence_db": 1.0}, {"most_clipped": 0.0}, {"margin_ms": -1.0}]
)
def test_impossible_settings_are_told(wrong):
    with pytest.raises(ValueError):
        VoiceSampleConfig(**wrong)
