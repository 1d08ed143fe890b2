"""Which parts a profile is made of, and how each is loaded: from its weights, tiny, or at full size with random weights.

Two families of ears (Whisper, SenseVoice) and two of voices (VITS, CosyVoice2) go with any LLM of the Qwen2 family. What belongs to one
family is imported only when a profile asks for it, so a small profile starts fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from agent.chat import Chat, ChatConfig
from agent.doubles import LevelVad
from agent.parts import Parts
from agent.profiles import Profile
from agent.speakers import check_can_clone
from agent.thinker import Thinker, ThinkerConfig
from decoders.bridge_voice import BridgeConfig, BridgeVoice
from decoders.voice import Voice
from duplex.errors import ConfigError
from duplex.predictor_choice import PredictorConfig, choose_predictor
from duplex.predictor_sentence_end import SentenceEnd
from encoders import sound_heads
from encoders.ears import Ears
from encoders.whisper_ears import EarsConfig, WhisperEars

if TYPE_CHECKING:
    from agent.voice_sample import VoiceSample


@dataclass(frozen=True)
class RuntimeConfig:
    """How models share the machine."""

    model_threads: int = 2
    """Threads of the model worker: jobs that may run side by side."""
    threads_per_job: int = 1
    """OpenMP threads inside one job; more threads than free cores make small layers many times slower."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models with float weights run; auto takes the GPU where there is one. Int8 models stay on the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the LLM and the voice-token LM where their weights are floats; auto is bfloat16."""

    def __post_init__(self) -> None:
        if self.model_threads < 1 or self.threads_per_job < 1:
            raise ConfigError("runtime.model_threads and runtime.threads_per_job must be at least 1.")

    def torch_device(self) -> torch.device:
        """The device. Raises ConfigError when a GPU is asked for and there is none."""
        found = torch.cuda.is_available()
        if self.device == "cuda" and not found:
            raise ConfigError(
                "runtime.device is cuda, but PyTorch finds no GPU here; set it to cpu, or install PyTorch's CUDA build."
            )
        return torch.device("cuda" if self.device == "cuda" or (self.device == "auto" and found) else "cpu")

    def torch_dtype(self) -> torch.dtype:
        """The type."""
        return torch.float32 if self.dtype == "float32" else torch.bfloat16


