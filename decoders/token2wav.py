"""Codes to sound, while the codes are still coming: flow, then vocoder, for one response at a time.

    codes -> [look-ahead] -> flow, by chunks -> mel frames (or latents) -> [hold] -> vocoder -> 24 kHz

All rates are those of the flow and the vocoder. The figures that follow are of the full size (25 codes and 50 mel frames a second), then of
the small voice.

When the first sound comes. The flow computes whole chunks (25 codes) on a grid that begins with the voice's prompt, and looks 3 codes
ahead; the vocoder holds back 8 frames (4 codes). So the first step is the first end of a chunk that makes `first_audio_ms` of sound; let
it be c codes into the response: it runs after c + 3 codes and gives 40 c - 160 ms. Where the grid falls is the prompt's doing, and a
prompt may lose up to 24 codes (under 1 s) at its beginning without harm; `align_prompt` drops as many as put the end of a chunk 12
codes into the response. First sound is then due after 15 codes, one group of a 5:15 voice LM, and lasts 320 ms. Where it is off, or would
leave less than a chunk of the prompt, c is 12 to 36 and first sound due after 15 to 39 codes (28 without a prompt).

Later steps take a hop of 25, then 50, then 100 codes, because each costs the same overhead; but only while playback is ahead, that is,
while more sound waits to be played than the hop lasts. The caller may say how much that is in `state.ahead_s`; unsaid, it is trusted. The
hop is the response's own. The last step is masked like the rest (CosyVoice2 runs it with full attention over everything).

The small voice (`VOICE_STEPS`) has no prompt, chunks of 5 codes (232 ms), 2 of look-ahead and 11 frames held: first sound after 7 codes,
107 ms of it, the next 232 ms after 12 codes, then after every five.

Shapes: n codes, P prompt codes, R mel frames per code (2; small 4), M mel bands, S samples per frame (480; small 278.64).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from decoders.flow import Flow
from decoders.flow_steps import SharedFlow
from duplex.audio import AGENT_RATE_HZ, Samples


class Prompt(Protocol):
    """The sample of a voice: anything with these, as arrays or tensors."""

    @property
    def codes(self) -> Any:
        """[P] whole numbers."""

    @property
    def mel(self) -> Any:
        """[P R, M]"""

    @property
    def speaker(self) -> Any:
        """[speaker width], or None for a flow of one speaker."""


class FlowEncoderSizes(Protocol):
    """As `flow_encoder.FlowEncoderConfig`."""

    @property
    def lookahead(self) -> int: ...


class FlowSizes(Protocol):
    """As `flow.FlowConfig`."""

    @property
    def vocabulary(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    @property
    def ratio(self) -> int: ...
    @property
    def encoder(self) -> FlowEncoderSizes: ...


class CodesToMel(Protocol):
    """As `flow.Flow`: a state that can be forked; frames leave at the end of a chunk, look-ahead given, or at the final step."""

    @property
    def config(self) -> FlowSizes: ...

    def open(self, prompt_codes: Tensor, prompt_mel: Tensor, speaker: Tensor | None) -> Any: ...

    def step(self, state: Any, codes: Tensor, final: bool) -> Tensor: ...


class VocoderSizes(Protocol):
    """As `hift.HiFTConfig`."""

    @property
    def hold_frames(self) -> int: ...
    @property
    def frame_samples(self) -> float:
        """Not always a whole number."""


class MelToSound(Protocol):
    """As `hift.HiFT`: holds back `hold_frames` until the final step."""

    @property
    def config(self) -> VocoderSizes: ...

    def open(self, seed: int | None) -> Any: ...

    def step(self, state: Any, mel: Tensor, final: bool) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Token2WavConfig:
    """When codes become sound."""

    first_audio_ms: float = 320.0
    """Least length of the first sound; more starts later, less leaves less time until the second is due (a hop later)."""
    align_prompt: bool = True
    """Whether a prompt may be shortened so that the first sound comes as early as `first_audio_ms` allows."""
    hop_codes: int = 25
    """Codes of the second step; a multiple of the flow's chunk."""
    max_hop_codes: int = 100
    """Most codes of a step."""
    growth: int = 2
    """Factor on the hop after each step while playback is ahead; 1 keeps it."""
    vocoder_frames: int = 100
    """Most mel frames of one vocoder step, so that listening need not wait for longer."""

    def __post_init__(self) -> None:
        if not 20.0 <= self.first_audio_ms <= 5000.0:
            raise ValueError(f"token2wav.first_audio_ms must be in 20 to 5000, not {self.first_audio_ms}")
        if not 1 <= self.hop_codes <= self.max_hop_codes:
            raise ValueError(f"token2wav must satisfy 1 <= hop_codes ({self.hop_codes}) <= max_hop_codes ({self.max_hop_codes})")
        if self.growth < 1:
            raise ValueError(f"token2wav.growth must be at least 1, not {self.growth}")
        if self.vocoder_frames < 1:
            raise ValueError(f"token2wav.vocoder_frames must be at least 1, not {self.vocoder_frames}")


