"""MinMo's mouth: LLM tokens and hidden states -> output projector -> voice-token LM -> token2wav.

    tokens, hidden -> project -> [n, d] -> voice LM -> codes (25 Hz) -> flow -> mel -> vocoder -> 24 kHz

Nothing waits for a clause: five tokens give fifteen codes, and sound begins as soon as the flow has a chunk and its look-ahead. Each
`next()` is one small step (a few codes, one flow step, or one vocoder step); steps that make no sound give an empty chunk, so that the
caller can listen in between and stop at any of them. Word ends are estimated (`decoders.word_clock`).

A speaker is a voice prompt that the flow has read, once; each response goes on from a copy of what it made of it. The voice LM may read
the sample too, and then speaks in its manner as well as in its timbre, but late: text and codes are interleaved five to fifteen, so
before the first new code the text must have caught up with the sample's codes, by about four tokens of the reply per second of sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from decoders import text_stream
from decoders.flow_steps import SharedFlow
from decoders.ras import USUAL, RasConfig
from decoders.text_stream import Detokenize, TextStream
from decoders.token2wav import PreparedVoice, Sound, Token2Wav, Token2WavState
from decoders.voice import Speech, SpokenWord
from decoders.voice_lm import VoiceLM
from decoders.voice_lm_state import VoiceContextFull, VoiceLMState
from decoders.voice_prompt import VoicePrompt
from decoders.word_clock import CODES_PER_TOKEN, WordClock

Project = Callable[[Sequence[int], NDArray[Any] | None], Tensor]
"""LLM tokens [n] and their hidden states [n, h] (None where nobody has them) -> [n, d] text positions of the voice LM."""
Encode = Callable[[str], list[int]]
"""Text to the token ids of the voice LM."""

_SILENT = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice that has been read; only ever copied from, so responses may share it."""

    lm: VoiceLMState
    """The voice LM behind the prompt."""
    wav: PreparedVoice
    """The flow behind the prompt."""
    codes_per_token: float
    """How fast the sample speaks."""


@dataclass(slots=True)
class TokenVoiceState:
    """One response in the making."""

    speaker: Speaker
    seed: int
    lm: VoiceLMState
    wav: Token2WavState
    clock: WordClock
    tokens: TextStream = field(default_factory=TextStream)
    samples: int = 0
    """Agent samples given out."""


