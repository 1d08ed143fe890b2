"""The projector's promises: a stream gives what one long step gives, the future changes nothing, and what is saved is what is loaded."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from duplex.errors import WeightsError
from encoders import mel, speech_projector
from encoders.speech_projector import SpeechProjector, SpeechProjectorConfig, collapse, level, load_whisper
from encoders.speech_projector_layers import Adapted
from encoders.word_lexicon import Lexicon
from encoders.word_ngrams import WordNgrams
from tests.encoders.babble import babble

SMALL = SpeechProjectorConfig(32, 2, 2, 3, 48, 3, before=2, left=2, rank=4)
CHUNK = SMALL.mel_frames


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    found = SpeechProjector(SMALL)
    for layer in found.sounds:
        layer.near.weight.data.normal_(0, 0.4)  # they begin without any say
    for name, value in found.named_parameters():
        if name.endswith(".up"):  # and so do these
            value.data.normal_(0, 0.1)
    return found.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def sound():
    frames = torch.from_numpy(mel.log_mel(babble(CHUNK * 7 / 100, 3)))
    return torch.stack([frames, frames.flip(0) - 1.0])


def whisper_tensors(net):
    torch.manual_seed(5)
    names = {"attn_norm": "attn_ln", "query": "attn.query", "key": "attn.key", "value": "attn.value", "out": "attn.out"}
    names |= {"mlp_norm": "mlp_ln", "mlp_in": "mlp.0", "mlp_out": "mlp.2"}
    found = {}
    for name, value in net.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "encoder" and not name.endswith((".up", ".down")):
            index, layer, kind = rest.split(".")
            found[f"encoder.blocks.{index}.{names[layer]}.{kind}"] = torch.randn_like(value)
        elif part == "encoder_norm":
            found[f"encoder.ln_post.{rest}"] = 1 + 0.1 * torch.randn_like(value)
        elif part in ("conv1", "conv2"):
            found[f"encoder.{name}"] = torch.randn_like(value)
    return found


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1, 1), (3, 4), (1, 5, 1), (2, 2, 3)])
def test_a_stream_gives_what_one_long_step_gives(net, sound, sizes):
    whole, _ = net(sound, net.open(2))
    state, at, made = net.open(2), 0, []
    for count in sizes:
        phones, state = net(sound[:, at : at + count * CHUNK], state)
        at += count * CHUNK
        made.append(phones)
    assert torch.allclose(torch.cat(made, 1), whole, atol=1e-4)
    assert whole.shape == (2, 7 * SMALL.sounds, 49)


@pytest.mark.parametrize("settled", [0, 1, 2, 5, 7])
def test_a_step_may_leave_its_newest_chunks_open(net, sound, settled):
    _, state = net(sound[:, : 2 * CHUNK], net.open(2))
    tried, after = net(sound[:, : 7 * CHUNK].flip(1), state, settled)
    if settled:
        wanted, alike = net(sound[:, : 7 * CHUNK].flip(1)[:, : settled * CHUNK], state)
        assert torch.allclose(tried[:, : settled * SMALL.sounds], wanted, atol=1e-4)
    else:
        alike = state
    assert after.chunks == alike.chunks == 2 + settled
    one, other = (net(sound[:, : 3 * CHUNK], from_here)[0] for from_here in (after, alike))
    assert torch.allclose(one, other, atol=1e-4)


def test_the_future_changes_nothing_and_the_near_past_does(net, sound):
    before, _ = net(sound, net.open(2))
    later = sound.clone()
    later[:, 4 * CHUNK :] += 1.0
    after, _ = net(later, net.open(2))
    edge = 4 * SMALL.sounds
    assert torch.equal(before[:, :edge], after[:, :edge])
    assert not torch.allclose(before[:, edge:], after[:, edge:], atol=1e-3)


def test_a_stream_is_levelled_by_what_was_loudest_so_far(sound):
    whole, peak = level(sound, torch.full((2,), mel.QUIET), CHUNK)
    first, half = level(sound[:, : 3 * CHUNK], torch.full((2,), mel.QUIET), CHUNK)
    second, end = level(sound[:, 3 * CHUNK :], half[:, -1], CHUNK)
    assert torch.equal(torch.cat((first, second), 1), whole) and torch.equal(torch.cat((half, end[:, 1:]), 1), peak)
    assert torch.allclose(whole[0, -CHUNK:], torch.from_numpy(mel.level(sound[0].numpy()))[-CHUNK:], atol=1e-5)


def test_parts_of_chunks_are_refused(net, sound):
    with pytest.raises(ValueError, match="whole chunks of 32"):
        net(sound[:, :40], net.open(2))


def test_greedy_reading_joins_repeats():
    scores = torch.full((7, 4), -5.0)
    for sound, winner in enumerate([0, 2, 2, 0, 2, 1, 1]):
        scores[sound, winner] = 3.0
    assert collapse(scores) == [1, 1, 0] and collapse(scores[:1]) == []


def test_what_is_saved_is_what_is_loaded(tmp_path, net, sound):
    own = SpeechProjector(SMALL)
    whisper = whisper_tensors(own)
    load_whisper(own, whisper)
    own.half().float()  # as the file will have it
    lexicon = Lexicon(("", "", "one"), np.array([2]), ((3, 4),), np.zeros(1))
    file = tmp_path / "projector.safetensors"
    kept = speech_projector.save(file, own, lexicon, WordNgrams.count([[2]], 3))
    assert not any(name.startswith(("net.conv", "net.encoder.")) and not name.endswith((".up", ".down")) for name in kept)
    assert sum(name.endswith(".up") for name in kept) == 2 * 6
    from duplex.checkpoint import read_tensors

    again, words, ngrams = speech_projector.restore(file, read_tensors(file), whisper)
    assert again.config == SMALL and words.words == lexicon.words and words.phones == lexicon.phones and ngrams.words == 3
    with torch.inference_mode():
        assert torch.allclose(again(sound, again.open(2))[0], own(sound, own.open(2))[0], atol=2e-2)
    with pytest.raises(WeightsError, match="not the encoder"):
        speech_projector.restore(file, read_tensors(file), {})
    with pytest.raises(WeightsError, match="does not hold"):
        speech_projector.restore(file, {}, whisper)


def test_what_was_learnt_beside_whispers_layers_may_become_part_of_them(net, sound):
    folded = copy.deepcopy(net)
    plain = copy.deepcopy(net)
    for part in plain.encoder.modules():
        if isinstance(part, Adapted):
            part.up.data.zero_()
    folded.fold()
    folded.fold()
    before, after = net(sound, net.open(2))[0], folded(sound, net.open(2))[0]
    assert torch.allclose(before, after, atol=1e-4)
    assert not torch.allclose(before, plain(sound, net.open(2))[0], atol=1e-2)
    assert not any(name.endswith((".up", ".down")) for name in folded.state_dict())


def test_layers_may_be_left_as_published(sound):
    published = SpeechProjector(replace(SMALL, rank=0))
    assert not any(isinstance(part, Adapted) for part in published.modules())
    with pytest.raises(ValueError, match="rank at least 0"):
        replace(SMALL, rank=-1)
