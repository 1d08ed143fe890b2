"""`duologue say TEXT OUT.wav`: the agent's voice alone, for trying it.

The text is given to the voice as the LLM's tokens, five at a time, as in a conversation. With `--hidden` the LLM reads it first, so
that a voice of its own also has the hidden states that it would have in a conversation.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from agent import weights
from agent.build import session_config
from agent.chat import Chat
from agent.part_loading import Loader
from agent.profiles import load_profile
from agent.read_along import read_along
from decoders.voice import Voice
from duplex.audio import AGENT_RATE_HZ, Samples
from duplex.errors import InputError, OutputError

GROUP = 5
"""LLM tokens that the voice is given together."""
OUTPUTS = {"bridge": "bridge", "own": "projector"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `duologue say`."""
    parser.add_argument("text", metavar="TEXT", help="what to say; - reads it from standard input")
    parser.add_argument("out", metavar="OUT.wav", type=Path, help="24 kHz mono WAV to write")
    parser.add_argument(
        "--voice", choices=tuple(OUTPUTS), help="bridge: reads clauses; own: trained here, speaks codes (default: the profile's)"
    )
    parser.add_argument("--hidden", action="store_true", help="let the LLM read the text, and give its hidden states to the voice")
    parser.add_argument("--words", action="store_true", help="print when each word ends")
    parser.add_argument("--seed", type=int, default=0, help="of what the voice draws (default: 0)")
    parser.add_argument("--profile", default="edge", help="profile name or YAML file (default: edge)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a profile key, e.g. voice.draw.temperature=0.5"
    )


@dataclass(frozen=True, slots=True)
class Said:
    """What the voice made of a text."""

    samples: Samples
    """[n] at AGENT_RATE_HZ."""
    words: tuple[tuple[str, int], ...]
    """Pieces of the text, and the sample at which each ends."""
    first_s: float
    """Compute time until the first sound."""
    took_s: float
    """Compute time of all of it."""


def run(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    text = _text(args.text)
    overrides = [*args.set, *([] if args.voice is None else [f"output={OUTPUTS[args.voice]}"])]
    profile = load_profile(args.profile, overrides)
    loader = Loader(profile)
    torch.set_num_threads(loader.runtime.threads_per_job)
    if profile.weights:
        where = weights.locate(profile)
        chat = loader.chat(where)
        voice = loader.voice(where, chat)
    else:
        parts = loader.tiny()
        assert isinstance(parts.thinker, Chat)
        chat, voice = parts.thinker, parts.voice
    system = session_config(profile).response.system_prompt
    tokens, hidden = read_along(chat, system, text) if args.hidden else (chat.encode(text), None)
    said = say(voice, tokens, hidden, args.seed)
    try:
        soundfile.write(args.out, said.samples, AGENT_RATE_HZ, subtype="PCM_16")
    except (OSError, soundfile.SoundFileError) as error:
        raise OutputError(f"{args.out} could not be written: {error}.") from error
    if args.words:
        for word, end in said.words:
            print(f"{end / AGENT_RATE_HZ:7.2f} s  {word!r}")
    length = len(said.samples) / AGENT_RATE_HZ
    print(
        f"{args.out}: {length:.2f} s of speech in {said.took_s:.2f} s (rtf {said.took_s / max(length, 1e-9):.2f}), the first sound after "
        f"{said.first_s * 1000:.0f} ms"
    )
    return 0


def say(voice: Voice, tokens: list[int], hidden: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None, seed: int) -> Said:
    """Let a voice speak LLM tokens [n], with their hidden states [n, h] or without."""
    began, first = time.perf_counter(), 0.0
    state = voice.open(seed)
    chunks: list[Samples] = []
    words: list[tuple[str, int]] = []
    total = 0
    groups = [slice(at, at + GROUP) for at in range(0, len(tokens), GROUP)]
    for part in [*groups, None]:
        made = voice.finish(state) if part is None else voice.push(state, tokens[part], None if hidden is None else hidden[part])
        for speech in made:
            words += [(word.text, total + word.end) for word in speech.words]
            chunks.append(speech.samples)
            if len(speech.samples) and not total:
                first = time.perf_counter() - began
            total += len(speech.samples)
    return Said(np.concatenate([np.zeros(0, np.float32), *chunks]), tuple(words), first, time.perf_counter() - began)


def _text(given: str) -> str:
    if given == "-":
        import sys

        given = sys.stdin.read()
    text = " ".join(given.split())
    if not text:
        raise InputError("There is nothing to say; give a text.")
    return text
