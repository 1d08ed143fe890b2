"""From a profile to a running conversation: loads the parts, once, and opens sessions on them."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from agent import weights
from agent.chat import Chat, ChatConfig
from agent.doubles import LevelVad
from agent.parts import Parts
from agent.parts import Vad as VadLike
from agent.profiles import Profile
from agent.session import Session, SessionConfig
from agent.thinker import Thinker, ThinkerConfig
from agent.transport import Transport
from agent.worker import ModelWorker
from decoders.bridge_voice import BridgeConfig, BridgeVoice
from duplex.echo import EchoConfig, EchoControl, choose_echo
from duplex.errors import ConfigError
from duplex.predictor import RuleConfig, RulePredictor
from duplex.vad import Vad
from encoders.whisper_ears import EarsConfig, WhisperEars

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RuntimeConfig:
    """How models share the machine."""

    model_threads: int = 2
    """Threads of the model worker: jobs that may run side by side."""
    threads_per_job: int = 1
    """OpenMP threads inside one job; more threads than free cores make small layers many times slower."""

    def __post_init__(self) -> None:
        if self.model_threads < 1 or self.threads_per_job < 1:
            raise ConfigError("runtime.model_threads and runtime.threads_per_job must be at least 1.")


@dataclass(frozen=True)
class ThinkerSection:
    """The thinker's settings in a profile."""

    context: ThinkerConfig = field(default_factory=ThinkerConfig)
    """The LLM's context."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """How it takes part in a conversation."""


EchoKind = Literal["auto", "webrtc", "half_duplex", "none"]


@dataclass(frozen=True)
class EchoSection:
    """Echo cancellation's settings in a profile."""

    kind: EchoKind = "auto"
    """Which canceller; auto takes webrtc where it is installed, else half_duplex."""
    config: EchoConfig = field(default_factory=EchoConfig)
    """Its numbers."""


def build_parts(profile: Profile) -> Parts:
    """Load everything that has weights. Raises WeightsError when they are not in the cache, ConfigError for a wrong setting."""
    runtime = profile.section("runtime", RuntimeConfig)
    torch.set_num_threads(runtime.threads_per_job)
    section = profile.section("thinker", ThinkerSection)
    ears_config = profile.section("ears", EarsConfig)
    voice_config = profile.section("voice", BridgeConfig)
    session_config(profile)  # a wrong setting is told before anything is loaded
    profile.section("echo", EchoSection)
    predictor = RulePredictor(profile.section("predictor", RuleConfig))
    for side in ("input", "output"):
        if getattr(profile, side) != "bridge":
            raise ConfigError(f"{profile.file}: {side}: projector has no trained weights yet; use {side}: bridge.")
    began = time.perf_counter()
    vad: VadLike
    where = weights.locate(profile) if profile.weights else {}
    if where:
        with ThreadPoolExecutor(1) as beside:  # the ears beside the LLM: nearly half the loading time on two cores
            hearing = beside.submit(WhisperEars.load, where["whisper-tiny-en"], ears_vocabulary(where), ears_config)
            chat = Chat(Thinker.from_folder(where["qwen-int8"], section.context), section.chat)
            voice = BridgeVoice.load(where["vits-joe-split"], where["vits-joe-config"], chat.decode, voice_config)
            vad = Vad(where["silero-vad"])
            ears = hearing.result()
    else:
        chat = Chat(Thinker.tiny(0, section.context), section.chat)
        ears = WhisperEars.tiny(0, ears_config)
        voice = BridgeVoice.tiny(chat.decode)
        vad = LevelVad()
    log.info("loaded profile %s in %.1f s", profile.name, time.perf_counter() - began)
    return Parts(ears, vad, chat, voice, predictor)


def ears_vocabulary(where: dict[str, Path]) -> Path:
    """Where Whisper's token texts are."""
    return where["whisper-vocab"]


def session_config(profile: Profile) -> SessionConfig:
    """The session's settings in a profile."""
    return profile.section("session", SessionConfig)


def build_session(
    profile: Profile,
    parts: Parts,
    transport: Transport,
    worker: ModelWorker,
    *,
    echo: EchoKind | None = None,
    system_prompt: str | None = None,
) -> Session:
    """A conversation over loaded parts. `echo` and `system_prompt` override the profile's."""
    config = session_config(profile)
    if system_prompt is not None:
        config = replace(config, response=replace(config.response, system_prompt=system_prompt))
    section = profile.section("echo", EchoSection)
    control = EchoControl(choose_echo(echo or section.kind, section.config), section.config)
    return Session(parts, transport, worker, config, control)
