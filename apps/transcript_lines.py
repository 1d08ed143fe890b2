"""A conversation as lines of text: who said what when, and what was cut off or let pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from duplex.audio import seconds
from duplex.events import (
    AgentBackchannel,
    Backchannel,
    Event,
    ResponseEnded,
    ResponseStarted,
    SpeculationDiscarded,
    SpeechLabelled,
    Trouble,
    UserTranscript,
)


def labels_of(event: SpeechLabelled) -> str:
    """What the ears say besides words, as "en, happy, laughter"; that speech is speech goes without saying."""
    sound = None if (event.sound or "").lower() == "speech" else event.sound
    return ", ".join(label for label in (event.language, event.emotion, sound) if label)


def lines_of(events: Iterable[Event]) -> Iterator[str]:
    """The conversation in order of time; interim transcripts and levels are left out."""
    found: list[tuple[int, int, str]] = []
    begun: dict[int, int] = {}
    labels = ""
    for number, event in enumerate(events):
        at = event.at
        if isinstance(event, SpeechLabelled):
            labels = labels_of(event)
            continue
        if isinstance(event, UserTranscript) and event.final:
            text = f"user   {event.text}" + (f"  [{labels}]" if labels else "")
            labels = ""
        elif isinstance(event, ResponseStarted):
            begun[event.epoch] = event.at
            continue
        elif isinstance(event, ResponseEnded):
            at = begun.get(event.epoch, event.at)
            text = f"agent  {event.heard.strip()}"
            if event.reason != "completed":
                unheard = event.text[len(event.heard) :].strip()
                text += f"  [{event.reason}]" + (f"  (unheard: {unheard})" if unheard else "")
        elif isinstance(event, Backchannel):
            text = f"user   ({event.text or 'sound'}: the agent talks on)"
        elif isinstance(event, AgentBackchannel):
            text = f"agent  ({event.text})"
        elif isinstance(event, SpeculationDiscarded):
            text = "       (the user goes on: a prepared response is thrown away)"
        elif isinstance(event, Trouble):
            text = f"!      {event.message}"
        else:
            continue
        found.append((at, number, text))
    for at, _, text in sorted(found):
        yield f"{seconds(at):7.2f} s  {text}"
