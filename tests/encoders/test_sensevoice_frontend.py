"""SenseVoice's features: the reference's numbers, a stream that equals the whole, and statistics read strictly."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duplex.errors import WeightsError
from encoders.sensevoice_frontend import FEATURES, Cmvn, FrontendState, features, feed, read_cmvn, stack, tail
from tests.encoders.sensevoice_folder import am_mvn
from tests.reference_weights import load_reference

TENSORS, INFO = load_reference(Path(__file__).parent / "reference" / "sensevoice_frontend.safetensors")
CMVN = Cmvn(*TENSORS["cmvn"].numpy())
PLAIN = Cmvn(np.zeros(FEATURES, np.float32), np.ones(FEATURES, np.float32))


def noise(n: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * 0.1).astype(np.float32)


ROUNDING = 3e-4  # of log power: two float32 FFTs, each up to 2.4e-4 from float64; see tests/duplex/test_fbank.py


@pytest.mark.parametrize("case", range(4))
def test_features_agree_with_the_reference(case):
    wav, lfr, feats = (TENSORS[f"cases/{case}/{name}"].numpy() for name in ("wav", "lfr", "feats"))
    stacked, found = features(wav, PLAIN), features(wav, CMVN)
    assert stacked.shape == lfr.shape and found.shape == feats[0].shape
    assert int(TENSORS[f"cases/{case}/lens"]) == len(found)
    assert np.abs(stacked - lfr).max() < ROUNDING and np.abs(stacked - lfr).mean() < 1e-5
    assert np.abs(found - feats[0]).max() < CMVN.scale.max() * ROUNDING
    assert np.abs(CMVN(lfr) - feats[0]).max() < 1e-6


def test_the_stream_agrees_with_the_reference_piece_by_piece():
    audio, step = TENSORS["cases/0/wav"].numpy(), INFO["online/step"]
    state, made = FrontendState(), []
    for at in range(0, len(audio), step):
        made.append(feed(state, audio[at : at + step], CMVN))
    made[-1] = np.concatenate((made[-1], tail(state, CMVN)))
    wanted = [TENSORS[f"online/chunks/{i}"][0].numpy() for i in range(len(made))]
    assert f"online/chunks/{len(made)}" not in TENSORS
    assert [len(chunk) for chunk in made] == [len(chunk) for chunk in wanted]
    assert np.abs(np.concatenate(made) - np.concatenate(wanted)).max() < CMVN.scale.max() * ROUNDING
    assert np.abs(np.concatenate(made) - features(audio, CMVN)).max() < 1e-6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2500), min_size=1, max_size=10))
def test_any_chunking_gives_the_features_of_the_whole(sizes):
    audio = noise(sum(sizes) + 400)
    state, at = FrontendState(), 400
    made = [feed(state, audio[:400], CMVN)]
    for size in sizes:
        made.append(feed(state, audio[at : at + size], CMVN))
        at += size
        assert len(state.frames) <= 6
        so_far = np.concatenate((*made, tail(state, CMVN)))
        assert np.array_equal(so_far, features(audio[:at], CMVN))
    assert state.made == sum(map(len, made))


def test_later_input_changes_no_earlier_feature():
    audio = noise(16_000)
    state = FrontendState()
    early = feed(state, audio[:8000], CMVN)
    owed = tail(state, CMVN)
    assert np.array_equal(owed, tail(state, CMVN))
    for seed in (1, 2):
        other = np.concatenate((audio[:8000], noise(8000, seed)))
        assert np.array_equal(features(other, CMVN)[: len(early)], early)
    complete_ms = [60 * k + 55 for k in range(len(early) + 1)]
    assert complete_ms[-2] <= 500 < complete_ms[-1]


def test_the_ends_are_repeated():
    frames = np.arange(8, dtype=np.float32)[:, None].repeat(80, axis=1)
    assert stack(frames)[:, ::80].tolist() == [[0, 0, 0, 0, 1, 2, 3], [3, 4, 5, 6, 7, 7, 7]]
    assert stack(frames[:0]).shape == features(noise(100), CMVN).shape == (0, FEATURES)
    assert features(noise(300), CMVN).shape == (1, FEATURES)


def test_statistics_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "am.mvn"
    path.write_text(am_mvn(CMVN))
    found = read_cmvn(path)
    assert np.array_equal(found.shift, CMVN.shift) and np.array_equal(found.scale, CMVN.scale)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text[: len(text) // 3], "AddShift and Rescale missing"),
        (lambda text: text[: -len(text) // 4], "Rescale missing"),
        (lambda text: text.replace("560", "80"), "560 finite numbers"),
        (lambda text: text.replace("[ -", "[ nan -", 1), "560 finite numbers"),
        (lambda text: text.replace("[ -", "[ x", 1), "could not convert"),
        (lambda text: text + text, "once"),
        (lambda text: "<Nnet>\n</Nnet>\n", "missing"),
        (lambda text: "é", "cannot be read"),
    ],
)
def test_damaged_statistics_are_refused_in_one_sentence(tmp_path, damage, told):
    path = tmp_path / "am.mvn"
    path.write_text(damage(am_mvn(CMVN)))
    with pytest.raises(WeightsError, match=told) as caught:
        read_cmvn(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(WeightsError):
        read_cmvn(tmp_path / "nowhere")