@dataclass(frozen=True)
class ThinkerSection:
    """The thinker's settings in a profile."""

    context: ThinkerConfig = field(default_factory=ThinkerConfig)
    """The LLM's context."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """How it takes part in a conversation."""


class Loader:
    """One profile's parts. Settings are read at once, so that a wrong one is told before anything is loaded."""

    def __init__(self, profile: Profile, voice: VoiceSample | None = None) -> None:
        """voice: whose voice the agent has. Raises ConfigError for a wrong setting."""
        self.profile, self.sample = profile, voice
        self.runtime = profile.section("runtime", RuntimeConfig)
        self.thinker = profile.section("thinker", ThinkerSection)
        self.predictor = choose_predictor(profile.section("predictor", PredictorConfig))
        self.ears_config: Any
        self.voice_config: Any
        if profile.encoder == "sensevoice":
            from encoders.sensevoice_ears import SenseVoiceEarsConfig

            self.ears_config = profile.section("ears", SenseVoiceEarsConfig)
        elif profile.input == "projector":
            from encoders.projector_ears import WEIGHTS, ProjectorEarsConfig

            self.ears_config = profile.section("ears", ProjectorEarsConfig)
            if profile.weights and not WEIGHTS.is_file():
                raise ConfigError(
                    f"{profile.file}: input: projector has no trained weights here; run `duologue train projector`, or use input: bridge."
                )
        else:
            self.ears_config = profile.section("ears", EarsConfig)
        if profile.decoder == "cosyvoice2":
            from agent.minmo import TokenVoiceConfig

            self.voice_config = profile.section("voice", TokenVoiceConfig)
        elif voice is not None:
            check_can_clone(profile)
        elif profile.output == "projector":
            from agent.edge import EdgeVoiceConfig

            self.voice_config = profile.section("voice", EdgeVoiceConfig)
        else:
            self.voice_config = profile.section("voice", BridgeConfig)
        self.device, self.dtype = self.runtime.torch_device(), self.runtime.torch_dtype()
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # it would move the vocoder's pitch by a thousandth, and saves next to nothing
            torch.backends.cuda.enable_cudnn_sdp(
                False
            )  # it plans anew for each length of the past, which takes longer than it saves
        if profile.input != "bridge" and profile.encoder == "sensevoice":
            raise ConfigError(f"{profile.file}: input: projector has no trained weights yet; use input: bridge.")
        if profile.output != "bridge" and profile.weights and (profile.decoder == "cosyvoice2" or not _own_voice_is_trained()):
            raise ConfigError(f"{profile.file}: output: projector has no trained weights yet; use output: bridge.")

    # -- from weights

    def ears(self, where: Mapping[str, Path], chat: Chat | None = None) -> Ears:
        """From what `weights.locate` found. chat: the LLM, which ears hear for (`input: projector`). Raises WeightsError."""
        if self.profile.input == "projector":
            from encoders.projector_ears import ProjectorEars

            assert chat is not None, "a projector hears for an LLM"
            from agent.rescorer import Rescorer

            thinker, whisper = chat.thinker, self._located(where, "whisper-tiny-en")
            heads = sound_heads.shipped("projector")
            return ProjectorEars.load(whisper, thinker.encode, thinker.embed, self.ears_config, Rescorer(thinker), heads)
        if self.profile.encoder == "sensevoice":
            from agent.minmo import SENSEVOICE
            from encoders.sensevoice_ears import SenseVoiceEars

            return SenseVoiceEars.load(self._located(where, SENSEVOICE), self.ears_config, device=self.device)
        files = self._located(where, "whisper-tiny-en"), self._located(where, "whisper-vocab")
        return WhisperEars.load(*files, self.ears_config, sound_heads.shipped("bridge"))

    def chat(self, where: Mapping[str, Path]) -> Chat:
        """The LLM from what `weights.locate` found: the converted int8 one, or a publisher's folder. Raises WeightsError."""
        if "qwen-int8" in where:
            return Chat(Thinker.from_folder(where["qwen-int8"], self.thinker.context), self.thinker.chat, self._sentence_end())
        from agent.minmo import QWEN
        from agent.thinker_checkpoint import load_hugging_face

        loaded = load_hugging_face(self._located(where, QWEN), self.thinker.context, self.dtype, self.device)
        return Chat(loaded, self.thinker.chat, self._sentence_end())

    def _sentence_end(self) -> SentenceEnd | None:
        return None if self.thinker.chat.sentence_end == "odds" else SentenceEnd.load()

    def voice(self, where: Mapping[str, Path], chat: Chat) -> Voice:
        """From what `weights.locate` found. Raises WeightsError, and InputError for a sample that is no voice sample."""
        if self.profile.decoder == "cosyvoice2":
            from agent.minmo import COSYVOICE, load_voice

            folder = self._located(where, COSYVOICE)
            return load_voice(folder, self.voice_config, chat.thinker, self.sample, self.device, self.dtype)
        files = self._located(where, "vits-joe-split"), self._located(where, "vits-joe-config")
        if self.profile.output == "projector":
            from agent.edge import load_voice as load_edge_voice

            return load_edge_voice(*files, self.voice_config, chat.thinker)
        return BridgeVoice.load(*files, chat.decode, self.voice_config)

    def _located(self, where: Mapping[str, Path], name: str) -> Path:
        if name not in where:
            raise ConfigError(f"{self.profile.file}: its parts need the weights '{name}'; add that to weights.")
        return where[name]

    # -- random weights

    def tiny(self) -> Parts:
        """A few hundred kB of random weights made on the spot: no download, no sense, every code path."""
        chat = Chat(Thinker.tiny(0, self.thinker.context), self.thinker.chat)
        ears: Ears
        voice: Voice
        if self.profile.encoder == "sensevoice":
            from encoders.sensevoice_ears import SenseVoiceEars

            ears = SenseVoiceEars.tiny(0, self.ears_config)
        elif self.profile.input == "projector":
            from agent.rescorer import Rescorer
            from encoders.projector_ears import ProjectorEars

            ears = ProjectorEars.tiny(chat.thinker.encode, chat.thinker.embed, 0, self.ears_config, Rescorer(chat.thinker))
        else:
            ears = WhisperEars.tiny(0, self.ears_config)
        if self.profile.decoder == "cosyvoice2":
            from agent.minmo import tiny_voice

            voice = tiny_voice(self.voice_config, chat.thinker, self.sample, bridge=self.profile.output == "bridge")
        elif self.profile.output == "projector":
            from agent.edge import tiny_voice as tiny_edge_voice

            voice = tiny_edge_voice(self.voice_config, chat.thinker)
        else:
            voice = BridgeVoice.tiny(chat.decode, self.voice_config)
        return Parts(ears, LevelVad(), chat, voice, self.predictor)

    def full_size(self) -> Parts:
        """MinMo's shapes with weights that have learnt nothing, for measuring. Raises ConfigError for a profile of other parts."""
        if (self.profile.encoder, self.profile.decoder) != ("sensevoice", "cosyvoice2"):
            raise ConfigError(
                f"--random-weights measures SenseVoice and CosyVoice2; the profile {self.profile.name} has other parts."
            )
        from agent.minmo import full_size_voice
        from agent.thinker_checkpoint import random_qwen7b
        from encoders.sensevoice_ears import SenseVoiceEars

        chat = Chat(random_qwen7b(self.thinker.context, self.dtype, self.device), self.thinker.chat)
        ears = SenseVoiceEars.full_size(self.ears_config, device=self.device)
        voice = full_size_voice(self.voice_config, chat.thinker, self.sample, self.device, self.dtype)
        return Parts(ears, LevelVad(), chat, voice, self.predictor)


def _own_voice_is_trained() -> bool:
    from agent.edge import is_trained

    return is_trained()
