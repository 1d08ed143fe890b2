"""Everybody who speaks in `duologue bench voice`: rows for the table, streaming voices for the clock; what is not trained is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.build import session_config
from agent.parts import Parts
from agent.profiles import Profile
from apps.bench_voice_clock import joins_line, starts, steady_line
from apps.bench_voice_own import GROUP, code_rows, own_voice, thoughts, voice_rows
from apps.bench_voice_parts import costs, stream_lines
from apps.bench_voice_rows import Row, Teacher, bridge_row, teacher_row
from apps.bench_voice_stream import Thought
from apps.bench_voice_texts import HeldOut
from decoders.bridge_voice import BridgeVoice
from decoders.edge_voice import EdgeVoice
from decoders.voice import Voice

STARTS = 30  # replies
LONG_WORDS = 170  # about a minute


@dataclass(frozen=True, slots=True)
class Cast:
    """Who speaks."""

    rows: tuple[Row, ...]
    """The teacher first, the own voice last."""
    voices: tuple[tuple[str, Voice, int], ...]
    """(name, voice, LLM tokens that it is given together)."""
    system_prompt: str
    """What the LLM is told when it writes the replies."""
    notes: tuple[str, ...]
    """What is left out, and why."""


def load_cast(profile: Profile, parts: Parts, where: Mapping[str, Path]) -> Cast:
    """Load everybody. Raises WeightsError for damaged files."""
    prompt = session_config(profile).response.system_prompt
    teacher = Teacher.load(where, parts.thinker)
    bridge = BridgeVoice.load(where["vits-joe-split"], where["vits-joe-config"], parts.thinker.decode)
    rows = [teacher_row(teacher, where), bridge_row(bridge, where)]
    voices: list[tuple[str, Voice, int]] = [("bridge voice", bridge, 1)]
    coded, notes = code_rows(teacher)
    rows += coded
    own, note = own_voice(parts)
    if own is None:
        notes.append(note)
    else:
        rows += voice_rows(own, parts, prompt)
        voices.append(("own voice", own, GROUP))
    return Cast(tuple(rows), tuple(voices), prompt, tuple(notes))


def clock(cast: Cast, parts: Parts, replies: Sequence[HeldOut]) -> list[str]:
    """Starts on one and two threads, a minute beside the LLM, and joins, voice by voice."""
    system_prompt = cast.system_prompt
    given: list[Thought] = [thoughts(parts, system_prompt, text) for text in replies[:STARTS]]
    minute = thoughts(parts, system_prompt, long_reply(replies))
    lines = []
    for name, voice, group in cast.voices:
        lines += [starts(name, voice, given, group, threads) for threads in (1, 2)]
        lines.append(steady_line(name, voice, parts, system_prompt, minute, group))
        lines.append(joins_line(name, voice, given, group))
        if isinstance(voice, EdgeVoice):
            lines += [costs(voice, given, group), *stream_lines(voice, given, group)]
    return lines


def long_reply(replies: Sequence[HeldOut]) -> HeldOut:
    """Replies in a row, about a minute of speech."""
    texts: list[str] = []
    for reply in replies:
        texts.append(reply.text)
        if sum(len(text.split()) for text in texts) >= LONG_WORDS:
            break
    return HeldOut("replies", "Tell me everything that you know.", " ".join(texts))
