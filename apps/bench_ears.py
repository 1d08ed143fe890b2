"""`duologue bench ears`: how well and how fast speech reaches the LLM, through the transcript (bridge) and through the projector.

Both hear the same sound as a session gives it to them: 20 ms at a time, asked for the words as often as it asks, and once more when the
speech is over. What counts as time is that last question. Beside them stands Whisper as it is published, which hears everything when it
is over. Words are compared after Whisper's own English normalisation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from agent import weights
from agent.build import session_config
from agent.chat_template import Message
from agent.parts import Parts
from agent.profiles import Profile
from apps.bench_clips import clips
from apps.bench_conversation import contains
from apps.recorded_lines import scripted
from apps.recorded_prompts import installed, prompts
from duplex.audio import USER_FRAME, USER_RATE_HZ, Samples, user_samples
from duplex.errors import ConfigError, InputError
from duplex.metrics import Spread
from duplex.resample import resample
from encoders import sound_heads
from encoders.ears import Ears, Transcript
from encoders.mel import MELS, POWER_FLOOR, Mel
from encoders.whisper_ears import WhisperEars

ACTED_EVERY = 8
"""Of the actors' lines one in so many is heard."""
AFTER_S = 0.24
"""Silence after the speech at which the words are asked for."""


@dataclass(frozen=True, slots=True)
class Said:
    """One utterance and what it says."""

    group: str
    text: str
    samples: Samples
    """[n] at 16 kHz"""


@dataclass(slots=True)
class Heard:
    """What one kind of ears made of some utterances."""

    pairs: list[tuple[str, str]] = field(default_factory=list)
    """(said, heard), normalised"""
    after_s: list[float] = field(default_factory=list)
    """Time of the last question."""
    all_s: float = 0.0
    """Time of all questions."""
    sound_s: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this measurement."""
    parser.add_argument(
        "--speech",
        action="append",
        default=[],
        type=Path,
        metavar="TSV",
        help="more speech: lines of file, tab, what it says, the files beside the TSV; its name is the group's",
    )
    parser.add_argument("--noise", default="30,20,10,5", help="signal-to-noise ratios besides none, in dB (default: 30,20,10,5)")
    parser.add_argument("--noisy", type=int, default=40, help="utterances of each group that are heard in noise (default: 40)")
    parser.add_argument("--limit", type=int, default=None, help="utterances of each group (default: all)")
    parser.add_argument("--no-answers", action="store_true", help="leave out the answers of the LLM")
    parser.add_argument("--errors", action="store_true", help="show what was misheard")


def run_ears(profile: Profile, parts: Parts, args: argparse.Namespace) -> Iterator[str]:
    """Everything, line by line."""
    said = _shipped() + _recorded() + _acted() + [one for file in args.speech for one in read_speech(file)]
    groups = list(dict.fromkeys(one.group for one in said))
    if args.limit:
        said = [one for group in groups for one in [s for s in said if s.group == group][: args.limit]]
    kinds = both(profile, parts)
    all_kinds = {**kinds, "whisper": _published()}
    levels: list[float | None] = [None, *(float(db) for db in args.noise.split(",") if db.strip())]
    if not installed():
        yield "No recorded prompts: apt install asterisk-core-sounds-en asterisk-core-sounds-en-g722 ffmpeg."
    if "actors" not in groups:
        yield "No actors: apt install flight-of-the-amazon-queen."
    if "projector" not in kinds:
        yield "The projector has no trained weights here (`duologue train projector`): the bridge alone."
    yield "WER in %, and the time after the end of speech (median, p95) in ms; n is utterances."
    for group in groups:
        of_group = [one for one in said if one.group == group]
        for db in levels:
            some = of_group if db is None else of_group[: args.noisy]
            yield f"{group}, {'as recorded' if db is None else f'noise at {db:g} dB'}, n={len(some)}:"
            for name, ears in all_kinds.items():
                found = listen(ears, [one if db is None else _noisy(one, db) for one in some])
                yield f"  {name:<10} {_figures(found)}"
                if args.errors and db is None:
                    yield from (f"      said: {a}\n      heard: {b}" for a, b in found.pairs if a != b)
    if not args.no_answers:
        yield from answers(profile, parts, kinds, args.limit)


def both(profile: Profile, parts: Parts) -> dict[str, Ears]:
    """The ears of the bridge and, where its weights are, of the projector, for the same LLM.

    Raises WeightsError, and ConfigError for a profile without the two.
    """
    from agent.chat import Chat
    from agent.rescorer import Rescorer
    from encoders.projector_ears import WEIGHTS, ProjectorEars

    if profile.encoder != "whisper" or not profile.weights or not isinstance(parts.thinker, Chat):
        raise ConfigError("bench ears compares the two inputs of the profile edge; take that one.")
    where = weights.locate(profile)
    chat = parts.thinker
    bridge = WhisperEars.load(where["whisper-tiny-en"], where["whisper-vocab"], heads=sound_heads.shipped("bridge"))
    found: dict[str, Ears] = {"bridge": bridge}
    if WEIGHTS.is_file():
        found["projector"] = ProjectorEars.load(
            where["whisper-tiny-en"],
            chat.thinker.encode,
            chat.thinker.embed,
            judge=Rescorer(chat.thinker),
            heads=sound_heads.shipped("projector"),
        )
    return found


class Published(WhisperEars):
    """Whisper as it is published: all of the sound at once when it is over, filled up to 30 s."""

    @property
    def interim_s(self) -> float:
        return 3600.0  # never asked before the end

    def _ended(self, frames: Mel) -> Mel:
        filled = np.full((self.model.max_frames, MELS), np.log10(POWER_FLOOR), np.float32)
        filled[: len(frames)] = frames
        return filled


def _published() -> Ears:
    where = weights.locate("edge")
    return Published.load(where["whisper-tiny-en"], where["whisper-vocab"], int8=False)


def _shipped() -> list[Said]:
    """The shipped clips; neither voice was heard in training."""
    kinds = ("questions", "interruptions", "long_questions")
    return [Said("flite slt and rms", clip.text, clip.samples()) for kind in kinds for clip in clips(kind)]


def _recorded() -> list[Said]:
    """A woman's prompts with words that were kept back from the training."""
    return [Said("recorded prompts", text, samples) for text, samples in prompts(True)]