VOICE_STEPS = Token2WavConfig(first_audio_ms=90.0, hop_codes=5, max_hop_codes=5, growth=1, vocoder_frames=20)
"""When the small voice speaks: as early as it can, then chunk by chunk; its codes come in groups of 15 and are waited for as they are."""


@dataclass(frozen=True, slots=True)
class Sound:
    """What one `next()` made."""

    samples: Samples
    """[n] float32 at 24 kHz; empty after a flow step."""
    codes_until: int
    """Codes of the response that have sounded, these samples included."""


@dataclass(frozen=True, slots=True)
class PreparedVoice:
    """A prompt that the flow has seen; made once per voice, forked by each response."""

    flow: Any
    """The flow's state behind the prompt; only ever forked."""
    codes: int
    """Prompt codes that were used."""


@dataclass(slots=True)
class Token2WavState:
    """One response on its way, owned by the caller. Drop it to cancel; nothing else knows of it."""

    flow: Any
    vocoder: Any
    first: int
    """Codes of the first flow step."""
    hop: int
    """Codes of the next one, if playback is ahead."""
    ahead_s: float | None = None
    """Sound made but not yet played, in seconds, as far as the caller knows; None counts as enough. Set it at any time."""
    waiting: list[int] = field(default_factory=list)
    """Codes that the flow has not been given."""
    received: int = 0
    """Codes pushed so far."""
    flowed: int = 0
    """Codes whose mel frames have been made."""
    mel: Tensor | None = None
    """[M, t] frames that the vocoder has not been given."""
    samples: int = 0
    """Samples returned so far."""
    ended: bool = False
    """Whether all codes have been pushed."""
    flow_ended: bool = False
    """Whether the flow has made its final step."""


