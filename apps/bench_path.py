"""`duologue bench path`: the whole way from the end of a user's speech to sound, stage by stage, and with many conversations at once.

The jobs are those of a live response, in its order: transcript of the turn, prefill of the words that the LLM has not read, groups of LLM
tokens with their hidden states, codes, flow, vocoder. Several conversations end their turns at the same moment, which is the worst they
can do, and go on in turns, job by job, as on one model worker, or together where models can share a forward pass. With
`--random-weights` the full-size shapes run without a checkpoint: the work is the same, what comes out is noise. Lines are given as they
are found, so that a run that is cut short has said what it knew.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from agent.parts import Parts
from agent.profiles import Profile
from apps.bench_counts import conversation_counts
from apps.bench_path_parts import measure_parts
from apps.bench_path_turns import SOUND_S, Stages, Turn, in_turns, together
from apps.bench_soak import resident_mb
from decoders.token_voice import TokenVoice

BEGAN = time.monotonic()
"""About when the command began."""
REPLY_CODES = 100
"""Room for so many codes of each reply, which are 4 s, behind its prompt."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this measurement."""
    parser.add_argument("--random-weights", action="store_true", help="the full-size shapes, without checkpoints")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where the models run (default: as in the profile)")
    parser.add_argument("--conversations", default="1", metavar="N,N", help="how many at once, e.g. 1,4,16,64 (default: 1)")
    parser.add_argument(
        "--repeats",
        type=int,
        help="times that each is measured, after one for warming up (default: 2; on a GPU 10 for one, fewer for many)",
    )
    parser.add_argument(
        "--seconds-limit", type=float, metavar="N", help="begin nothing that would last beyond N seconds from the start"
    )


def run_path(profile: Profile, parts: Parts, args: argparse.Namespace) -> Iterator[str]:
    """Measure and give the report's lines. Raises ConfigError for a wrong list of conversations."""
    counts = conversation_counts(args.conversations)
    deadline = BEGAN + args.seconds_limit if args.seconds_limit else float("inf")
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        yield f"GPU: {card.name}, {card.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}."
    yield f"Loaded after {time.monotonic() - BEGAN:.1f} s. Resident memory: {resident_mb():.0f} MB{_gpu_memory()}."
    sharing = isinstance(parts.voice, TokenVoice)
    if sharing:
        yield from measure_parts(profile, parts, deadline)
    yield ""
    yield "conversations   how        first sound s (median, last)   seconds of work per second of sound   resident MB"
    last_s, last_count = 0.0, 1
    for count in counts:
        if time.monotonic() + 2 * last_s * count / last_count > deadline:
            yield f"Stopped before {count} at once: the time limit of {args.seconds_limit:g} s would be passed."
            break
        on_gpu = sharing and parts.voice.lm.qwen.device.type == "cuda"  # type: ignore[attr-defined]
        repeats = args.repeats or ((10 if count == 1 else 3 if count <= 4 else 2 if count <= 16 else 1) if on_gpu else 2)
        if on_gpu:
            yield from _make_room(parts, count)
        ways: list[tuple[str, Callable[[list[Turn]], float]]] = [("in turns", in_turns)]
        if sharing and (count > 1 or on_gpu):
            ways.insert(0, ("together", together))
        for name, way in ways:
            again = name != ways[0][0]
            if again and time.monotonic() + 1.5 * last_s > deadline:
                yield f"{count:>13}   in turns: not measured, for want of time"
                continue
            firsts: list[float] = []
            work, sound = 0.0, 0.0
            stages = Stages()
            for repeat in range((1 if again and count > 1 else repeats) + 1):
                if repeat == 0 and again:
                    continue  # what there is to warm up is warm
                stages = Stages() if repeat == 1 else stages
                one = time.monotonic()
                turns = [Turn(profile, parts, stages) for _ in range(count)]
                took = way(turns)
                if repeat:
                    firsts += [turn.first_s for turn in turns]
                    work, sound = work + took, sound + sum(turn.seconds for turn in turns)
                    last_s = max(time.monotonic() - one, 0.0 if again else 1e-3)
                turns.clear()  # so that their room is free for the next
                if repeat and time.monotonic() > deadline:
                    break
            first = f"{np.median(firsts):.3f}, {max(firsts):.3f}"
            share = work / max(sound, 1e-9)
            yield f"{count:>13}   {name:<8}   {first:>28}   {share:>36.2f}   {resident_mb():>11.0f}{_gpu_memory()}"
            yield from ("", f"Jobs with {count} at once, {name} (ms):", *_table(stages), "")
        last_count = count
    yield f"(Each conversation until {SOUND_S:g} s of sound. All users stop at the same moment.)"
    if sharing:
        yield from _troubles(parts)
    yield f"Done after {time.monotonic() - BEGAN:.1f} s."


def _make_room(parts: Parts, count: int) -> Iterator[str]:
    """Let so many conversations lie side by side on the GPU, the flow in bfloat16 if they do not fit otherwise, or not at all."""
    voice, thinker = parts.voice, parts.thinker.thinker  # type: ignore[attr-defined]
    assert isinstance(voice, TokenVoice)
    codes = len(voice.prompt.codes) // 25 * 25 + REPLY_CODES
    voice.share(1, 0)
    _forget()
    thinker.share(count)
    try:
        voice.share(count, codes)
        return
    except torch.OutOfMemoryError:
        pass
    voice.share(1, 0)
    _forget()
    try:
        voice.token2wav.flow.to(torch.bfloat16)
        voice.share(count, codes)
        yield f"(With {count} the flow is in bfloat16, since what it keeps does not fit in float32.)"
    except torch.OutOfMemoryError:
        voice.share(count, 0)
        yield f"(What the flow keeps of {count} does not fit: it runs for one after the other.)"


def _forget() -> None:
    """Give back what nobody holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _troubles(parts: Parts) -> Iterator[str]:
    voice, thinker = parts.voice, parts.thinker.thinker  # type: ignore[attr-defined]
    assert isinstance(voice, TokenVoice)
    for name, steps in (("LLM", thinker.steps), ("voice LM", voice.lm.steps), ("flow", voice.token2wav.flow)):
        if trouble := getattr(steps, "trouble", ""):
            yield f"The {name} ran WITHOUT CUDA graphs: {trouble}"


def _table(stages: Stages) -> list[str]:
    rows = [f"  {'stage':<26}{'jobs':>6}{'median':>10}{'p95':>10}{'total':>10}"]
    for stage, took in stages.took.items():
        values = 1000 * np.array(took)
        rows.append(
            f"  {stage:<26}{len(values):>6}{np.median(values):>10.1f}{np.percentile(values, 95):>10.1f}{values.sum():>10.0f}"
        )
    return rows


def _gpu_memory() -> str:
    if not torch.cuda.is_available():
        return ""
    return f", on the GPU {torch.cuda.max_memory_allocated() / 1e6:.0f} MB"