class TokenVoice:
    """`decoders.voice.Voice` on a voice-token LM and token2wav. Holds no state of a conversation; one thread at a time."""

    def __init__(
        self,
        lm: VoiceLM,
        project: Project,
        token2wav: Token2Wav,
        encode: Encode,
        detokenize: Detokenize,
        prompt: VoicePrompt,
        sampling: RasConfig = USUAL,
        manner: bool = False,
    ) -> None:
        """prompt: the agent's own voice. manner: whether the voice LM reads samples too."""
        self.lm, self.project, self.token2wav = lm, project, token2wav
        self.encode, self.detokenize, self.sampling, self.manner = encode, detokenize, sampling, manner
        self.prompt = prompt
        self.speaker = self.read(prompt)

    def share(self, responses: int, codes: int, graphs: bool = True) -> None:
        """Make room for so many responses that take steps together, the agent's own voice besides. Speakers are to be read again.

        codes: room of each in the flow, prompt included; 0 leaves the flow as it is. graphs: record steps where there is a GPU.
        """
        self.token2wav.share(0, 0)
        self.lm.share(responses + 1, graphs)
        self.speaker = self.read(self.prompt)  # and what the speaker of before took is let go
        if codes:
            self.token2wav.share(responses + 1, codes, graphs)
            self.speaker = replace(self.speaker, wav=self.token2wav.prepare(self.prompt))
        assert self.lm.steps is not None
        self.lm.steps.prepare(1, 1024)
        if isinstance(self.token2wav.flow, SharedFlow):
            self.token2wav.flow.prepare(1, codes)

    def read(self, prompt: VoicePrompt) -> Speaker:
        """A speaker for `open`, made once per voice. Raises ValueError for a prompt that does not fit, saying how."""
        ids = self.encode(prompt.text)
        known = (self.lm.embed(ids), prompt.codes.tolist()) if self.manner else ()
        lm = self.lm.open(*known, sampling=self.sampling)
        pace = len(prompt.codes) / len(ids) if ids else CODES_PER_TOKEN
        return Speaker(lm, self.token2wav.prepare(prompt), pace)

    def open(self, seed: int = 0, speaker: Speaker | None = None) -> TokenVoiceState:
        """A fresh state for one response. Equal seeds, speakers and tokens give equal samples. ValueError for another kind of speaker."""
        chosen = self.speaker if speaker is None else speaker
        if not isinstance(chosen, Speaker):
            raise ValueError(f"this voice takes speakers that its `read` made of a sample, not {type(speaker).__name__}")
        lm, wav = self.lm.fork(chosen.lm, seed), self.token2wav.open(chosen.wav, seed)
        return TokenVoiceState(chosen, seed, lm, wav, WordClock(chosen.codes_per_token))

    def push(self, state: TokenVoiceState, tokens: Sequence[int], hidden: NDArray[Any] | None = None) -> Iterator[Speech]:
        """Take LLM tokens and their hidden states [n, h]; yield the sound that can be made by now, step by step."""
        for token in tokens:
            state.clock.add(text_stream.push(state.tokens, [token], self.detokenize), 1)
        if tokens:
            yield from self._say(state, self.lm.push(state.lm, self.project(tokens, hidden)))

    def push_together(
        self, states: Sequence[TokenVoiceState], tokens: Sequence[Sequence[int]], hidden: Sequence[NDArray[Any] | None]
    ) -> Iterator[list[tuple[int, Speech]]]:
        """`push` for several different responses: forward passes are shared, and each `next()` is one of them, or one vocoder step.

        Yields whose sound a step made, by index, with the sound; often none. All that can be made is made before the iterator ends.
        """
        for state, new, rows in zip(states, tokens, hidden, strict=True):
            for token in new:
                state.clock.add(text_stream.push(state.tokens, [token], self.detokenize), 1)
            if new:
                self.lm.take(state.lm, self.project(new, rows))
        while due := [state for state in states if self._due(state)]:
            for state, codes in zip(due, self.lm.write_together([state.lm for state in due]), strict=True):
                self.token2wav.take(state.wav, codes)
            yield []
        while self.token2wav.flow_together([state.wav for state in states]):
            yield []
            for index, state in enumerate(states):
                while state.wav.mel is not None:
                    yield [(index, self._speech(state, self.token2wav.vocode(state.wav)))]

    def _due(self, state: TokenVoiceState) -> bool:
        try:
            return self.lm.due(state.lm)
        except VoiceContextFull:  # as in `_say`
            rest, state.lm = state.lm.text, self.lm.fork(state.speaker.lm, state.seed)
            self.lm.take(state.lm, rest)
            return self.lm.due(state.lm)

    def finish(self, state: TokenVoiceState) -> Iterator[Speech]:
        """The text has ended: yield the rest."""
        state.clock.add(text_stream.finish(state.tokens, self.detokenize), 0)
        yield from self._say(state, self.lm.finish(state.lm), ending=True)
        state.clock.end_at(state.wav.received, state.samples // self._code_samples)
        for sound in self.token2wav.finish(state.wav):
            yield self._speech(state, sound)
        if rest := state.clock.rest():
            yield Speech(_SILENT, (SpokenWord(rest, 0),))

    def _say(self, state: TokenVoiceState, steps: Iterator[list[int]], ending: bool = False) -> Iterator[Speech]:
        while True:
            try:
                codes = next(steps, None)
            except VoiceContextFull:  # after minutes of one reply: go on in the same voice, from its prompt
                rest, state.lm = state.lm.text, self.lm.fork(state.speaker.lm, state.seed)
                steps = self.lm.push(state.lm, rest)
                steps = chain(steps, self.lm.finish(state.lm)) if ending else steps
                continue
            if codes is None:
                return
            yield Speech(_SILENT, ())
            for sound in self.token2wav.push(state.wav, codes):
                yield self._speech(state, sound)

    def _speech(self, state: TokenVoiceState, sound: Sound) -> Speech:
        """The sound with the words that end in it."""
        before, state.samples = state.samples, state.samples + len(sound.samples)
        words = tuple(
            SpokenWord(text, min(max(round(end * self._code_samples) - before, 0), len(sound.samples)))
            for text, end in state.clock.until(sound.codes_until)
        )
        return Speech(sound.samples, words)

    @property
    def _code_samples(self) -> int:
        return int(self.token2wav.flow.config.ratio * self.token2wav.vocoder.config.frame_samples)
