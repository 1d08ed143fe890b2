"""From a profile to a running conversation: loads the parts, once, and opens sessions on them."""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch

from agent import weights
from agent.part_loading import Loader
from agent.parts import Parts
from agent.profiles import Profile
from agent.session import Session, SessionConfig
from agent.transport import Transport
from agent.worker import ModelWorker
from duplex.echo import EchoConfig, EchoControl, choose_echo
from duplex.vad import Vad

if TYPE_CHECKING:
    from agent.voice_sample import VoiceSample

log = logging.getLogger(__name__)

KEPT_SHAPES = 64
"""Shapes for which oneDNN keeps compiled code; it reads this once, when the first model runs."""


EchoKind = Literal["auto", "webrtc", "half_duplex", "none"]


@dataclass(frozen=True)
class EchoSection:
    """Echo cancellation's settings in a profile."""

    kind: EchoKind = "auto"
    """Which canceller; auto takes webrtc where it is installed, else half_duplex."""
    config: EchoConfig = field(default_factory=EchoConfig)
    """Its numbers."""


def build_parts(profile: Profile, *, voice: VoiceSample | None = None, random_weights: bool = False) -> Parts:
    """Load everything that has weights.

    voice: whose voice the agent has, for a decoder that clones one. random_weights: the profile's full-size shapes with weights that
    have learnt nothing, for measuring; nothing is fetched. Raises WeightsError when the weights are not in the cache, ConfigError
    for a wrong setting, InputError for a sample that is no voice sample.
    """
    loader = Loader(profile, voice)
    session_config(profile)
    profile.section("echo", EchoSection)
    torch.set_num_threads(loader.runtime.threads_per_job)
    # oneDNN keeps compiled code for every shape, 1024 of them by default: with sound of any length, hundreds of MB in a long talk
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT_SHAPES))
    began = time.perf_counter()
    if random_weights:
        return loader.full_size()
    if not profile.weights:
        return loader.tiny()
    where = weights.locate(profile)
    with ThreadPoolExecutor(1) as beside:  # the ears beside the LLM: nearly half the loading time on two cores
        hearing = None if profile.input == "projector" else beside.submit(loader.ears, where)
        chat = loader.chat(where)
        speaking = loader.voice(where, chat)
        ears = hearing.result() if hearing is not None else loader.ears(where, chat)
        parts = Parts(ears, Vad(where["silero-vad"]), chat, speaking, loader.predictor)
    log.info("loaded profile %s in %.1f s", profile.name, time.perf_counter() - began)
    return parts


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
