"""`duologue bench conversation`: does it understand, is it understood, how fast does it answer and fall silent; beside a plain cascade."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.build import session_config
from agent.parts import Parts
from agent.profiles import Profile
from agent.scripted_user import Say
from agent.worker import LaneStats
from apps.bench_cascade import CascadeTurn, cascade_turn, reply_to, transcribe_whole
from apps.bench_clips import Clip, clips
from apps.bench_talks import Talk, talk
from duplex.audio import AGENT_RATE_HZ, USER_RATE_HZ, seconds
from duplex.events import Backchannel, ResponseEnded, ResponseStarted, SpeculationDiscarded, UserTranscript
from duplex.metrics import Spread, response_latency_s, stop_latency_s
from duplex.resample import resample


@dataclass(slots=True)
class Report:
    """All figures of one run."""

    answered: list[tuple[Clip, str, str, bool, bool]] = field(default_factory=list)  # clip, heard, reply, right, right when written
    latencies: list[float] = field(default_factory=list)
    reported: list[float] = field(default_factory=list)
    cascade: list[CascadeTurn] = field(default_factory=list)
    stops: list[float] = field(default_factory=list)
    missed_stops: int = 0
    backchannels: dict[str, list[str]] = field(default_factory=dict)
    understood: list[tuple[str, str]] = field(default_factory=list)  # meant, transcribed
    lanes: dict[str, LaneStats] = field(default_factory=dict)
    seconds: float = 0.0
    underruns: list[tuple[str, int]] = field(default_factory=list)  # the agent's words, frames
    late: int = 0
    given: int = 0
    discarded: int = 0

    def add(self, done: Talk) -> None:
        """Take a conversation's machine figures."""
        self.seconds += len(done.user_track) / USER_RATE_HZ
        if done.underruns:
            said = [e.heard for e in done.of(ResponseEnded) if isinstance(e, ResponseEnded)]
            self.underruns.append((" | ".join(said), done.underruns))
        self.late += done.user.late_frames
        self.given += len(done.of(ResponseStarted))
        self.discarded += len(done.of(SpeculationDiscarded))
        for name, stats in done.stats.items():
            total = self.lanes.setdefault(name, LaneStats())
            total.jobs += stats.jobs
            total.busy_s += stats.busy_s
            total.longest_s = max(total.longest_s, stats.longest_s)
            total.longest_wait_s = max(total.longest_wait_s, stats.longest_wait_s)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this measurement."""
    parser.add_argument(
        "--virtual", action="store_true", help="run on a virtual clock instead of in real time (faster, a little kinder)"
    )
    parser.add_argument("--quick", action="store_true", help="a quarter of the clips")


def run_conversation_bench(profile: Profile, parts: Parts, args: argparse.Namespace) -> list[str]:
    """Run everything and return the report's lines."""
    report = Report()
    paced, step = not args.virtual, 4 if args.quick else 1
    config = session_config(profile)
    context = parts.thinker.open()
    for clip in clips("questions")[::step]:
        _tell(f"question by {clip.voice}: {clip.text}")
        _question(profile, parts, clip, report, paced)
        report.cascade.append(cascade_turn(parts, config, clip.samples(), context))
    written: dict[str, str] = {}
    for index, (clip, heard, reply, right, _) in enumerate(report.answered):
        if clip.text not in written:
            written[clip.text] = parts.thinker.decode(reply_to(parts, config, clip.text, context, seed=1))
        report.answered[index] = (clip, heard, reply, right, contains(written[clip.text], clip.expect))
    longs = {c.voice: c for c in clips("long_questions")}
    for clip in clips("interruptions")[::step]:
        _tell(f"interruption by {clip.voice}: {clip.text}")
        _interruption(profile, parts, longs[clip.voice], clip, report, paced)
    for clip in clips("backchannels")[::step]:
        _tell(f"backchannel by {clip.voice}: {clip.text}")
        _backchannel(profile, parts, longs[clip.voice], clip, report, paced)
    return _lines(report, parts, paced)


