"""`duologue bench voice`: how well the agent's own voice speaks, beside the bridge voice and beside the teacher of both.

Held-out replies and hard texts are spoken by every row and judged alike (apps/bench_voice_judges.py). What was judged is kept in the work
folder by the fingerprint of all that made it, so that a second run judges only what changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

from agent import weight_cache, weights
from agent.parts import Parts
from agent.profiles import Profile
from apps.bench_clips import clips
from apps.bench_voice_cast import Cast, clock, load_cast
from apps.bench_voice_judges import Errors, Judged, Judges, errors, failure, prepared, similarity
from apps.bench_voice_pictures import Pair, draw
from apps.bench_voice_rows import Row
from apps.bench_voice_texts import KINDS, HeldOut, Kind, chosen
from duplex.audio import USER_RATE_HZ, Samples
from duplex.errors import ConfigError, OutputError

JUDGES_VERSION = 1
"""Goes up when the judges' figures change; older judgements are then made anew."""
DRAWN, MOST_DRAWN = 5, 90
"""Replies that are drawn, and characters that they have at most."""
TAKES = 40
"""Replies of a second take of the teacher, whose mean embedding is its voice."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this measurement."""
    parser.add_argument("--count", type=int, default=None, metavar="N", help="only N texts of each kind, for a quick look")
    parser.add_argument("--mos", type=int, default=100, metavar="N", help="replies that are rated for sound as well (default: 100)")
    parser.add_argument(
        "--rows", default=None, metavar="NAMES", help="only these rows, by parts of their names with commas between"
    )
    parser.add_argument("--jobs", type=int, default=1, help="texts that are spoken and judged side by side (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn by chance (default: 0)")
    parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="keep every sound there, as WAV")
    parser.add_argument(
        "--pictures", type=Path, default=None, metavar="DIR", help="draw five replies beside the teacher's: DIR/voice.png"
    )
    parser.add_argument("--clock", action="store_true", help="also starts, speed, a minute beside the LLM, joins (quiet machine!)")
    parser.add_argument("--clock-alone", action="store_true", help="only that")
    parser.add_argument("--work", type=Path, default=None, metavar="DIR", help="where judgements are kept (default: in the cache)")
    parser.add_argument("--wait-while", type=Path, default=None, metavar="FILE", help="pause as long as this file exists")


@dataclass(frozen=True, slots=True)
class Spoken:
    """One text as one row spoke it."""

    text: HeldOut
    judged: Judged
    errors: Errors


class Bench:
    """Speaks, judges, and remembers."""

    def __init__(self, judges: Judges, args: argparse.Namespace) -> None:
        """args: as `add_arguments` has them. Raises ConfigError for a wrong count, OutputError for folders that cannot be made."""
        if args.jobs < 1 or (args.count is not None and args.count < 1) or args.mos < 0:
            raise ConfigError("--jobs and --count take numbers from 1 on, --mos from 0 on.")
        self._judges, self._args = judges, args
        self._folder: Path = args.work or weight_cache.home() / "bench-voice"
        self._local = threading.Lock()
        for folder in (self._folder, args.keep):
            if folder is not None:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise OutputError(f"{folder} could not be made: {error.strerror or error}.") from error

    def spoken(self, row: Row, texts: Sequence[HeldOut], *, seed: int | None = None, mos: int = 0) -> list[Spoken]:
        """Every text by one row, the first `mos` of them rated for sound."""
        seed = self._args.seed if seed is None else seed
        began, done = time.monotonic(), 0

        def one(item: tuple[int, HeldOut]) -> Spoken:
            nonlocal done
            while self._args.wait_while is not None and self._args.wait_while.exists():
                time.sleep(1.0)
            index, text = item
            judged = self._judged(row, text, seed, mos=index < mos)
            with self._local:
                done += 1
                if done % 20 == 0 or done == len(texts):
                    took = time.monotonic() - began
                    print(f"{row.name}, {text.kind}: {done} of {len(texts)} in {took:.0f} s", file=sys.stderr, flush=True)
            return Spoken(text, judged, errors(text.text, judged.heard))

        with ThreadPoolExecutor(self._args.jobs) as pool:
            return list(pool.map(one, enumerate(texts)))

    def embedding(self, sound: Samples) -> tuple[float, ...]:
        """Whose voice a sound at 16 kHz is; () where there is no speech."""
        return self._judges.embedding(sound)

    def _judged(self, row: Row, text: HeldOut, seed: int, *, mos: bool) -> Judged:
        name = hashlib.sha256(repr((row.fingerprint, text.text, text.question, seed)).encode()).hexdigest()
        file = self._folder / f"{name}.json"
        known = _read(file)
        if known is not None and (known.overall is not None or not mos) and self._args.keep is None:
            return known
        raw = row.speak(text, seed)
        sound = prepared(raw, row.rate_hz)
        if self._args.keep is not None:
            _keep(self._args.keep, row, text, raw)
        if known is None:
            known = self._judges.judge(sound, mos=mos)
        elif mos and known.overall is None and (opinion := self._judges.opinion(sound)) is not None:
            known = Judged(known.heard, known.seconds, known.embedding, opinion.overall, opinion.signal, opinion.background)
        weight_cache.write_atomically(file, json.dumps({"version": JUDGES_VERSION, **asdict(known)}))
        return known


