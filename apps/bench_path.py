"""`duologue bench path`: the whole way from the end of a user's speech to sound, stage by stage, and with many conversations at once.

The jobs are those of a live response, in its order: transcript of the turn, prefill of the words that the LLM has not read, groups of LLM
tokens with their hidden states, codes, flow, vocoder. Several conversations take turns job by job, as they do on one model worker. With
`--random-weights` the full-size shapes run without a checkpoint: the work is the same, what comes out is noise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from agent.build import session_config
from agent.chat import Chat
from agent.chat_template import Message
from agent.parts import Parts
from agent.profiles import Profile
from apps.bench_clips import clips
from apps.bench_counts import conversation_counts
from apps.bench_soak import resident_mb
from duplex.audio import AGENT_RATE_HZ, USER_RATE_HZ
from duplex.errors import ConfigError

T = TypeVar("T")
READ_BEFORE_S = 0.6
"""What the user said in the last so many seconds is what the LLM has not read when they stop (`session.interim_s`)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this measurement."""
    parser.add_argument("--random-weights", action="store_true", help="the full-size shapes, without checkpoints")
    parser.add_argument("--conversations", default="1", metavar="N,N", help="how many at once, e.g. 1,4,16,64 (default: 1)")
    parser.add_argument("--repeats", type=int, default=2, help="responses measured per conversation, after one for warming up")


@dataclass
class Stages:
    """How long each kind of job took, in seconds."""

    took: dict[str, list[float]] = field(default_factory=dict)

    def timed(self, stage: str, job: Callable[[], T]) -> T:
        """Run a job and note its time."""
        began = time.perf_counter()
        result = job()
        self.took.setdefault(stage, []).append(time.perf_counter() - began)
        return result


class Turn:
    """One conversation that has just heard its user out, up to the first sound of the answer and on to a second of it."""

    def __init__(self, profile: Profile, parts: Parts, stages: Stages) -> None:
        if not isinstance(parts.thinker, Chat):
            raise ConfigError("duologue bench path measures a language model; this profile has none.")
        self.parts, self.stages, self.config = parts, stages, session_config(profile).response
        self.thinker: Chat = parts.thinker
        clip = clips("questions")[0]
        ear = parts.ears.open()
        parts.ears.feed(ear, clip.samples())
        self.window = parts.ears.window(ear)
        self.context = self.thinker.open()
        words = clip.text.split()
        read = round(len(words) * (1 - READ_BEFORE_S * USER_RATE_HZ / len(clip.samples())))
        self.heard = clip.text
        before = self.thinker.render(
            self.config.system_prompt, [Message("user", " ".join(words[:read]))], open_assistant=False, open_last=True
        )
        self.thinker.thinker.sync(self.context, before)
        self.seconds = 0.0
        """Sound made so far."""
        self.first_s = 0.0
        """When the first of it was there, on the clock of the caller."""

    def jobs(self, until_s: float) -> Iterator[None]:
        """One job per `next`, until `until_s` seconds of sound are there."""
        timed, thinker, voice = self.stages.timed, self.thinker, self.parts.voice
        timed("transcribe", lambda: self.parts.ears.transcribe(self.window))
        yield
        keys = thinker.render(self.config.system_prompt, [Message("user", self.heard)], open_assistant=True)
        steps = thinker.sync_steps(self.context, keys)
        while timed("prefill", lambda: next(steps, None)) is not None:
            yield
        sampler, state = thinker.sampler(0), voice.open(0)
        for _ in range(400):
            tokens: list[int] = []
            states: list[Any] = []
            while len(tokens) < self.config.group_tokens:
                step = timed("LLM token", lambda: thinker.step(self.context, sampler))
                yield
                if step.token in thinker.eos_ids:
                    continue  # random weights end anywhere; what is measured is the work
                tokens.append(step.token)
                states.append(step.hidden)
            chunks = voice.push(state, tokens, np.stack(states))
            while True:
                began = time.perf_counter()
                chunk = next(chunks, None)
                took = time.perf_counter() - began
                if chunk is None:
                    break
                sounds = len(chunk.samples) / AGENT_RATE_HZ
                self.stages.took.setdefault("vocoder, or a VITS chunk" if sounds else "codes or flow", []).append(took)
                self.seconds += sounds
                yield
                if self.seconds >= until_s:
                    return
            if thinker.thinker.room(self.context) < 2 * self.config.group_tokens:
                return


def run_path(profile: Profile, parts: Parts, args: argparse.Namespace) -> list[str]:
    """Measure and return the report's lines. Raises ConfigError for a wrong list of conversations."""
    lines = [f"Resident memory with the weights loaded: {resident_mb():.0f} MB{_gpu_memory()}.", ""]
    lines.append("conversations   first sound s (median, last)   seconds of work per second of sound   resident MB")
    tables: list[str] = []
    for count in conversation_counts(args.conversations):
        firsts: list[float] = []
        work, sound = 0.0, 0.0
        stages = Stages()
        for repeat in range(args.repeats + 1):
            stages = Stages() if repeat == 1 else stages
            turns = [Turn(profile, parts, stages) for _ in range(count)]
            began = time.perf_counter()
            _first_sounds(turns, began)
            took = time.perf_counter() - began
            if repeat:
                firsts += [turn.first_s for turn in turns]
                work, sound = work + took, sound + sum(turn.seconds for turn in turns)
        first = f"{np.median(firsts):.3f}, {max(firsts):.3f}"
        lines.append(f"{count:>13}   {first:>29}   {work / max(sound, 1e-9):>36.2f}   {resident_mb():>11.0f}")
        tables += ["", f"Jobs with {count} at once (ms):", *_table(stages)]
    return lines + tables


def _first_sounds(turns: list[Turn], began: float) -> None:
    """Let all turns take jobs in rotation until each has two seconds of sound, noting when each had its first."""
    running = {index: turn.jobs(2.0) for index, turn in enumerate(turns)}
    while running:
        for index, jobs in list(running.items()):
            turn = turns[index]
            alive = next(jobs, "ended") != "ended"
            if turn.seconds and not turn.first_s:
                turn.first_s = time.perf_counter() - began
            if not alive:
                del running[index]


def _table(stages: Stages) -> list[str]:
    rows = [f"  {'stage':<26}{'jobs':>6}{'median':>10}{'p95':>10}{'total':>10}"]
    for stage, took in stages.took.items():
        values = 1000 * np.array(took)
        rows.append(
            f"  {stage:<26}{len(values):>6}{np.median(values):>10.1f}{np.percentile(values, 95):>10.1f}{values.sum():>10.0f}"
        )
    return rows


def _gpu_memory() -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    return f", on the GPU {torch.cuda.max_memory_allocated() / 1e6:.0f} MB"
