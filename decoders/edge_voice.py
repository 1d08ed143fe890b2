"""The agent's own voice: MinMo's mouth at a small size, on a CPU.

    tokens, hidden -> output projector --.
    tokens -> reading -> phones ---------> pointer LM -> codes (21.5 Hz) -> flow -> latents -> HiFi-GAN -> level -> 24 kHz

Notable: sound begins seven codes after the fifth token, and where each word ends is known, not estimated: the pointer says which phone each
code begins in. Each `next()` is one small step (a few codes, one flow step or one vocoder step); steps without sound give an empty chunk,
so that the caller can listen in between and stop at any of them. The silence before the first word is left out.

Shapes: n tokens, h width of the LLM, d width of the voice LM.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoders.pointer_speech import PointerSpeech, SpeechState
from decoders.reading import ReadingState, TextReader
from decoders.sound_shaping import fade_in, fade_out, level
from decoders.token2wav import PreparedVoice, Token2Wav, Token2WavState
from decoders.voice import Speech, SpokenWord
from duplex.audio import AGENT_RATE_HZ, Samples

Embed = Callable[[Sequence[int]], Tensor]
"""LLM tokens [n] -> their embeddings [n, h]."""

_SILENT = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class EdgeSoundConfig:
    """What is done around codes and sound."""

    hidden_states: bool = False
    """Whether the LLM's hidden states colour how its tokens are said. With the first weights its words are understood less well so."""
    codes_per_step: int = 4
    """Most codes written between two chances for listening."""
    gain_db: float = 4.0
    """Brings the voice, which speaks at about -24 dBFS RMS, to -20."""
    fade_ms: float = 4.0
    """Fade at both edges of a reply."""
    lead_ms: float = 50.0
    """Sound kept before the code in which the first word begins."""

    def __post_init__(self) -> None:
        if self.codes_per_step < 1:
            raise ValueError(f"the voice's codes_per_step must be at least 1, not {self.codes_per_step}")
        if not -20.0 <= self.gain_db <= 20.0:
            raise ValueError(f"the voice's gain_db must be in -20 to 20, not {self.gain_db}")
        if not 0.0 <= self.fade_ms <= 100.0 or not 0.0 <= self.lead_ms <= 1000.0:
            raise ValueError("the voice's fade_ms must be in 0 to 100 and its lead_ms in 0 to 1000")


@dataclass(slots=True)
class EdgeVoiceState:
    """One response in the making, owned by the caller. Drop it to cancel."""

    reading: ReadingState
    speech: SpeechState
    wav: Token2WavState
    ends: deque[tuple[str, int]] = field(default_factory=deque)
    """Pieces of text that have been said, and the samples after which they had, the silence left out included."""
    left_out: int | None = None
    """Samples at the beginning that are not given out; None until the first word begins."""
    made: int = 0
    """Samples so far, those left out included."""
    given: int = 0
    """Samples given out."""


class EdgeVoice:
    """`decoders.voice.Voice` on a pointer LM and token2wav. Holds no state of a conversation; one thread at a time."""

    def __init__(
        self, speech: PointerSpeech, reader: TextReader, embed: Embed, token2wav: Token2Wav, config: EdgeSoundConfig | None = None
    ) -> None:
        """embed: the LLM's own table."""
        self.speech, self.reader, self.embed, self.token2wav = speech, reader, embed, token2wav
        self.config = config or EdgeSoundConfig()
        flow = token2wav.flow
        self._prepared = PreparedVoice(flow.open(torch.zeros(0, dtype=torch.int64), torch.zeros(0, flow.config.mel), None), 0)
        self._levels = speech.decoder.sizes.levels
        self.code_samples = float(flow.config.ratio * token2wav.vocoder.config.frame_samples)
        """Agent samples of a code."""

    def open(self, seed: int = 0, speaker: Any = None) -> EdgeVoiceState:
        """A fresh state for one response; equal seeds, tokens and hidden states give equal samples. This voice has one speaker."""
        if speaker is not None:
            raise ValueError("This profile's voice cannot be changed; choose a profile whose voice is cloned from a sample.")
        return EdgeVoiceState(self.reader.open(), self.speech.open(seed), self.token2wav.open(self._prepared, seed))

    def push(self, state: EdgeVoiceState, tokens: Sequence[int], hidden: NDArray[Any] | None = None) -> Iterator[Speech]:
        """Take LLM tokens and their hidden states [n, h], if there are any; yield the sound that can be made by now, step by step."""
        meant = None if hidden is None or not self.config.hidden_states else torch.from_numpy(np.asarray(hidden, np.float32))
        for index, token in enumerate(tokens):  # one by one, so that any grouping gives the very same rows
            own = None if meant is None else meant[index : index + 1]
            row = self.speech.decoder.project(self.embed((token,)), own)
            self.speech.take(state.speech, row, self.reader.push(state.reading, (token,)))
        yield from self._say(state)

    def finish(self, state: EdgeVoiceState) -> Iterator[Speech]:
        """The text has ended: yield the rest."""
        self.speech.finish(state.speech, self.reader.finish(state.reading))
        yield from self._say(state)
        rest = self.speech.rest(state.speech)
        if rest:
            state.ends.append((rest, round(state.speech.codes * self.code_samples)))
        held: Samples | None = None  # the last chunk is faded out
        for sound in self.token2wav.finish(state.wav):
            if len(sound.samples):
                if held is not None:
                    yield self._sound(state, held)
                held = sound.samples
            else:
                yield Speech(_SILENT, ())
        if held is not None:
            yield self._sound(state, held, last=True)
        if state.ends:
            yield Speech(_SILENT, (SpokenWord("".join(text for text, _ in state.ends), 0),))
            state.ends.clear()

    def _say(self, state: EdgeVoiceState) -> Iterator[Speech]:
        """Codes, and the sound that they make."""
        silent = 0
        while (spoken := self.speech.step(state.speech)) is not None:
            at = round((state.speech.codes - 1) * self.code_samples)
            state.ends.extend((text, at) for text in spoken.said)
            if state.left_out is None and not spoken.silent:
                lead = round(self.config.lead_ms * AGENT_RATE_HZ / 1000)
                state.left_out = max(at - lead, state.made)
            silent += 1
            for sound in self.token2wav.push(state.wav, (self._code(spoken.digits),)):
                silent = 0
                yield self._sound(state, sound.samples)
            if silent >= self.config.codes_per_step:
                silent = 0
                yield Speech(_SILENT, ())

    def _code(self, digits: Sequence[int]) -> int:
        """The number that the flow knows a code by."""
        code = 0
        for digit, size in zip(reversed(digits), reversed(self._levels), strict=True):
            code = code * size + digit
        return code

    def _sound(self, state: EdgeVoiceState, samples: Samples, last: bool = False) -> Speech:
        """Made samples as they go out, with the words that end in them."""
        before, state.made = state.made, state.made + len(samples)
        skip = len(samples) if state.left_out is None else min(max(state.left_out - before, 0), len(samples))
        sound = level(samples[skip:], self.config.gain_db)
        fade = round(self.config.fade_ms * AGENT_RATE_HZ / 1000)
        fade_in(sound, state.given, fade)
        if last:
            fade_out(sound, fade)
        state.given += len(sound)
        words = []
        while state.ends and (state.ends[0][1] <= state.made or last):
            text, end = state.ends.popleft()
            words.append(SpokenWord(text, min(max(end - before - skip, 0), len(sound))))
        return Speech(sound, tuple(words))