def _read(file: Path) -> Judged | None:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if held.pop("version") != JUDGES_VERSION:
            return None
        return Judged(**{**held, "embedding": tuple(held["embedding"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(folder: Path, row: Row, text: HeldOut, sound: Samples) -> None:
    number = hashlib.sha256(text.text.encode()).hexdigest()[:8]
    path = folder / f"{text.kind}-{number}-{row.name.replace(' ', '-').replace(',', '')}.wav"
    try:
        soundfile.write(path, sound, row.rate_hz, subtype="PCM_16")
    except (OSError, soundfile.SoundFileError) as error:
        raise OutputError(f"{path} could not be written: {error}.") from error


def run_voice(profile: Profile, parts: Parts, args: argparse.Namespace) -> list[str]:
    """Speak and judge everything, and return the report's lines. Raises ConfigError, WeightsError, OutputError."""
    where = weights.locate(profile)
    if "vits-joe-split" not in where:
        raise ConfigError("duologue bench voice needs a profile with the teacher's voice among its weights, such as edge.")
    cast = load_cast(profile, parts, where)
    rows = named(cast.rows, args.rows)
    texts = {kind: chosen(kind, args.count) for kind in KINDS}
    lines = [*cast.notes]
    if not args.clock_alone:
        lines += table(Bench(Judges(parts), args), cast.rows[0], rows, texts, args)
    if args.pictures is not None:
        lines.append(pictures(cast, texts["replies"], args))
    if args.clock or args.clock_alone:
        lines += ["", *clock(cast, parts, texts["replies"])]
    return lines


def named(rows: Sequence[Row], names: str | None) -> list[Row]:
    """The rows that `--rows` asks for, all without it. Raises ConfigError when there is none."""
    wanted = [name.strip() for name in (names or "").split(",")]
    found = [row for row in rows if any(name in row.name for name in wanted)]
    if not found:
        raise ConfigError(f"--rows {names} names none of: {'; '.join(row.name for row in rows)}.")
    return found


def table(
    bench: Bench, teacher: Row, rows: Sequence[Row], texts: Mapping[Kind, Sequence[HeldOut]], args: argparse.Namespace
) -> list[str]:
    """Speak, judge, and say it in a table."""
    replies, hard = texts["replies"], texts["hard"]
    expected = {
        said.text: said.judged.seconds for said in (*bench.spoken(teacher, replies, mos=args.mos), *bench.spoken(teacher, hard))
    }
    voice = centre([said.judged for said in bench.spoken(teacher, replies[:TAKES], seed=args.seed + 1)])
    rated = min(args.mos, len(replies))
    lines = [
        f"{len(replies)} held-out replies and {len(hard)} hard texts; DNSMOS over {rated} replies; seed {args.seed}.",
        "",
        HEAD,
    ]
    wrong: list[str] = []
    for row in rows:
        found = bench.spoken(row, replies, mos=args.mos), bench.spoken(row, hard)
        lines.append(line(row.name, *found, expected, voice))
        wrong += failed(row.name, [*found[0], *found[1]], expected)
    return [*lines, "", others(bench, voice), *(["", "Failures:", *wrong] if wrong else [])]


def pictures(cast: Cast, replies: Sequence[HeldOut], args: argparse.Namespace) -> str:
    """Draw five replies by the last row (the own voice, when it is trained) beside the teacher."""
    teacher, own = cast.rows[0], cast.rows[-1]
    short = [text for text in replies if len(text.text) <= MOST_DRAWN] or list(replies)
    picked = [short[index * len(short) // DRAWN] for index in range(min(DRAWN, len(short)))]
    pairs = [
        Pair(text.text, tuple((row.name, row.speak(text, args.seed), row.rate_hz) for row in (teacher, own))) for text in picked
    ]
    path: Path = args.pictures / "voice.png"
    draw(pairs, path)
    return f"Drew {len(pairs)} replies by {teacher.name} and {own.name}: {path}."


HEAD = (
    f"{'':<24} {'WER':>6} {'hard':>6} {'phones':>6} {'hard':>6}   {'failed':>10}   {'DNSMOS':>6} {'signal':>6} {'backgr.':>7}   "
    f"{'speaker':>7}   {'length':>6}"
)


def line(
    name: str, replies: Sequence[Spoken], hard: Sequence[Spoken], expected: dict[HeldOut, float], voice: Sequence[float]
) -> str:
    """One row of the table."""
    rated = [said.judged for said in replies if said.judged.overall is not None]
    overall, signal, background = (
        np.mean([getattr(judged, key) for judged in rated]) if rated else np.nan for key in ("overall", "signal", "background")
    )
    close = [similarity(said.judged.embedding, voice) for said in replies if said.judged.embedding]
    length = sum(said.judged.seconds for said in replies) / max(sum(expected[said.text] for said in replies), 1e-9)
    count = sum(1 for said in (*replies, *hard) if failure(said.errors, said.judged.seconds, expected[said.text]))
    total = len(replies) + len(hard)
    return (
        f"{name:<24} {100 * wer(replies):>4.1f} % {100 * wer(hard):>4.1f} % {100 * per(replies):>4.1f} % "
        f"{100 * per(hard):>4.1f} %   {count:>3} ({100 * count / total:>3.1f} %)   "
        f"{overall:>6.2f} {signal:>6.2f} {background:>7.2f}   {np.mean(close) if close else np.nan:>7.3f}   {length:>6.2f}"
    )


def wer(said: Iterable[Spoken]) -> float:
    """Wrong words over words meant."""
    said = list(said)
    return sum(one.errors.wrong for one in said) / max(sum(one.errors.words for one in said), 1)


def per(said: Iterable[Spoken]) -> float:
    """The same for phones: what was heard is read aloud, so that its spelling does not count."""
    said = list(said)
    return sum(one.errors.wrong_phones for one in said) / max(sum(one.errors.phones for one in said), 1)


def failed(name: str, said: Sequence[Spoken], expected: dict[HeldOut, float]) -> list[str]:
    """The failures in words: how often each way, and three of each."""
    ways: Counter[str] = Counter()
    lines = []
    for one in said:
        way = failure(one.errors, one.judged.seconds, expected[one.text])
        if way:
            ways[way] += 1
            if ways[way] <= 3:
                lines.append(f"    {way}: {one.text.text}  ->  {one.judged.heard}")
    return [f"  {name}: {', '.join(f'{count} {way}' for way, count in ways.items())}", *lines] if ways else []


def centre(judged: Iterable[Judged]) -> tuple[float, ...]:
    """The mean of embeddings: one speaker's voice."""
    return tuple(np.mean([one.embedding for one in judged if one.embedding], axis=0).tolist())


def others(bench: Bench, voice: Sequence[float]) -> str:
    """How near two quite different voices come to the teacher, so that the column can be read."""
    found: dict[str, list[float]] = {}
    for clip in clips("questions"):
        embedding = bench.embedding(prepared(clip.samples(), USER_RATE_HZ))
        if embedding:
            found.setdefault(clip.voice, []).append(similarity(embedding, voice))
    told = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in sorted(found.items()))
    return f"Speaker similarity of other voices to the teacher's: {told}."
