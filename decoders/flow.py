"""Speech codes to mel frames by conditional flow matching, streaming: CosyVoice2's flow, and smaller ones of the same make.

Notable: frames are final when they leave. The sequence (voice prompt, then the reply) lies on an absolute grid of chunks; a chunk is
computed once it is complete and its look-ahead is there, and then never changes. So how the codes are cut into steps cannot be heard,
and the last chunk is made like all others. What the networks saw is kept per moment of the solver and guidance row, which makes a hop
cost the same after 20 s as after 1 s; `cached=False` trades that for memory and runs over everything at each hop.

Measured at full size on one CPU thread in fp32 (CPU seconds for a hop of one chunk, 1 s of sound, when 8 s of prompt and reply are
there; kept against anew): 10 moments 3.2 against 18.8, 4 moments 1.4 against 7.4, 1 moment without guidance 0.27 against 1.38; the
frames differ by 1.7e-6. Memory of the kept form, 10 moments: 2.3 GB per 10 s in fp32 and 1.15 GB in bf16; 1 moment without guidance:
129 MB in fp32 (`cache_bytes`). It is freed when the reply ends.

Source: CosyVoice2-0.5B `flow.pt`; Lipman et al. 2023, "Flow Matching for Generative Modeling"; Du et al. 2024, "CosyVoice 2".

Shapes: B rows, P prompt codes, n codes now, R frames per code, M mel bands, S width of a speaker's vector, C encoder width.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoders.flow_encoder import EncoderMemory, FlowEncoder, FlowEncoderConfig
from decoders.flow_estimator import EstimatorMemory, FlowEstimator, FlowEstimatorConfig
from decoders.flow_streaming import attention_mask


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """Sizes and manners of a flow; the defaults are CosyVoice2-0.5B's."""

    vocabulary: int = 6561
    """Speech codes it knows, 0 to one less."""
    levels: tuple[int, ...] = ()
    """Levels of each digit of a code, the first digit counting ones; a code is then embedded as the sum of its digits. Empty: as one."""
    mel: int = 80
    """Bands of a frame (or channels of a latent)."""
    ratio: int = 2
    """Frames per code."""
    speaker: int = 192
    """Width of the speaker's vector; 0 for a flow that has one speaker."""
    prompted: bool = True
    """Whether known frames, a voice prompt's, are an input; a flow that has one speaker may do without."""
    chunk: int = 25
    """Codes that are computed together and see each other; codes see the chunks before theirs, never one after."""
    window: int = 0
    """Codes before its chunk that a code sees by attention, so that a step costs the same however long the reply is; 0 for all."""
    steps: int = 10
    """Steps of the solver; fewer are faster and rougher."""
    guidance: float = 0.7
    """Weight of classifier-free guidance; at 0 the unconditioned row is not computed, which halves the work."""
    cached: bool = True
    """Whether a reply keeps what the networks saw (`cache_bytes`); if not, every step runs over everything before it."""
    max_frames: int = 15_000
    """Frames of the fixed noise, hence the longest prompt and reply together."""
    noise_seed: int = 0
    """Seed of the fixed noise."""
    temperature: float = 1.0
    """Deviation of the noise that frames are made from; less is calmer, and 0 always the same."""
    encoder: FlowEncoderConfig = field(default_factory=FlowEncoderConfig)
    """Sizes of the encoder."""
    estimator: FlowEstimatorConfig = field(default_factory=FlowEstimatorConfig)
    """Sizes of the estimator."""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "mel", "ratio", "chunk", "steps", "max_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"flow.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("speaker", "window"):
            if getattr(self, name) < 0:
                raise ValueError(f"flow.{name} must be at least 0, not {getattr(self, name)}")
        if self.levels and math.prod(self.levels) != self.vocabulary:
            raise ValueError(
                f"flow.levels {list(self.levels)} make {math.prod(self.levels)} codes, not flow.vocabulary {self.vocabulary}"
            )
        if not 0.0 <= self.temperature <= 2.0:
            raise ValueError(f"flow.temperature must be in 0 to 2, not {self.temperature}")
        if not 0.0 <= self.guidance <= 10.0:
            raise ValueError(f"flow.guidance must be in 0 to 10, not {self.guidance}")

    @property
    def rows(self) -> int:
        """Rows of a pass: conditioned, and with guidance unconditioned."""
        return 2 if self.guidance > 0 else 1

    @property
    def inputs(self) -> int:
        """Input channels of the estimator: noisy frames, encoded codes, speaker, known frames."""
        return (2 + self.prompted + bool(self.speaker)) * self.mel


