"""More voices for a profile that can clone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agent.build import build_parts
from agent.host import Host
from agent.parts import Parts
from agent.profiles import load_profile
from agent.speakers import read_speakers
from agent.voice_sample import VoiceSample, shipped_sample
from duplex.audio import Samples
from duplex.errors import ConfigError, InputError


def say(parts: Parts, speaker: Any) -> Samples:
    voice = parts.voice
    state = voice.open(0, speaker)
    return np.concatenate([c.samples for chunks in (voice.push(state, [5, 6, 7, 8, 9]), voice.finish(state)) for c in chunks])


@pytest.fixture(scope="module")
def other() -> VoiceSample:
    sample = shipped_sample()
    return VoiceSample(sample.samples[::-1].copy(), sample.rate_hz, sample.text)


def test_a_speaker_sounds_like_its_sample(other: VoiceSample) -> None:
    profile = load_profile("tiny")
    parts = build_parts(profile)
    speakers = read_speakers(profile, parts, {"joe": shipped_sample(), "other": other})
    own, joe, another = (say(parts, speaker) for speaker in (None, speakers["joe"], speakers["other"]))
    np.testing.assert_allclose(joe, own, atol=1e-5)
    assert len(another) != len(own) or float(np.abs(another - own).max()) > 0.01
    assert read_speakers(profile, parts, {}) == {}


def test_a_host_has_several_profiles_and_voices_for_those_that_clone(other: VoiceSample) -> None:
    tiny, plain = load_profile("tiny"), replace(load_profile("tiny", ["decoder=vits"]), name="plain")
    host = Host.load(plain, others=[tiny], samples={"other": other})
    assert list(host.loaded) == ["plain", "tiny"] and host.profile is plain and host.parts is host.loaded["plain"].parts
    assert (list(host.loaded["plain"].voices), list(host.loaded["tiny"].voices)) == ([], ["other"])
    assert host.loaded["plain"].parts is not host.loaded["tiny"].parts
    host.worker.close()


def test_what_cannot_be_a_voice_is_told(other: VoiceSample) -> None:
    with pytest.raises(ConfigError, match="edge cannot be cloned"):
        Host.load(load_profile("edge"), samples={"other": other})
    tiny = load_profile("tiny")
    silent = VoiceSample(np.zeros(96_000, np.float32), 24_000, "Nothing.")
    with pytest.raises(InputError, match="The voice quiet cannot be made: The voice sample is silent"):
        Host.load(tiny, samples={"quiet": silent})
