"""Teaching the projector: it learns, it stops by the clock, and it goes on where it was stopped."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from duplex.errors import WeightsError
from encoders.speech_augment import AugmentConfig, SoundBank
from encoders.speech_batches import Batches, Spoken, letter_shares
from encoders.speech_projector import SpeechProjector, SpeechProjectorConfig, TokenHead
from encoders.speech_projector_losses import choose, ctc_per_label
from encoders.speech_projector_recipe import ProjectorTrainingConfig
from encoders.speech_projector_training import Training, distance
from tests.encoders.test_speech_projector import whisper_tensors

SMALL = SpeechProjectorConfig(32, 2, 1, 1, 1, 48, 3, 24, 4, left=2)
TONES = (300, 700, 1500, 3000)


@pytest.fixture(scope="module")
def whisper():
    torch.manual_seed(2)
    found = whisper_tensors(SpeechProjector(SMALL))
    return {name: value * (1.0 if "ln_post" in name else 0.3) for name, value in found.items()}


@pytest.fixture(scope="module")
def spoken():
    """Four tones are four words; a text is two of them, said for 200 ms each."""
    time = np.arange(3200) / 16_000
    words = [np.sin(2 * np.pi * hz * time) * 12_000 for hz in TONES]
    texts = [(a, b) for a in range(4) for b in range(4) if a != b]
    sounds = [np.concatenate([words[a], np.zeros(1600), words[b]]).astype(np.int16) for a, b in texts]
    lengths = np.array([len(s) for s in sounds])
    ends = lengths.cumsum()
    bank = SoundBank(torch.from_numpy(np.concatenate(sounds)), torch.from_numpy(ends - lengths), torch.from_numpy(lengths))
    tokens = [np.array(t) for t in texts]
    held = np.arange(len(texts)) % 6 == 0
    shares = [(letter_shares([1, 1]), letter_shares([1, 1]))] * len(texts)
    spoken = Spoken(bank, np.arange(len(texts)), ["tones"] * len(texts), tokens, tokens, held, lengths, shares, tokens)
    return Batches(spoken, np.random.default_rng(0))


def training(whisper, seconds=60.0, **settings):
    torch.manual_seed(0)
    mild = AugmentConfig(speed=1.05, throat=1.01, room_p=0, noise_p=0, line_p=0, clip_p=0, quietest_db=-3)
    config = ProjectorTrainingConfig(seconds, batch_s=16, rate=1.5e-3, warm_steps=5, augment=mild, **settings)
    return Training(whisper, 0.02 * torch.randn(4, 24), SMALL, config, "cpu")


def test_it_learns_and_leaves_whispers_layers_alone(whisper, spoken):
    run = training(whisper, masked_p=0.0)
    lower = run.net.encoder[0].query.weight.clone()
    ours = run.net.sounds[0].query.weight.clone()
    first = [run.learn(spoken, 0.0).ctc.item() for _ in range(5)]
    last = [run.learn(spoken, 0.1).ctc.item() for _ in range(160)][-10:]
    assert np.mean(last) < 1.1 < 0.6 * np.mean(first)  # the better of two tokens that are known only to differ is worth 1.24 nats
    assert torch.equal(run.net.encoder[0].query.weight, lower)
    assert not torch.equal(run.net.sounds[0].query.weight, ours)
    run.use_average()
    meant, _ = run.read(spoken, plain=True)[0]
    assert len(meant) == 2


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
    plain = run.losses
    monkeypatch.setattr(run, "losses", lambda s: replace(plain(s), ctc=plain(s).ctc * float("nan")))
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


def test_a_few_drawn_tokens_stand_for_all_others():
    torch.manual_seed(0)
    pick, cpu = np.random.default_rng(0), torch.device("cpu")
    assert choose([np.array([1, 2])], 4, None, pick, cpu)[0] is None
    table = torch.randn(500, 24)
    head = TokenHead(0.02 * table, code=4)
    torch.nn.init.normal_(head.codes, 0.0, 0.3)
    vectors, targets = torch.randn(40, 28), [np.array([7, 400, 7]), np.array([3])]
    whole = head(vectors).logsumexp(1)
    found = []
    for _ in range(200):
        chosen, mapped, more = choose(targets, 500, 60, pick, cpu)
        assert [chosen[one].tolist() for one in mapped] == [[7, 400, 7], [3]] and len(chosen.unique()) == len(chosen)
        scores = head(vectors, chosen) + more
        assert torch.allclose(scores[:, 1 + mapped[0][0]], head(vectors)[:, 8]) and torch.allclose(
            scores[:, 0], head(vectors)[:, 0]
        )
        found.append(scores.exp().sum(1))
    off = torch.stack(found).detach().mean(0).log() - whole.detach()
    assert abs(float(off.mean())) < 0.03 and float(off.abs().max()) < 0.4


def test_without_all_tokens_it_learns_too(whisper, spoken):
    run = training(whisper, masked_p=0.0, negatives=1)
    losses = [run.learn(spoken, 0.1).ctc.item() for _ in range(180)]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])


def test_the_time_is_in_three_parts(whisper, spoken):
    run = training(whisper, masked_p=0.0, hearing=0.3, reading=0.3, guided=0.2, pieces_h=0.001)

    def learnt_at(share):
        before = {name: p.detach().clone() for name, p in run.net.named_parameters()}
        blank = run.head.blank.detach().clone()
        found = run.learn(spoken, share)
        parts = {name.partition(".")[0] for name, p in run.net.named_parameters() if not torch.equal(p, before[name])}
        return parts | ({"head"} if not torch.equal(run.head.blank, blank) else set()), found

    ears = {"encoder_norm", "to_sounds", "sounds", "phone_norm", "phone"}
    reader = {"told", "to_words", "words", "norm", "out", "head"}
    parts, found = learnt_at(0.1)
    assert parts == ears and not found.ctc and found.phones > 0
    run.learn(spoken, 0.29)
    low = run.optimizer.param_groups[0]["lr"]
    parts, found = learnt_at(0.31)
    assert parts == reader and found.ctc > 0 and found.guide > 0 and not found.phones
    assert run.optimizer.param_groups[0]["lr"] > low  # each part begins anew
    found = [learnt_at(0.7) for _ in range(4)]  # three of four from pieces; what hears does not learn any more
    of_sound = [one for parts, one in found if parts == reader | {"more"}]
    of_pieces = [one for parts, one in found if parts == reader]
    assert len(of_sound) == 1 and len(of_pieces) == 3
    assert of_sound[0].ctc > 0 and of_sound[0].phones > 0 and not of_sound[0].guide
    assert all(one.ctc > 0 and not one.phones for one in of_pieces)


def test_a_run_goes_on_in_the_part_where_it_was(tmp_path, whisper, spoken):
    run = training(whisper, masked_p=0.0, hearing=0.3, reading=0.3, pieces_h=0.001)
    run.learn(spoken, 0.1)
    run.learn(spoken, 0.4)
    run.save(tmp_path / "run.pt")
    again = training(whisper, hearing=0.3, reading=0.3, pieces_h=0.001)
    assert again.resume(tmp_path / "run.pt") and (again.stage, again.began) == ("reading", 1)
    assert again.learn(spoken, 0.41).ctc > 0


def test_a_training_begins_with_an_earlier_ones_tokens_wherever_they_are_now(whisper, spoken):
    before, run = training(whisper), training(whisper, seed=5)
    for _ in range(3):
        before.learn(spoken, 0.5)
    kept = {name: value.detach().clone() for name, value in before.head.named_parameters()}
    size = len(kept["codes"])
    rows = torch.arange(size).flip(0)
    rows[2] = -1  # a token that is new
    new = run.head.codes[2].clone(), run.head.bias[3].clone()
    run.begin(before.net, kept, rows)
    assert all(torch.equal(a, b) for a, b in zip(run.average, run.learnt, strict=True))
    assert all(torch.equal(value, before.net.own_parameters()[name]) for name, value in run.net.own_parameters().items())
    assert torch.equal(run.head.blank, kept["blank"]) and torch.equal(run.head.bias[0], kept["bias"][0])
    assert torch.equal(run.head.codes[0], kept["codes"][-1]) and torch.equal(run.head.bias[1], kept["bias"][-1])
    assert torch.equal(run.head.codes[2], new[0]) and torch.equal(run.head.bias[3], new[1])
    with pytest.raises(WeightsError, match="other sizes"):
        run.begin(SpeechProjector(replace(SMALL, ffn=40)), kept, rows)