def cache_bytes(config: FlowConfig, frames: int, dtype: torch.dtype = torch.float32, steps: int | None = None) -> int:
    """Bytes of keys and values for `frames` frames, prompt included; buffers hold up to a quarter more."""
    encoder, estimator = config.encoder, config.estimator
    frames = min(frames, config.window * config.ratio) if config.window else frames
    per_moment = config.rows * (estimator.mid_stages + 2) * estimator.blocks * estimator.heads * estimator.head_width
    numbers = (steps or config.steps) * per_moment * frames
    numbers += encoder.width * (encoder.up_blocks * frames + encoder.blocks * frames // config.ratio)
    return 2 * numbers * dtype.itemsize


@functools.lru_cache(maxsize=8)
def fixed_noise(mel: int, frames: int, seed: int) -> Tensor:
    """[frames, M], where every sequence starts; always the same, made on the CPU, so equal codes give equal sound on any machine."""
    return torch.randn((1, mel, frames), generator=torch.Generator().manual_seed(seed), device="cpu")[0].T


@functools.lru_cache(maxsize=8)
def starting_noise(config: FlowConfig) -> Tensor:
    """[max_frames, M] the fixed noise at the flow's temperature, on the CPU."""
    return config.temperature * fixed_noise(config.mel, config.max_frames, config.noise_seed)


def moments(steps: int) -> Tensor:
    """The solver's times from 0 to 1 on a cosine, close together at first: [steps + 1] float32."""
    return 1.0 - torch.cos(torch.linspace(0.0, 1.0, steps + 1) * (0.5 * math.pi))


@dataclass(slots=True)
class FlowMemory:
    """What both networks keep of a sequence."""

    encoder: EncoderMemory
    estimator: list[EstimatorMemory]
    """One per step of the solver."""

    def fork(self) -> FlowMemory:
        """The same content, to go on independently."""
        return FlowMemory(self.encoder.fork(), [moment.fork() for moment in self.estimator])


@dataclass(slots=True)
class FlowState:
    """One reply on its way, owned by the caller."""

    codes: Tensor
    """[P + all codes so far] int64, on the CPU."""
    prompt_codes: int
    """P."""
    prompt_mel: Tensor
    """[P * R, M] float32, on the flow's device."""
    speaker: Tensor | None
    """[M], projected."""
    steps: int
    """Steps of the solver."""
    memory: FlowMemory | None
    """None when the reply runs over everything at each hop, and after its end."""
    done: int = 0
    """Codes whose frames are final, prompt included."""
    ended: bool = False
    """Whether the final step was made."""

    def fork(self) -> FlowState:
        """A reply with the same past, to go on independently, at no cost now: compute a voice's prompt once and fork it per reply."""
        memory = self.memory.fork() if self.memory else None
        return FlowState(self.codes, self.prompt_codes, self.prompt_mel, self.speaker, self.steps, memory, self.done, self.ended)


class FlowDecoder(nn.Module):
    """The estimator and the solver that follows its directions from noise to frames."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.estimator = FlowEstimator(config.estimator, config.inputs, config.mel)

    def forward(
        self, given: Tensor, steps: int, start: int = 0, mask: Tensor | None = None, memory: list[EstimatorMemory] | None = None
    ) -> Tensor:
        """Conditions [1, n, I - M] of frames start .. start + n -> frames [n, M] float32.

        memory: per step of the solver, brought up to date.
        """
        config, n = self.config, given.shape[1]
        if config.guidance > 0:
            given = torch.cat((given, torch.zeros_like(given)))  # [2, n, I - M]
        x = starting_noise(config)[start : start + n].to(given.device).unsqueeze(0)
        times = moments(steps)
        shifts = self.estimator.shifts(times[:-1].to(given.device), times.diff().to(given.device))
        for step, length in enumerate(times.diff().tolist()):
            inputs = torch.cat((x.to(given.dtype).expand(len(given), -1, -1), given), dim=2)  # [rows, n, I]
            moment = [shift[step : step + 1] for shift in shifts]
            direction = self.estimator(inputs, moment, mask, memory[step] if memory else None).float()
            if config.guidance > 0:
                direction = (1.0 + config.guidance) * direction[:1] - config.guidance * direction[1:]
            x = x + length * direction  # [1, n, M]
        return x[0]


class DigitEmbedding(nn.Module):
    """A code as the sum of what its digits mean; the first digit counts ones, the next what is carried, as `FlowConfig.levels` says."""

    def __init__(self, levels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.levels = levels
        self.weight = nn.Parameter(torch.randn(sum(levels), width) / math.sqrt(len(levels)))

    def forward(self, codes: Tensor) -> Tensor:
        """[B, n] int64 -> [B, n, C]."""
        rows, before = [], 0
        for level in self.levels:
            rows.append(codes % level + before)
            codes, before = codes // level, before + level
        return F.embedding(torch.stack(rows, dim=-1), self.weight).sum(dim=-2)


class Flow(nn.Module):
    """Codes, a voice prompt and a speaker to mel frames."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder.width
        self.input_embedding = DigitEmbedding(config.levels, width) if config.levels else nn.Embedding(config.vocabulary, width)
        if config.speaker:
            self.spk_embed_affine_layer = nn.Linear(config.speaker, config.mel)
        self.encoder = FlowEncoder(config.encoder, config.ratio)
        self.encoder_proj = nn.Linear(config.encoder.width, config.mel)
        self.decoder = FlowDecoder(config)

    @torch.inference_mode()
    def open(
        self,
        prompt_codes: Tensor,
        prompt_mel: Tensor,
        speaker: Tensor | None = None,
        *,
        steps: int | None = None,
        cached: bool | None = None,
    ) -> FlowState:
        """A state for one reply.

        prompt_codes: [P] int64; prompt_mel: [P * R, M]; both may be empty. speaker: [S], its length does not matter. steps: instead of
        the configured ones. cached (None: as configured): keep what was computed (see `cache_bytes`) instead of running over everything
        at each step; the prompt's complete chunks are then computed here, so keep the state of a voice and `fork` it.

        Frames leave when their chunk is complete, and the prompt lies on the grid too: with P = chunk - 1 past a multiple of the chunk,
        the first frames come after 1 code and the look-ahead.
        """
        config = self.config
        prompt_codes = self._checked(prompt_codes)
        if prompt_mel.ndim != 2 or prompt_mel.shape[1] != config.mel:
            raise ValueError(f"the prompt's mel must be [frames, {config.mel}], not {list(prompt_mel.shape)}")
        if len(prompt_codes) and not config.prompted:
            raise ValueError("this flow takes no voice prompt; give an empty one")
        if len(prompt_mel) != config.ratio * len(prompt_codes):
            raise ValueError(
                f"the prompt has {len(prompt_mel)} mel frames for {len(prompt_codes)} codes; cut both so that there are "
                f"{config.ratio} frames to a code"
            )
        steps = config.steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        device = self.input_embedding.weight.device
        state = FlowState(
            codes=prompt_codes,
            prompt_codes=len(prompt_codes),
            prompt_mel=prompt_mel.to(device=device, dtype=torch.float32),
            speaker=self._speaker(speaker),
            steps=steps,
            memory=None,
        )
        self._check_length(len(prompt_codes))
        if config.cached if cached is None else cached:
            window = config.window * config.ratio
            state.memory = FlowMemory(
                self.encoder.memory(config.window), [self.decoder.estimator.memory(window) for _ in range(steps)]
            )
            self._advance(state, final=False, chunk=config.chunk)
        return state

    @torch.inference_mode()
    def step(self, state: FlowState, codes: Tensor, final: bool = False, *, full_attention: bool = False) -> Tensor:
        """Take the codes [n] int64 that follow, give the frames that became final: [M, t] float32; t is often 0.

        A frame is final when its chunk is complete and so is the look-ahead behind it, or with `final`, after which the state takes
        no more. full_attention: at the final step run over everything once more without the chunk mask, as CosyVoice2 does for its tail;
        a whole reply in one such step is its offline form. It does not continue what was given before. Raises ValueError, and leaves
        the state as it was, when a code is unknown, the reply has ended, or it grows beyond `max_frames`.
        """
        if state.ended:
            raise ValueError("this reply has ended; open a new state for the next one")
        if full_attention and not final:
            raise ValueError("full attention needs all codes; use it with final=True")
        codes = self._checked(codes)
        self._check_length(len(state.codes) + len(codes))
        state.codes = torch.cat((state.codes, codes))
        return self._advance(state, final=final, chunk=None if full_attention else self.config.chunk)

    def encode(
        self,
        codes: Tensor,
        ahead: Tensor | None = None,
        *,
        start: int = 0,
        chunk: int | None = None,
        kept: Tensor | None = None,
        memory: EncoderMemory | None = None,
    ) -> Tensor:
        """Codes [B, n], and those looked at [B, <= L], to what the frames should be on average [B, n * R, M]. As `FlowEncoder`."""
        embedded = self.input_embedding(codes)  # [B, n, C]
        seen = None if ahead is None else self.input_embedding(ahead)
        window = self.config.window
        return self.encoder_proj(self.encoder(embedded, seen, start=start, chunk=chunk, window=window, kept=kept, memory=memory))

    def conditions(self, mean: Tensor, speaker: Tensor | None, known: Tensor) -> Tensor:
        """Encoded codes [B, t, M], projected speakers [B, M] and known frames [B, t, M], side by side: [B, t, I - M]."""
        parts = [mean]
        if speaker is not None:
            parts.append(speaker.unsqueeze(1).expand(-1, mean.shape[1], -1))
        if self.config.prompted:
            parts.append(known)
        return torch.cat(parts, dim=2)

    def mask(self, start: int, n: int, chunk: int | None, kept: Tensor | None = None, first: int = 0) -> Tensor | None:
        """`attention_mask` of frames for a chunk in codes."""
        ratio, device = self.config.ratio, self.encoder_proj.weight.device
        frames = None if chunk is None else chunk * ratio
        return attention_mask(start, n, frames, kept, device, window=self.config.window * ratio, first=first)

    def speakers(self, vectors: Tensor) -> Tensor:
        """Vectors [B, S] to projected speakers [B, M]."""
        layer = self.spk_embed_affine_layer
        return layer(F.normalize(vectors.float(), dim=1).to(layer.weight.dtype))

    def _advance(self, state: FlowState, *, final: bool, chunk: int | None) -> Tensor:
        """Compute what has become computable: [M, t]."""
        config, total, first = self.config, len(state.codes), state.done
        ready = total if final else max(total - config.encoder.lookahead, 0) // config.chunk * config.chunk
        if final:
            state.ended = True
        anew = state.memory is None or chunk is None or (final and first == 0)
        begin = 0 if anew else first
        skipped = (max(first, state.prompt_codes) - begin) * config.ratio
        frames = torch.zeros(0, config.mel, device=state.prompt_mel.device)
        if ready > max(first, state.prompt_codes if anew else 0):
            frames = self._frames(state, begin, ready, chunk, None if anew else state.memory)[skipped:]
        state.done = max(ready, first)
        if final:
            state.memory = None
        return frames.T

    def _frames(self, state: FlowState, begin: int, end: int, chunk: int | None, memory: FlowMemory | None) -> Tensor:
        """Frames of codes begin .. end, [(end - begin) * R, M]."""
        config = self.config
        device = state.prompt_mel.device
        codes = state.codes[begin : end + config.encoder.lookahead].to(device).unsqueeze(0)  # [1, n + look-ahead]
        now, ahead = codes[:, : end - begin], codes[:, end - begin :]
        mean = self.encode(now, ahead, start=begin, chunk=chunk, memory=memory.encoder if memory else None)
        start, n = begin * config.ratio, mean.shape[1]
        prompt = state.prompt_mel[start : start + n].to(mean.dtype)
        known = F.pad(prompt, (0, 0, 0, n - len(prompt))).unsqueeze(0)  # [1, n, M]
        given = self.conditions(mean, state.speaker, known)
        first = max(start - config.window * config.ratio, 0) if memory and config.window else 0
        mask = self.mask(start, n, chunk, first=first)
        return self.decoder(given, state.steps, start, mask, memory.estimator if memory else None)

    def _checked(self, codes: Tensor) -> Tensor:
        if codes.ndim != 1 or codes.is_floating_point():
            raise ValueError(f"codes must be whole numbers in one dimension, not {codes.dtype} of shape {list(codes.shape)}")
        codes = codes.to(device="cpu", dtype=torch.int64)
        wrong = ((codes < 0) | (codes >= self.config.vocabulary)).nonzero()
        if len(wrong):
            place = int(wrong[0])
            raise ValueError(
                f"code {int(codes[place])} at position {place} is no speech code: this flow knows 0 to {self.config.vocabulary - 1}; "
                "leave out the end and fill tokens of the voice LM"
            )
        return codes

    def _check_length(self, codes: int) -> None:
        if codes * self.config.ratio > self.config.max_frames:
            most = self.config.max_frames // self.config.ratio
            raise ValueError(f"prompt and reply have {codes} codes, and this flow takes {most}; open a new state for what follows")

    def _speaker(self, vector: Tensor | None) -> Tensor | None:
        """[S] -> [1, M]"""
        width = self.config.speaker
        if not width:
            if vector is not None:
                raise ValueError("this flow has one speaker only; give no speaker vector")
            return None
        if vector is None or vector.shape != (width,) or not bool(vector.isfinite().all()):
            given = "none" if vector is None else f"{list(vector.shape)}"
            raise ValueError(f"this flow needs a speaker vector of {width} finite numbers, and was given {given}")
        return self.speakers(vector.unsqueeze(0).to(self.spk_embed_affine_layer.weight.device))