class Token2Wav:
    """Codes to sound. Holds no state of a response: any number may run through one instance, interleaved at will."""

    def __init__(self, flow: CodesToMel, vocoder: MelToSound, config: Token2WavConfig | None = None) -> None:
        self.flow: Any = flow
        self.vocoder = vocoder
        self.config = c = config or Token2WavConfig()
        chunk = flow.config.chunk
        if c.hop_codes % chunk or c.max_hop_codes % chunk:
            raise ValueError(
                f"token2wav.hop_codes ({c.hop_codes}) and max_hop_codes ({c.max_hop_codes}) must be multiples of the flow's chunk ({chunk})"
            )
        first_frames = ceil(c.first_audio_ms * AGENT_RATE_HZ / 1000 / vocoder.config.frame_samples)
        self._wanted = ceil((first_frames + vocoder.config.hold_frames) / flow.config.ratio)
        """Codes that make the first sound long enough."""
        self._code_s = flow.config.ratio * vocoder.config.frame_samples / AGENT_RATE_HZ

    def share(self, responses: int, codes: int, graphs: bool = True) -> None:
        """Let responses make their flow steps together, with room for so many, `codes` long each, prompts included; 0: each for itself.

        Prompts that were prepared before are to be prepared again. graphs: record steps where there is a GPU.
        """
        flow = self.flow.flow if isinstance(self.flow, SharedFlow) else self.flow
        self.flow = flow  # before new room is made, that of before is let go
        if responses and isinstance(flow, Flow):
            self.flow = SharedFlow(flow, responses, codes, graphs)

    def prepare(self, prompt: Prompt) -> PreparedVoice:
        """Run the flow over a voice's prompt, once for all its responses.

        Raises:
            ValueError: the prompt does not fit the flow; the message says how.
        """
        codes = torch.as_tensor(prompt.codes)
        mel = torch.as_tensor(prompt.mel)
        speaker = None if prompt.speaker is None else torch.as_tensor(prompt.speaker)
        chunk, ratio = self.flow.config.chunk, self.flow.config.ratio
        dropped = (len(codes) + self._wanted) % chunk
        if self.config.align_prompt and len(codes) - dropped >= chunk and len(mel) == ratio * len(codes):
            codes, mel = codes[dropped:], mel[dropped * ratio :]
        return PreparedVoice(self.flow.open(codes, mel, speaker), len(codes))

    def open(self, voice: PreparedVoice | Prompt, seed: int = 0) -> Token2WavState:
        """A fresh state for one response; equal voices, seeds and codes give equal samples, however the codes were pushed."""
        voice = voice if isinstance(voice, PreparedVoice) else self.prepare(voice)
        chunk = self.flow.config.chunk
        first = self._wanted + -(voice.codes + self._wanted) % chunk  # up to the next end of a chunk
        return Token2WavState(voice.flow.fork(), self.vocoder.open(seed), first, self.config.hop_codes)

    def push(self, state: Token2WavState, codes: Sequence[int]) -> Iterator[Sound]:
        """Take codes that follow, at once; each `next()` then does one flow step or one vocoder step, until more codes are needed.

        What an iterator left undone when it was dropped, the next one does. Raises ValueError, and takes nothing, when a code is
        none of the flow's or the response has ended.
        """
        self.take(state, codes)
        return self._work(state)

    def take(self, state: Token2WavState, codes: Sequence[int]) -> None:
        """Take codes that follow and make nothing yet: `push`, for responses that go on with `flow_together` and `vocode`."""
        if state.ended:
            raise ValueError("this response has ended; open a new state for the next one")
        size = self.flow.config.vocabulary
        wrong = next((code for code in codes if not 0 <= code < size), None)
        if wrong is not None:
            raise ValueError(f"{wrong} is no speech code (0 to {size - 1}); leave out the end and fill tokens of the voice LM")
        state.waiting.extend(codes)
        state.received += len(codes)

    def finish(self, state: Token2WavState) -> Iterator[Sound]:
        """All codes have been pushed: make the rest, one step per `next()`."""
        state.ended = True
        return self._work(state)

    def _work(self, state: Token2WavState) -> Iterator[Sound]:
        while True:
            if state.mel is not None:
                yield self.vocode(state)
            elif not self.flow_together((state,)):
                return
            else:
                yield Sound(np.zeros(0, np.float32), self._sounded(state))

    def flow_together(self, states: Sequence[Token2WavState]) -> list[int]:
        """One flow step for each of several different responses that has the codes for it and no mel waiting: which they were.

        A flow that can (`flow_steps.SharedFlow`) makes them in one pass.
        """
        due: list[tuple[int, int, int, bool]] = []
        for index, state in enumerate(states):
            if state.mel is None and (hop := self._due(state)) is not None:
                needed = state.flowed + hop + self.flow.config.encoder.lookahead
                final = state.ended and state.received <= needed
                given = state.received - len(state.waiting)
                due.append((index, hop, len(state.waiting) if final else needed - given, final))
        if not due:
            return []
        flows = [states[index].flow for index, *_ in due]
        codes = [torch.tensor(states[index].waiting[:count], dtype=torch.int64) for index, _, count, _ in due]
        finals = [final for *_, final in due]
        together = getattr(self.flow, "step_together", None)
        mels = together(flows, codes, finals) if together else list(map(self.flow.step, flows, codes, finals))
        for (index, hop, count, final), mel in zip(due, mels, strict=True):
            state = states[index]
            del state.waiting[:count]
            state.flowed = state.received if final else state.flowed + hop
            state.mel, state.flow_ended = mel, final
            if state.flowed > state.first:  # the first step's length is the grid's, not a hop
                state.hop = min(self.config.max_hop_codes, hop * self.config.growth)
        return [index for index, *_ in due]

    def _due(self, state: Token2WavState) -> int | None:
        """The hop whose codes and look-ahead are there, or after which nothing else will come; None when there is none."""
        if state.flow_ended or state.received == 0:
            return None
        hop = self._hop(state)
        needed = state.flowed + hop + self.flow.config.encoder.lookahead
        return hop if state.received >= needed or state.ended else None

    def _hop(self, state: Token2WavState) -> int:
        """Codes of the next flow step."""
        if state.flowed == 0:
            return state.first
        if state.ahead_s is not None and state.ahead_s < state.hop * self._code_s:
            return self.config.hop_codes
        return state.hop

    def vocode(self, state: Token2WavState) -> Sound:
        """Turn some of the waiting mel frames into sound; there must be some, or the flow have ended."""
        assert state.mel is not None
        size = self.config.vocoder_frames
        piece, rest = state.mel[:, :size], state.mel[:, size:]
        final = state.flow_ended and rest.shape[1] == 0
        samples = self.vocoder.step(state.vocoder, piece, final).float().cpu().numpy()
        state.mel = rest if rest.shape[1] else None
        state.samples += len(samples)
        return Sound(samples, self._sounded(state))

    def _sounded(self, state: Token2WavState) -> int:
        """Whole codes within the samples that were returned; at the end all, though the last may be a part of a sample short."""
        if state.flow_ended and state.mel is None:
            return state.received
        return int(state.samples // (self.vocoder.config.frame_samples * self.flow.config.ratio))