def _acted() -> list[Said]:
    """What actors say, as it is written; no recogniser here has heard them."""
    return [Said("actors", line.text, line.samples) for line in islice(scripted(), 0, None, ACTED_EVERY)]


def read_speech(file: Path) -> list[Said]:
    """A TSV of recordings. Raises InputError."""
    found = []
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            name, tab, text = line.partition("\t")
            if not tab:
                continue
            samples, rate = soundfile.read(file.parent / name, dtype="float32", always_2d=True)
            mono = samples.mean(1)
            found.append(Said(file.stem, text.strip(), resample(mono, rate, USER_RATE_HZ) if rate != USER_RATE_HZ else mono))
    except (OSError, ValueError, soundfile.SoundFileError) as error:
        raise InputError(f"The speech in {file} cannot be read ({error}).") from error
    if not found:
        raise InputError(f"{file} lists no speech; write lines of file, tab, what it says.")
    return found


def _noisy(one: Said, db: float) -> Said:
    """The same in pink noise; the level is that of the speech, without its pauses."""
    rng = np.random.default_rng(len(one.samples))
    spectrum = np.fft.rfft(rng.standard_normal(len(one.samples)))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 40))
    noise = np.fft.irfft(spectrum, len(one.samples))
    frames = one.samples[: len(one.samples) // USER_FRAME * USER_FRAME].reshape(-1, USER_FRAME)
    power = (frames**2).mean(1)
    loud = power[power > power.max() * 1e-3].mean()
    noise *= np.sqrt(loud / (noise**2).mean()) * 10 ** (-db / 20)
    return replace(one, samples=(one.samples + noise).astype(np.float32))


def hear(ears: Ears, samples: Samples) -> tuple[Transcript, float, float]:
    """One utterance as a session hears it -> the last transcript, the time it took, and the time of all before."""
    every = user_samples(ears.interim_s)
    state: Any = ears.open()
    sound = np.concatenate([np.zeros(user_samples(0.3), np.float32), samples, np.zeros(user_samples(AFTER_S), np.float32)])
    ears.begin_turn(state, 0)
    before, asked = 0.0, 0
    for at in range(0, len(sound), USER_FRAME):
        ears.feed(state, sound[at : at + USER_FRAME])
        if at - asked >= every and at < len(sound) - user_samples(AFTER_S):
            asked = at
            began = time.perf_counter()
            window = ears.window(state)
            ears.settle(state, window, ears.transcribe(window))
            before += time.perf_counter() - began
    began = time.perf_counter()
    transcript = ears.transcribe(ears.window(state))
    return transcript, time.perf_counter() - began, before


def listen(ears: Ears, said: list[Said]) -> Heard:
    """All of them."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normal = EnglishTextNormalizer({})  # type: ignore[no-untyped-call]
    found = Heard()
    for one in said:
        transcript, after, before = hear(ears, one.samples)
        found.pairs.append((normal(one.text), normal(transcript.text)))
        found.after_s.append(after)
        found.all_s += after + before
        found.sound_s += len(one.samples) / USER_RATE_HZ
    return found


def _figures(found: Heard) -> str:
    from jiwer import process_words

    pairs = [(a, b) for a, b in found.pairs if a]
    error = process_words([a for a, _ in pairs], [b for _, b in pairs])
    spread = Spread.of(found.after_s)
    whole = sum(a == b for a, b in pairs)
    return (
        f"WER {100 * error.wer:5.1f}   {whole:3} of {len(pairs)} without an error   after the end {1000 * spread.median:4.0f}, "
        f"{1000 * spread.p95:4.0f} ms   all of it at rtf {found.all_s / found.sound_s:.3f}"
    )


def answers(profile: Profile, parts: Parts, kinds: dict[str, Ears], limit: int | None) -> Iterator[str]:
    """The LLM's answers to the spoken questions beside those to the written ones."""
    prompt = session_config(profile).response.system_prompt
    context = parts.thinker.open()
    right: dict[str, int] = {}
    same: dict[str, int] = {}
    agreed: dict[str, int] = {}
    questions = clips("questions")[:limit]
    for clip in questions:
        messages = {"written": Message("user", clip.text)}
        for name, ears in kinds.items():
            transcript, _, _ = hear(ears, clip.samples())
            messages[name] = Message("user", transcript.text or ".", transcript.speech)
            if transcript.speech is not None:
                messages[f"{name}, as text"] = Message("user", transcript.text or ".")
        replies = {name: reply(parts, prompt, message, context) for name, message in messages.items()}
        for name, text in replies.items():
            ok = contains(text, clip.expect)
            right[name] = right.get(name, 0) + ok
            agreed[name] = agreed.get(name, 0) + (ok == contains(replies["written"], clip.expect))
            same[name] = same.get(name, 0) + (text == replies["written"])
    yield f"Answers to {len(questions)} questions by slt and rms, as right as when the LLM reads them, and the same to the letter:"
    for name in right:
        yield f"  {name:<20} {right[name]:3} right   {agreed[name]:3} as right or wrong as when written   {same[name]:3} the same"


def reply(parts: Parts, prompt: str, message: Message, context: Any, most: int = 60) -> str:
    """The LLM's reply to one message."""
    thinker = parts.thinker
    for _ in thinker.sync_steps(context, thinker.render(prompt, [message], open_assistant=True)):
        pass
    sampler = thinker.sampler(1)
    tokens: list[int] = []
    while len(tokens) < most:
        token = thinker.step(context, sampler).token
        if token in thinker.eos_ids:
            break
        tokens.append(token)
    return thinker.decode(tokens)