def _tell(text: str) -> None:
    """Progress, on stderr: a run takes a quarter of an hour."""
    print(text, file=sys.stderr, flush=True)


def contains(reply: str, expect: tuple[str, ...]) -> bool:
    """The reply holds one of the words, as a whole word."""
    return any(re.search(rf"\b{re.escape(word)}\b", reply.lower()) for word in expect)


def _question(profile: Profile, parts: Parts, clip: Clip, report: Report, paced: bool) -> None:
    done = talk(profile, parts, [Say(clip.samples(), name=clip.text)], paced=paced, tail_s=1.0, patience_s=6.0)
    report.add(done)
    finals = [e.text for e in done.of(UserTranscript) if isinstance(e, UserTranscript) and e.final]
    replies = [e.heard for e in done.of(ResponseEnded) if isinstance(e, ResponseEnded)]
    reply = " ".join(replies)
    report.answered.append((clip, " | ".join(finals), reply, contains(reply, clip.expect), False))
    latency = response_latency_s(done.agent_track, done.user.said[0].end)
    if latency is not None:
        report.latencies.append(latency)
    report.reported += [e.latency_s for e in done.of(ResponseStarted) if isinstance(e, ResponseStarted) and e.latency_s is not None]
    if reply:
        sound = np.asarray(resample(done.agent_track, AGENT_RATE_HZ, USER_RATE_HZ), np.float32)
        report.understood.append((reply, transcribe_whole(parts, _trim(sound))))


def _trim(sound: Any) -> Any:
    loud = np.flatnonzero(np.abs(sound) > 1e-3)
    return sound[max(loud[0] - 1600, 0) : loud[-1] + 1600] if len(loud) else sound


def _interruption(profile: Profile, parts: Parts, asked: Clip, clip: Clip, report: Report, paced: bool) -> None:
    script = [Say(asked.samples(), name=asked.text), Say(clip.samples(), "speaking", 1.6, clip.text)]
    done = talk(profile, parts, script, paced=paced, hang_up_s=3.0, patience_s=6.0)
    report.add(done)
    latency = stop_latency_s(done.agent_track, done.user.said[1].start)
    ended = [e for e in done.of(ResponseEnded) if isinstance(e, ResponseEnded)]
    if latency is None or not ended or ended[0].reason != "interrupted":
        report.missed_stops += 1
    else:
        report.stops.append(latency)


def _backchannel(profile: Profile, parts: Parts, asked: Clip, clip: Clip, report: Report, paced: bool) -> None:
    script = [Say(asked.samples(), name=asked.text), Say(clip.samples(), "speaking", 1.6, clip.text)]
    done = talk(profile, parts, script, paced=paced, hang_up_s=3.0, patience_s=6.0)
    report.add(done)
    if any(isinstance(e, ResponseEnded) and e.reason == "interrupted" for e in done.events):
        outcome = "stopped"
    elif done.of(Backchannel):
        floors = {getattr(e, "floor", "") for e in done.events if e.at >= done.user.said[1].start}
        outcome = "held, then went on" if "held" in floors else "talked through"
    else:
        outcome = "not noticed"
    report.backchannels.setdefault(clip.text, []).append(outcome)


