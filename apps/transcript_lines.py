"""A conversation as lines of text: who said what when, and what was cut off or let pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from duplex.audio import seconds
from duplex.events import Backchannel, Event, ResponseEnded, ResponseStarted, SpeculationDiscarded, Trouble, UserTranscript


def lines_of(events: Iterable[Event]) -> Iterator[str]:
    """The conversation in order of time; interim transcripts and levels are left out."""
    found: list[tuple[int, int, str]] = []
    begun: dict[int, int] = {}
    for number, event in enumerate(events):
        at = event.at
        if isinstance(event, UserTranscript) and event.final:
            text = f"user   {event.text}"
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
        elif isinstance(event, SpeculationDiscarded):
            text = "       (the user goes on: a prepared response is thrown away)"
        elif isinstance(event, Trouble):
            text = f"!      {event.message}"
        else:
            continue
        found.append((at, number, text))
    for at, _, text in sorted(found):
        yield f"{seconds(at):7.2f} s  {text}"
