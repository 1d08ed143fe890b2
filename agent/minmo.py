"""MinMo's parts from official checkpoints, or with random weights of any size: SenseVoice's ears, Qwen as thinker, CosyVoice2's voice.

The LLM and the voice-token LM run in the runtime's type (bfloat16 on a GPU); ears, vocoder and the networks that read a voice sample
stay in float32, where half precision would move codes and pitch, and so does the flow unless told otherwise. On a GPU responses have room
side by side, so that they take their steps together (`decoders.qwen_steps`, `decoders.flow_steps`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.thinker import Thinker
from agent.voice_sample import VoiceSample, kept_sample, read_sample, shipped_sample
from decoders import flow_checkpoint, hift_checkpoint, voice_lm_checkpoint
from decoders.campplus import CamPlus
from decoders.campplus_checkpoint import load_speaker_encoder
from decoders.flow import Flow, FlowConfig
from decoders.hift import HiFTConfig
from decoders.output_projector import BridgeProjector, OutputProjector, ProjectorConfig
from decoders.ras import RasConfig
from decoders.s3_tokenizer import S3Tokenizer
from decoders.s3_tokenizer_checkpoint import load_s3_tokenizer
from decoders.token2wav import Token2Wav, Token2WavConfig
from decoders.token_voice import Project, TokenVoice
from decoders.voice_lm import VoiceLM
from decoders.voice_lm_modules import VoiceLMConfig
from decoders.voice_prompt import VoicePrompt
from duplex.errors import ConfigError

log = logging.getLogger(__name__)

COSYVOICE = "cosyvoice2-0.5b"
SENSEVOICE = "sensevoice-small"
QWEN = "qwen2.5-7b-instruct"
"""Names of weights.yaml."""
CODE_RATE_HZ = 25
"""Of CosyVoice2's codes."""


@dataclass(frozen=True)
class TokenVoiceConfig:
    """How the voice that speaks codes is run."""

    sampling: RasConfig = field(default_factory=RasConfig)
    """How codes are drawn."""
    manner: bool = False
    """Whether the voice LM reads the sample too: it then speaks in its manner, but starts about four tokens later per second of it."""
    steps: int = 10
    """Steps of the flow's solver; fewer are faster and rougher."""
    guidance: float = 0.7
    """Weight of the flow's classifier-free guidance; 0 halves its work."""
    flow_cached: bool = True
    """Whether a response keeps the flow's keys and values, 230 MB per second of it; if not, each step runs over everything before it."""
    flow_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the flow; bfloat16 halves what it keeps."""
    gpu_responses: int = 2
    """Responses that a GPU has room for side by side, the voice they speak in besides. More than these run one by one."""
    gpu_response_s: float = 12.0
    """Length of a response, with its voice sample, up to which the flow has room for it on a GPU; 230 MB per second of each (float32)."""
    max_context_tokens: int = 4096
    """Positions of the voice LM: voice prompt, text and codes of one response."""
    codes_per_step: int = 5
    """Most codes written between two chances for listening."""
    token2wav: Token2WavConfig = field(default_factory=Token2WavConfig)
    """When sound is made."""

    def __post_init__(self) -> None:
        if self.gpu_responses < 1 or self.gpu_response_s < 1.0:
            raise ConfigError("voice: gpu_responses and gpu_response_s must be at least 1.")

    def lm(self, sizes: VoiceLMConfig) -> VoiceLMConfig:
        """The rules of decoding, with a model's sizes."""
        return replace(sizes, max_context_tokens=self.max_context_tokens, codes_per_step=self.codes_per_step)

    def flow(self, sizes: FlowConfig) -> FlowConfig:
        """The solver's settings, with a model's sizes."""
        return replace(sizes, steps=self.steps, guidance=self.guidance, cached=self.flow_cached)


def load_voice(
    folder: Path,
    config: TokenVoiceConfig,
    thinker: Thinker,
    sample: VoiceSample | None,
    device: torch.device,
    dtype: torch.dtype,
) -> TokenVoice:
    """The voice in CosyVoice2-0.5B's official folder, speaking like `sample` (None: like the shipped one).

    Raises WeightsError when the folder is not that model's, InputError for a sample that is no voice sample.
    """
    prompt = load_prompt(folder, sample or shipped_sample())
    lm = voice_lm_checkpoint.load(folder, dtype, device, config.lm(VoiceLMConfig()))
    flow = flow_checkpoint.load(
        folder / "flow.pt", config.flow(FlowConfig()), dtype=getattr(torch, config.flow_dtype), device=device
    )
    vocoder = hift_checkpoint.load(folder / "hift.pt", device=device)
    return join_voice(lm, Token2Wav(flow, vocoder, config.token2wav), thinker, prompt, config, bridge=True)