def _lines(report: Report, parts: Parts, paced: bool) -> list[str]:
    from jiwer import process_words
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    lines = [f"Conversations {'in real time' if paced else 'on a virtual clock'}, {report.seconds:.0f} s of talk.", ""]
    right, written = sum(a[3] for a in report.answered), sum(a[4] for a in report.answered)
    for clip, heard, reply, ok, ok_written in report.answered:
        mark = f"{'right' if ok else 'WRONG'}{'' if ok_written else ' (written: wrong)'}"
        lines.append(f"  {clip.voice}  {mark:<24} heard: {heard}  ->  {reply.strip()[:110]}")
    total = len(report.answered)
    lines += [
        "",
        f"Understanding: {right} of {total} spoken questions answered right; {written} of {total} when the LLM reads them.",
    ]
    latency, told = Spread.of(report.latencies), Spread.of(report.reported)
    cascade = Spread.of([c.latency_s for c in report.cascade])
    lines.append(
        f"Response latency (in the sound): median {latency.median:.2f} s, p95 {latency.p95:.2f} s, worst {latency.worst:.2f} s "
        f"(n={latency.count}); as the events tell it: median {told.median:.2f} s."
    )
    parts_of = [np.median([getattr(c, k) for c in report.cascade]) for k in ("listen_s", "think_s", "speak_s")]
    lines.append(
        f"Plain cascade, same weights: median {cascade.median:.2f} s, p95 {cascade.p95:.2f} s (0.70 silence + "
        f"{parts_of[0]:.2f} transcribe + {parts_of[1]:.2f} generate + {parts_of[2]:.2f} synthesise); ours is "
        f"{cascade.median / latency.median:.1f}x faster."
    )
    prepared = report.given + report.discarded
    lines.append(
        f"Speculation: of {prepared} responses that were prepared {report.discarded} were thrown away "
        f"({100 * report.discarded / max(prepared, 1):.0f} %), because the user went on or nothing had been said."
    )
    if report.stops:
        stop = Spread.of(report.stops)
        lines.append(
            f"Stop latency (onset to silence, in the sound): median {1000 * stop.median:.0f} ms, p95 {1000 * stop.p95:.0f} ms, "
            f"worst {1000 * stop.worst:.0f} ms (n={stop.count}); {report.missed_stops} interruptions did not stop the agent."
        )
    for text, outcomes in report.backchannels.items():
        lines.append(f"Backchannel {text!r}: {', '.join(outcomes)}.")
    normal = EnglishTextNormalizer({})  # type: ignore[no-untyped-call]
    pairs = [(normal(a), normal(b)) for a, b in report.understood]
    error = process_words([a for a, _ in pairs], [b for _, b in pairs])
    lines.append(f"Understood: WER {100 * error.wer:.1f} % by Whisper tiny.en over {len(pairs)} replies of the agent.")
    for (meant, heard), (a, b) in zip(report.understood, pairs, strict=True):
        if a != b:
            lines.append(f"    said: {meant.strip()}\n    read: {heard.strip()}")
    lines += ["", "Stage      jobs   busy s   rtf     longest job   longest wait", *_stages(report), _hearing(parts)]
    lines += [f"Underran by {frames} frames of 20 ms: {said.strip()}" for said, frames in report.underruns]
    lines.append(f"Underruns: {sum(n for _, n in report.underruns)}; frames more than 100 ms late: {report.late}.")
    return lines


def _stages(report: Report) -> list[str]:
    return [
        f"{name:<9} {s.jobs:>5}   {s.busy_s:>6.1f}   {s.busy_s / report.seconds:.3f}   "
        f"{1000 * s.longest_s:>8.0f} ms   {1000 * s.longest_wait_s:>8.0f} ms"
        for name, s in sorted(report.lanes.items())
    ]


def _hearing(parts: Parts) -> str:
    """Cost of what runs on every frame in the event loop: features and voice activity."""
    import time

    from duplex.audio import USER_FRAME

    audio = clips("long_questions")[0].samples()
    ear, vad = parts.ears.open(), parts.vad.open()
    took = []
    for at in range(0, len(audio) - USER_FRAME, USER_FRAME):
        began = time.perf_counter()
        frame = audio[at : at + USER_FRAME]
        parts.ears.feed(ear, frame)
        parts.vad.feed(vad, frame)
        took.append(time.perf_counter() - began)
    whole = f"{len(took)} frames, rtf {sum(took) / seconds(len(audio)):.3f}"
    frame_ms = f"{1000 * float(np.median(took)):.2f} ms a frame of 20 ms, worst {1000 * max(took):.1f} ms"
    return f"hear      (in the event loop) {frame_ms}; {whole}"
