"""Teaching the projector: it learns, it stops by the clock, and it goes on where it was stopped."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from duplex.errors import WeightsError
from encoders.speech_augment import AugmentConfig, SoundBank
from encoders.speech_batches import Batches, Spoken
from encoders.speech_projector import SpeechProjector, SpeechProjectorConfig
from encoders.speech_projector_recipe import ProjectorTrainingConfig
from encoders.speech_projector_training import Training, ctc_per_label, distance
from tests.encoders.test_speech_projector import whisper_tensors

SMALL = SpeechProjectorConfig(32, 2, 1, 1, 48, 3, left=2, phones=4, rank=4)
TONES = (300, 700, 1500, 3000)


@pytest.fixture(scope="module")
def whisper():
    torch.manual_seed(2)
    found = whisper_tensors(SpeechProjector(SMALL))
    return {name: value * (1.0 if "ln_post" in name else 0.3) for name, value in found.items()}


@pytest.fixture(scope="module")
def spoken():
    """Four tones are four phones; a text is two of them, said for 200 ms each."""
    time = np.arange(3200) / 16_000
    words = [np.sin(2 * np.pi * hz * time) * 12_000 for hz in TONES]
    texts = [(a, b) for a in range(4) for b in range(4) if a != b]
    sounds = [np.concatenate([words[a], np.zeros(1600), words[b]]).astype(np.int16) for a, b in texts]
    lengths = np.array([len(s) for s in sounds])
    ends = lengths.cumsum()
    bank = SoundBank(torch.from_numpy(np.concatenate(sounds)), torch.from_numpy(ends - lengths), torch.from_numpy(lengths))
    held = np.arange(len(texts)) % 6 == 0
    phones = [np.array(t) for t in texts]
    spoken = Spoken(bank, np.arange(len(texts)), ["tones"] * len(texts), held, lengths, phones)
    return Batches(spoken, np.random.default_rng(0))


def training(whisper, seconds=60.0, **settings):
    torch.manual_seed(0)
    mild = AugmentConfig(speed=1.05, throat=1.01, room_p=0, noise_p=0, line_p=0, clip_p=0, quietest_db=-3)
    config = ProjectorTrainingConfig(seconds, batch_s=16, rate=1.5e-3, warm_steps=5, augment=mild, **settings)
    return Training(whisper, SMALL, config, "cpu")


def test_it_learns_and_leaves_whispers_layers_alone(whisper, spoken):
    run = training(whisper, masked_p=0.0)
    lower = run.net.encoder[0].query.weight.clone()
    ours = run.net.sounds[0].query.weight.clone()
    first = [run.learn(spoken, 0.0)[0].item() for _ in range(5)]
    last = [run.learn(spoken, 0.1)[0].item() for _ in range(300)][-10:]
    assert np.mean(last) < 1.1 < 0.6 * np.mean(first)  # the better of two phones that are known only to differ is worth 1.24 nats
    assert torch.equal(run.net.encoder[0].query.weight, lower)
    assert not torch.equal(run.net.sounds[0].query.weight, ours)
    run.use_average()
    rows = [row for _ in range(4) for row in run.read(spoken, plain=True)]
    assert all(len(row.meant) == 2 and len(row.texts) == 1 for row in rows)
    assert np.allclose(np.exp(rows[0].odds).sum(1), 1.0, atol=1e-4)
    assert sum(distance(row.meant, row.phones()) for row in rows) < 0.5 * sum(len(row.meant) for row in rows)


def test_it_stops_by_the_clock_and_goes_on_where_it_was_stopped(tmp_path, whisper, spoken):
    told = []
    run = training(whisper, seconds=1.5)
    run.run(spoken, tmp_path / "run.pt", told.append)
    assert run.seconds >= 1.5 and told and told[-1].step == run.step and run.history
    again = training(whisper, seconds=run.seconds + 0.6)
    assert again.resume(tmp_path / "run.pt")
    assert again.step == run.step and again.seconds == run.seconds
    assert all(torch.equal(a, b) for a, b in zip(again.learnt, run.learnt, strict=True))
    again.run(spoken, tmp_path / "run.pt", told.append)
    assert again.step > run.step
    assert not training(whisper).resume(tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="does not fit"):
        training(whisper).resume(tmp_path / "bad.pt")


def test_a_step_that_went_wrong_is_no_step(whisper, spoken, monkeypatch):
    run = training(whisper)
    plain = run.loss
    monkeypatch.setattr(run, "loss", lambda s: (plain(s)[0] * float("nan"), 1.0))
    run.learn(spoken, 0.1)
    assert all(torch.isfinite(p).all() for p in run.learnt)


def test_distance_counts_edits():
    assert distance(list("kitten"), list("sitting")) == 3
    assert distance([], [1, 2]) == 2 == distance([1, 2], [])
    assert distance(["a", "b"], ["a", "b"]) == 0


def test_rows_without_labels_do_not_count():
    torch.manual_seed(0)
    odds = torch.randn(3, 12, 5).log_softmax(2)
    labels = [np.array([0, 3]), np.array([], np.int64), np.array([2])]
    lengths = torch.tensor([12, 12, 9])
    alone = [ctc_per_label(odds[[row]], lengths[[row]], [labels[row]]) for row in (0, 2)]
    assert torch.allclose(ctc_per_label(odds, lengths, labels), (2 * alone[0] + alone[1]) / 3)
    assert float(ctc_per_label(odds, lengths, [labels[1]] * 3)) == 0 == float(ctc_per_label(odds, lengths, []))


def test_what_was_heard_is_learnt_from_again(whisper, spoken, monkeypatch):
    run = training(whisper, again=3, memory_h=0.02, adapt_from=0.6)
    heard = []
    plain = run._hear
    monkeypatch.setattr(run, "_hear", lambda s, adapting: heard.append(plain(s, adapting)) or heard[-1])
    for _ in range(30):
        run.learn(spoken, 0.5)
    assert len(heard) in (10, 11)
    assert sum(one.sound_s for one in run._memory) < 0.02 * 3600 + 20
    heard.clear()
    for _ in range(6):
        run.learn(spoken, 0.6)  # what was heard with other layers is of no use any more
    assert len(heard) == 6


def test_most_of_what_is_learnt_last_is_given_back(tmp_path, whisper, spoken):
    run = training(whisper, adapt_from=0.5, kept=0.25)
    run.learn(spoken, 0.4)
    began = [one.clone() for one in run.average]
    for _ in range(3):
        run.learn(spoken, 0.6)
    run.save(tmp_path / "run.pt")
    again = training(whisper, adapt_from=0.5, kept=0.25)
    again.resume(tmp_path / "run.pt")
    for one in (run, again):
        one.use_average()
        for name, parameter, first, last in zip(one.names, one.learnt, began, one.average, strict=True):
            wanted = last if name.endswith(".down") else first + 0.25 * (last - first)
            assert torch.allclose(parameter, wanted, atol=1e-6)
        assert not all(torch.equal(a, b) for a, b in zip(began, one.average, strict=True))


def test_what_stands_beside_whispers_layers_learns_when_its_time_has_come(whisper, spoken):
    run = training(whisper, adapt_from=0.5)
    beside = [value for name, value in run.net.named_parameters() if name.endswith((".up", ".down"))]
    before = [value.clone() for value in beside]
    published = run.net.encoder[0].query.weight.clone()
    run.learn(spoken, 0.4)
    assert all(torch.equal(a, b) for a, b in zip(beside, before, strict=True))
    for _ in range(3):
        run.learn(spoken, 0.5)
    run.use_average()
    assert len(beside) == 12 and not any(torch.equal(a, b) for a, b in zip(beside, before, strict=True))
    assert torch.equal(run.net.encoder[0].query.weight, published)


def test_a_training_begins_with_an_earlier_one(whisper, spoken):
    before, run = training(whisper), training(whisper, seed=5)
    for _ in range(3):
        before.learn(spoken, 0.5)
    run.begin(before.net)
    assert all(torch.equal(a, b) for a, b in zip(run.average, run.learnt, strict=True))
    assert all(torch.equal(value, before.net.own_parameters()[name]) for name, value in run.net.own_parameters().items())
    for other in (replace(SMALL, ffn=40), replace(SMALL, rank=8)):
        with pytest.raises(WeightsError, match="other sizes"):
            run.begin(SpeechProjector(other))
    published = SpeechProjector(replace(SMALL, rank=0))
    run.begin(published)
    assert torch.equal(run.net.sounds[0].query.weight, published.sounds[0].query.weight)
