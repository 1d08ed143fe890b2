"""A voice from a few seconds of sound: what the voice LM and the flow continue as if they had said it themselves.

    sample -> checked, mono, trimmed -> 16 kHz -> speech tokenizer -> codes    -> LM, flow
                                              \\-> speaker encoder  -> speaker  -> flow
                                     -> 24 kHz -> mel               -> mel      -> flow

Notable: codes and mel are cut to the same length, two frames per code exactly, as the flow demands. A voice is kept as one small file,
named after the sample, its text and the weights that read it, so that the tokenizer (half a gigabyte) is needed once per voice.

Legend: n samples, P codes (25 per second), 2 P mel frames (50 per second).
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from decoders.prompt_mel import PromptMelConfig, prompt_mel
from decoders.voice_prompt_sample import VoiceSampleConfig, prepare_sample
from duplex.audio import USER_RATE_HZ, Samples
from duplex.errors import DuologueError, InputError, OutputError
from duplex.resample import resample

FORMAT = "duologue voice 1"
FRAMES_PER_CODE = 2
FASTEST_TEXT_HZ = 40.0  # characters per second that nobody speaks

log = logging.getLogger(__name__)


class SpeechTokenizer(Protocol):
    """S3Tokenizer or OnnxS3Tokenizer."""

    def tokenize(self, samples: Samples) -> Tensor:
        """[n] at 16 kHz -> [P] codes."""
        ...


class SpeakerEncoder(Protocol):
    """CamPlus or OnnxSpeakerEncoder."""

    def embed(self, samples: Samples) -> Tensor:
        """[n] at 16 kHz -> [E] speaker embedding."""
        ...


@dataclass(frozen=True, eq=False)
class VoicePrompt:
    """A voice, ready for the LM and the flow. All on the CPU."""

    text: str
    """The words spoken in the sample."""
    codes: Tensor
    """[P] int64 speech codes."""
    mel: Tensor
    """[2 P, bands] float32, natural logarithms."""
    speaker: Tensor
    """[E] float32, not normalised."""

    def __post_init__(self) -> None:
        if self.codes.ndim != 1 or self.mel.ndim != 2 or self.speaker.ndim != 1 or not len(self.codes):
            shapes = ", ".join(str(tuple(part.shape)) for part in (self.codes, self.mel, self.speaker))
            raise ValueError(f"a voice prompt wants codes [P], mel [2 P, bands] and speaker [E], not {shapes}")
        if len(self.mel) != FRAMES_PER_CODE * len(self.codes):
            raise ValueError(f"a voice prompt wants two mel frames per code, not {len(self.mel)} for {len(self.codes)}")
        if self.codes.dtype != torch.int64 or self.mel.dtype != torch.float32 or self.speaker.dtype != torch.float32:
            raise ValueError("a voice prompt wants int64 codes, and float32 mel and speaker")
        if not (torch.isfinite(self.mel).all() and torch.isfinite(self.speaker).all() and int(self.codes.min()) >= 0):
            raise ValueError("a voice prompt must hold finite numbers, and codes from 0 on")


def make_voice_prompt(
    samples: NDArray[np.floating],
    rate_hz: int,
    text: str,
    tokenizer: SpeechTokenizer,
    speaker_encoder: SpeakerEncoder,
    sample_config: VoiceSampleConfig | None = None,
    mel_config: PromptMelConfig | None = None,
) -> VoicePrompt:
    """The voice in [n] or [n, channels] samples in [-1, 1] at `rate_hz`, in which `text` is spoken.

    Raises InputError, in one sentence: what `prepare_sample` finds wrong, or a text that is missing or cannot be what is spoken.
    """
    mel_config = mel_config or PromptMelConfig()
    speech = prepare_sample(samples, rate_hz, sample_config)
    text = " ".join(text.split())
    if not text:
        raise InputError("The words spoken in the voice sample are missing; give them, exactly as spoken.")
    if len(text) > FASTEST_TEXT_HZ * len(speech) / rate_hz:
        length_s = len(speech) / rate_hz
        raise InputError(f"Nobody speaks {len(text)} characters in {length_s:.1f} s; give just the words in the voice sample.")
    heard = resample(speech, rate_hz, USER_RATE_HZ)
    codes = tokenizer.tokenize(heard)  # [P']
    mel = prompt_mel(torch.from_numpy(resample(speech, rate_hz, mel_config.rate_hz)), mel_config)  # [t, bands]
    count = min(len(codes), len(mel) // FRAMES_PER_CODE)  # they end within a code of each other
    return VoicePrompt(text, codes[:count].clone(), mel[: FRAMES_PER_CODE * count].clone(), speaker_encoder.embed(heard))


def voice_key(samples: NDArray[np.floating], rate_hz: int, text: str, weights: str) -> str:
    """What a voice is named after: 32 hex digits of the sample, its rate, its text and `weights`, a hash of the networks that read it."""
    digest = hashlib.sha256(repr((FORMAT, rate_hz, samples.shape, " ".join(text.split()), weights)).encode())
    digest.update(np.ascontiguousarray(samples, np.float32).tobytes())
    return digest.hexdigest()[:32]


def save_voice_prompt(prompt: VoicePrompt, path: Path, key: str = "") -> None:
    """Write `prompt` to a .safetensors file, whole or not at all. Raises OutputError when it cannot be written."""
    tensors = {"codes": prompt.codes.to(torch.int32), "mel": prompt.mel.contiguous(), "speaker": prompt.speaker.contiguous()}
    data = save(tensors, {"format": FORMAT, "text": prompt.text, "key": key})
    part = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(part, path)
    except OSError as error:
        if part:
            Path(part).unlink(missing_ok=True)
        raise OutputError(
            f"The voice could not be kept in {path} ({error.strerror}); free some space or choose another folder."
        ) from error


def load_voice_prompt(path: Path, key: str | None = None) -> VoicePrompt:
    """The voice in `path`, strictly; with `key`, only if it was made for it.

    Raises InputError when the file is missing, damaged, holds anything else, or belongs to another sample or other weights.
    """
    if not path.is_file():
        raise InputError(f"The voice {path} is missing; make it again from its sample.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors has an exception of its own, and OSError
        raise InputError(f"The voice {path} is damaged ({error}); delete it and make it again from its sample.") from error
    if metadata.get("format") != FORMAT or tensors.keys() != {"codes", "mel", "speaker"}:
        raise InputError(f"{path} is not a voice of this program's; make one from a sample.")
    if key is not None and metadata.get("key") != key:
        raise InputError(f"The voice {path} was made from another sample, text or weights; make it again.")
    try:
        return VoicePrompt(metadata.get("text", ""), tensors["codes"].to(torch.int64), tensors["mel"], tensors["speaker"])
    except ValueError as error:
        raise InputError(f"The voice {path} is damaged ({error}); delete it and make it again from its sample.") from error


def cached_voice_prompt(folder: Path, key: str, make: Callable[[], VoicePrompt]) -> VoicePrompt:
    """The voice that `folder` keeps under `key`, or what `make` gives, which is then kept there.

    A damaged file is made anew, and a folder that cannot be written is told in the log: the voice is there all the same.
    """
    path = folder / f"{key}.safetensors"
    if path.is_file():
        try:
            return load_voice_prompt(path, key)
        except InputError as error:
            log.warning("%s", error)
    prompt = make()
    try:
        save_voice_prompt(prompt, path, key)
    except DuologueError as error:
        log.warning("%s", error)
    return prompt
