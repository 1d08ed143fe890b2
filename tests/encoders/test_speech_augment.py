"""Training sound: laid where it belongs, spoilt within bounds, and the same mel as the ears have."""

import numpy as np
import pytest
import torch

from encoders import mel
from encoders.speech_augment import AugmentConfig, MelBank, SoundBank, lay, mask_patches, plan, resample_exact, spoil
from tests.encoders.babble import babble


@pytest.fixture(scope="module")
def bank():
    smooth = np.full(8, 0.3)  # what lies between two samples can be told
    sounds = [torch.from_numpy((np.convolve(babble(s, s), smooth, "same") * 20_000).astype(np.int16)) for s in (1, 2, 3)]
    lengths = torch.tensor([len(s) for s in sounds])
    return SoundBank(torch.cat(sounds), lengths.cumsum(0) - lengths, lengths)


def laid(bank, first, second, speed=1.25, seed=0):
    layout = plan(np.array(first), np.array(second), bank.lengths.numpy(), speed, np.random.default_rng(seed))
    return layout, lay(bank, layout)


def test_recordings_lie_where_the_plan_says_and_silence_elsewhere(bank):
    layout, sound = laid(bank, [0, 2], [1, -1], speed=1.0)
    assert sound.shape == (2, layout.samples) and layout.samples % 20_480 == 0
    lead, at2 = int(np.ceil(layout.lead[0])), int(np.ceil(layout.at2[0]))
    assert sound[0, : lead - 1].abs().max() == 0 == sound[0, lead + 16_000 : at2 - 1].abs().max()
    first = bank.sound[:16_000].float() / 32768
    assert torch.corrcoef(torch.stack([sound[0, lead : lead + 15_000], first[:15_000]]))[0, 1] > 0.8
    assert sound[1, int(layout.lead[1]) + 48_000 :].abs().max() == 0
    assert (layout.counted <= layout.samples).all() and layout.counted[0] >= at2 + 32_000


def test_speed_changes_length_and_pitch():
    tone = torch.sin(2 * np.pi * 500 * torch.arange(32_000) / 16_000)
    bank = SoundBank((tone * 20_000).short(), torch.tensor([0]), torch.tensor([32_000]))
    layout, sound = laid(bank, [0], [-1], speed=1.25, seed=3)
    spectrum = torch.fft.rfft(sound[0]).abs()
    found = float(spectrum.argmax()) * 16_000 / sound.shape[1]
    assert found == pytest.approx(500 * layout.speed[0], rel=0.02) and abs(layout.speed[0] - 1) > 0.01
    audible = (sound[0].abs() > 0.01).nonzero()
    assert int(audible[-1] - audible[0]) == pytest.approx(32_000 / layout.speed[0], rel=0.01)


def test_spoilt_sound_is_sound_and_different_each_time(bank):
    _, sound = laid(bank, [0, 1, 2] * 4, [-1] * 12)
    config = AugmentConfig(room_p=0.7, noise_p=0.7, line_p=0.5, clip_p=0.5)
    one, other = (spoil(sound, config, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert one.shape == sound.shape and torch.isfinite(one).all() and one.abs().max() <= 1.01
    assert not torch.allclose(one, other)
    assert torch.equal(one, spoil(sound, config, torch.Generator().manual_seed(1)))
    peaks = one.abs().amax(1)
    assert peaks.min() < 0.3 < peaks.max() and peaks.min() > 0.01


def test_telephone_lines_carry_no_deep_and_no_high_sound(bank):
    _, sound = laid(bank, [1, 2], [-1, -1])
    config = AugmentConfig(room_p=0, noise_p=0, line_p=1, clip_p=0, quietest_db=-1.0)
    spoilt = spoil(sound, config, torch.Generator().manual_seed(0))
    power = torch.fft.rfft(spoilt).abs().pow(2)
    hz = torch.linspace(0, 8000, power.shape[1])
    inside = power[:, (hz > 350) & (hz < 3300)].mean()
    assert power[:, hz > 3600].mean() < 1e-3 * inside > power[:, hz < 200].mean()


def test_the_mel_is_the_ears_mel():
    sound = babble(3, 4)
    ours = MelBank()(torch.from_numpy(sound)[None])[0]
    theirs = torch.from_numpy(mel.log_mel(sound))
    assert ours.shape == theirs.shape
    assert (ours - theirs)[:-2].abs().max() < 1e-2  # the stream ends in zeros, a batch in its reflection


def test_a_longer_throat_lowers_what_is_heard():
    tone = torch.sin(2 * np.pi * 2000 * torch.arange(16_000) / 16_000)[None]
    low, plain, high = (MelBank()(tone, torch.tensor([w])).mean(1).argmax() for w in (1.13, 1.0, 0.88))
    assert low < plain < high


def test_patches_hide_some_and_leave_most():
    frames = torch.randn(16, 300, 80)
    hidden = mask_patches(frames, torch.Generator().manual_seed(0))
    changed = (hidden != frames).float().mean((1, 2))
    assert 0 < changed.mean() < 0.5 and changed.max() < 0.7


def test_resampling_keeps_a_tone():
    tone = torch.sin(2 * np.pi * 440 * torch.arange(22_050) / 22_050)[None]
    made = resample_exact(tone, 22_050, 16_000)
    wanted = torch.sin(2 * np.pi * 440 * torch.arange(16_000) / 16_000)
    assert abs(made.shape[1] - 16_000) <= 640
    assert (made[0, 500:15_000] - wanted[500:15_000]).abs().max() < 0.02
