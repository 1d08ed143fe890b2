"""Each model of the path by itself: with recorded steps (CUDA graphs) and without, in this run and on this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from agent.parts import Parts
from agent.profiles import Profile
from apps.bench_path_turns import Stages, Turn, settle
from decoders.flow_steps import SharedFlow
from decoders.token_voice import TokenVoice
from encoders.input_projector import InputProjector, InputProjectorConfig

SPEECH_S = 5.0
"""Seconds of speech that are read at once for the figure per second."""


def measure_parts(profile: Profile, parts: Parts, deadline: float) -> Iterator[str]:
    """Lines of the report: milliseconds, the median of several, for one conversation."""
    assert isinstance(parts.voice, TokenVoice)
    yield ""
    yield "Part by part, one conversation (ms, median of repeats; the first is not counted)"
    for measure in (_hearing, _thinking, _codes, _flow, _vocoder):
        if time.monotonic() > deadline:
            yield "  (no time left for the others)"
            return
        try:
            yield from measure(profile, parts)
        except (RuntimeError, AttributeError) as error:  # one part's trouble is no reason to measure none of the others
            yield f"  {measure.__name__[1:]}: failed, {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _median_ms(job: Callable[[], Any], repeats: int = 10) -> float:
    took = []
    for repeat in range(repeats + 1):
        settle()
        began = time.perf_counter()
        job()
        settle()
        if repeat:
            took.append(1000 * (time.perf_counter() - began))
        if repeat and sum(took) > 4000:  # slow machines need no ten
            break
    return float(np.median(took))


def _line(name: str, ms: float, note: str = "") -> str:
    return f"  {name:<58}{ms:>9.2f}{'   ' + note if note else ''}"


def _hearing(profile: Profile, parts: Parts) -> Iterator[str]:
    turn = Turn(profile, parts, Stages())
    yield _line("transcript of the turn", _median_ms(lambda: parts.ears.transcribe(turn.window)))
    thinker, ears = turn.thinker.thinker, parts.ears
    if not hasattr(ears, "states"):
        return
    states = ears.states(turn.window)
    device, dtype = thinker.device, thinker.dtype
    with torch.device(device):
        sizes = InputProjectorConfig(encoder_dim=states.shape[1], llm_dim=thinker.hidden_size)
        projector = InputProjector(sizes).requires_grad_(False).train(False).to(dtype)
    count = round(SPEECH_S * 1000 / 60)
    states = states.repeat(-(-count // len(states)), 1)[:count].to(device, dtype)

    def read() -> None:
        with torch.inference_mode():
            rows = projector(states[None])[0][0]
        context = thinker.open()
        thinker.extend(context, rows, [-1 - index for index in range(len(rows))])

    ms = _median_ms(read)
    yield _line("prefill per second of speech, by MinMo's input projector", ms / SPEECH_S, f"{SPEECH_S:g} s at once took {ms:.1f}")
    keys = thinker.encode("x" * 600)[:600]
    context = thinker.open()

    def read_text() -> None:
        context.truncate(0)
        thinker.sync(context, keys[:32])

    yield _line("prefill of 32 tokens", _median_ms(read_text))


def _thinking(profile: Profile, parts: Parts) -> Iterator[str]:
    def tokens(turn: Turn) -> None:
        for _ in range(5):
            turn.thinker.step(turn.context, turn.sampler)

    turn = Turn(profile, parts, Stages())
    thinker = turn.thinker.thinker
    if thinker.steps is not None:
        how = "recorded" if thinker.steps.recording else "not recorded"
        yield _line("LLM token", _median_ms(lambda: tokens(turn)) / 5, f"{how}, drawing included")
        kept, thinker.steps = thinker.steps, None
        other = Turn(profile, parts, Stages())
        yield _line("LLM token, launched kernel by kernel", _median_ms(lambda: tokens(other)) / 5)
        thinker.steps = kept
    else:
        yield _line("LLM token", _median_ms(lambda: tokens(turn)) / 5, "drawing included")


def _codes(profile: Profile, parts: Parts) -> Iterator[str]:
    voice = parts.voice
    assert isinstance(voice, TokenVoice)
    lm = voice.lm
    text = torch.randn(5, lm.hidden_size, device=lm.qwen.device)

    def groups(state: Any) -> Callable[[], None]:
        def run() -> None:
            for _ in lm.push(state, text):
                pass

        return run

    how = "recorded" if lm.steps is not None and lm.steps.recording else "not recorded"
    yield _line("15 codes", _median_ms(groups(lm.open(seed=0))), f"{how}, text and drawing included")
    if lm.steps is not None:
        kept, lm.steps = lm.steps, None
        yield _line("15 codes, launched kernel by kernel", _median_ms(groups(lm.open(seed=0))))
        lm.steps = kept


def _flow(profile: Profile, parts: Parts) -> Iterator[str]:
    voice = parts.voice
    assert isinstance(voice, TokenVoice)
    shared = voice.token2wav.flow
    flow = shared.flow if isinstance(shared, SharedFlow) else shared
    chunk, ahead = flow.config.chunk, flow.config.encoder.lookahead
    codes = torch.randint(0, flow.config.vocabulary, (chunk + ahead,), generator=torch.Generator().manual_seed(0))
    first = chunk - voice.speaker.wav.codes % chunk + ahead

    def chunks(model: Any, count: int) -> Callable[[], None]:
        voice_state = voice.token2wav.prepare(voice.prompt).flow if model is shared else _opened(model, voice)

        def run() -> None:
            model.step(voice_state.fork(), codes[:count] if count < len(codes) else codes, False)

        return run

    name = f"flow, first chunk of a reply, {flow.config.steps} steps"
    kind = str(flow.encoder_proj.weight.dtype).removeprefix("torch.")
    if isinstance(shared, SharedFlow):
        how = "recorded" if shared.recording else "not recorded"
        yield _line(name, _median_ms(chunks(shared, first)), f"{kind}, {how}")
    yield _line(f"{name}, launched kernel by kernel", _median_ms(chunks(flow, first), 5), kind)
    if isinstance(shared, SharedFlow) and kind == "float32":
        half = SharedFlow(copy.deepcopy(flow).to(torch.bfloat16), 2, shared.slots.codes)
        yield _line(name, _median_ms(chunks(half, first)), f"bfloat16, {'recorded' if half.recording else 'not recorded'}")


def _opened(model: Any, voice: TokenVoice) -> Any:
    used = voice.speaker.wav.codes
    prompt = voice.prompt
    return model.open(prompt.codes[-used:], prompt.mel[-used * model.config.ratio :], prompt.speaker)


def _vocoder(profile: Profile, parts: Parts) -> Iterator[str]:
    voice = parts.voice
    assert isinstance(voice, TokenVoice)
    vocoder: Any = voice.token2wav.vocoder
    mel = torch.randn(vocoder.config.mel_bands, 100, device=voice.lm.qwen.device)

    def sound(frames: int) -> Callable[[], None]:
        def run() -> None:
            vocoder.step(vocoder.open(0), mel[:, :frames], False).cpu()

        return run

    yield _line("vocoder, first 24 frames", _median_ms(sound(24)))
    yield _line("vocoder, 100 frames (2 s)", _median_ms(sound(100)))
