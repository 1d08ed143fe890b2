"""More voices for a loaded profile that can clone them: each made of a sample once, for any conversation to choose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agent import weights
from agent.parts import Parts
from agent.profiles import Profile
from duplex.errors import ConfigError, InputError

if TYPE_CHECKING:
    from agent.voice_sample import VoiceSample


def can_clone(profile: Profile) -> bool:
    """Whether the profile's voice can be somebody else's."""
    return profile.decoder == "cosyvoice2"


def check_can_clone(profile: Profile) -> None:
    """Raises ConfigError, in one sentence, if it cannot."""
    if not can_clone(profile):
        raise ConfigError(f"The voice of the profile {profile.name} cannot be cloned; take one with decoder: cosyvoice2.")


def read_speakers(profile: Profile, parts: Parts, samples: Mapping[str, VoiceSample]) -> dict[str, Any]:
    """Name -> sample becomes name -> speaker, in the form that the loaded parts' voice takes.

    Raises ConfigError for a profile whose voice cannot be cloned, InputError for a sample that is no voice sample, WeightsError.
    """
    if not samples:
        return {}
    check_can_clone(profile)
    from agent.minmo import COSYVOICE, load_prompt, tiny_prompt
    from decoders.token_voice import TokenVoice

    assert isinstance(parts.voice, TokenVoice)
    folder = weights.locate(profile)[COSYVOICE] if profile.weights else None
    speakers = {}
    for name, sample in samples.items():
        try:
            speakers[name] = parts.voice.read(tiny_prompt(sample) if folder is None else load_prompt(folder, sample))
        except (InputError, ValueError) as error:
            raise InputError(f"The voice {name} cannot be made: {error}") from error
    return speakers