def load_prompt(folder: Path, sample: VoiceSample) -> VoicePrompt:
    """A sample as the networks in CosyVoice2-0.5B's official folder read it, or as it is kept since they did.

    Raises WeightsError when the folder is not that model's, InputError for a sample that is no voice sample.
    """
    return kept_sample(
        sample,
        (folder / "speech_tokenizer_v2.onnx", folder / "campplus.onnx"),
        lambda tokenizer, speaker: (load_s3_tokenizer(tokenizer), load_speaker_encoder(speaker)),
    )


def tiny_prompt(sample: VoiceSample) -> VoicePrompt:
    """A sample as networks with random weights read it. Raises InputError for a sample that is no voice sample."""
    return read_sample(sample, S3Tokenizer.tiny(), CamPlus.tiny())


def tiny_voice(config: TokenVoiceConfig, thinker: Thinker, sample: VoiceSample | None, *, bridge: bool) -> TokenVoice:
    """The same voice with a few hundred kB of random weights: no file, no sense, every code path."""
    config = replace(config, steps=min(config.steps, 2))
    prompt = tiny_prompt(sample or shipped_sample())
    lm = voice_lm_checkpoint.tiny(0, thinker.vocabulary_rows, rules=config.lm(VoiceLMConfig()))
    flow = flow_checkpoint.tiny(0, config.flow(flow_checkpoint.TINY))
    return join_voice(lm, Token2Wav(flow, hift_checkpoint.tiny(0), config.token2wav), thinker, prompt, config, bridge=bridge)


def full_size_voice(
    config: TokenVoiceConfig, thinker: Thinker, sample: VoiceSample | None, device: torch.device, dtype: torch.dtype
) -> TokenVoice:
    """CosyVoice2's shapes and MinMo's output projector with weights that have learnt nothing, for measuring."""
    prompt = read_sample(
        sample or shipped_sample(), S3Tokenizer().train(False).requires_grad_(False), CamPlus().train(False).requires_grad_(False)
    )
    lm = voice_lm_checkpoint.random(config.lm(VoiceLMConfig()), 0, dtype, device)
    with torch.device(device):  # made where it is used; on a GPU that is a hundred times faster
        flow = Flow(config.flow(FlowConfig())).requires_grad_(False).train(False).to(getattr(torch, config.flow_dtype))
    vocoder = hift_checkpoint.tiny(0, HiFTConfig()).to(device)
    return join_voice(lm, Token2Wav(flow, vocoder, config.token2wav), thinker, prompt, config, bridge=False)


def join_voice(
    lm: VoiceLM, token2wav: Token2Wav, thinker: Thinker, prompt: VoicePrompt, config: TokenVoiceConfig, *, bridge: bool
) -> TokenVoice:
    """Parts into a voice. bridge: the voice LM reads the LLM's tokens; otherwise a fresh output projector reads token and state."""
    project = bridge_project(lm, thinker.hidden_size) if bridge else hidden_project(lm, thinker)
    voice = TokenVoice(lm, project, token2wav, thinker.encode, thinker.decode, prompt, config.sampling, config.manner)
    if lm.qwen.device.type == "cuda":
        try:
            voice.share(config.gpu_responses, round(CODE_RATE_HZ * config.gpu_response_s) if config.flow_cached else 0)
        except torch.OutOfMemoryError:
            voice.share(config.gpu_responses, 0)
            log.warning("the GPU has no room for %d responses side by side; the flow makes them one by one", config.gpu_responses)
    return voice


def bridge_project(lm: VoiceLM, llm_width: int) -> Project:
    """Text tokens alone: the untrained bridge adds nothing of the hidden states, so they are not even carried over."""
    projector = BridgeProjector.bridge(lm, llm_width)
    return lambda tokens, hidden: projector(tokens, None, None)


def hidden_project(lm: VoiceLM, thinker: Thinker) -> Project:
    """MinMo's projector on token embedding and hidden state, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projector = OutputProjector(ProjectorConfig(thinker.hidden_size, lm.hidden_size))
    projector = projector.requires_grad_(False).to(lm.qwen.device, lm.qwen.dtype)

    @torch.inference_mode()
    def project(tokens: Any, hidden: NDArray[Any] | None) -> Tensor:
        if hidden is None:
            raise ValueError("the output projector reads hidden states, and got none; use output: bridge")
        projected: Tensor = projector(tokens, thinker.embed(tokens), torch.from_numpy(hidden))
        return projected

    return project
