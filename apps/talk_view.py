"""A live conversation as text: both transcripts, who has the floor, levels, and the latency of each turn.

`TalkView` only turns events into lines and rich renderables; it opens nothing and waits for nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from apps.transcript_lines import labels_of
from duplex.audio import seconds
from duplex.events import (
    AgentBackchannel,
    AgentTranscript,
    Backchannel,
    Event,
    FloorChanged,
    Levels,
    ResponseEnded,
    ResponseStarted,
    SpeechLabelled,
    Trouble,
    UserTranscript,
)

FLOORS = {
    "quiet": ("nobody speaks", "dim"),
    "user": ("you speak", "bold green"),
    "pause": ("you pause", "green"),
    "agent": ("the agent speaks", "bold cyan"),
    "ducked": ("both speak", "bold yellow"),
    "held": ("the agent waits", "yellow"),
}
METER_DB = (-60.0, 0.0)
METER_CELLS = 22  # so that the whole fits 80 columns


@dataclass(slots=True)
class Line:
    """One turn of one side."""

    at: int
    """User sample where it was first seen."""
    who: str
    """"you" or "agent"."""
    said: str = ""
    """The user's words, or what was heard of the agent's."""
    unheard: str = ""
    """What the agent wrote beyond that."""
    done: bool = False
    note: str = ""
    """Latency, or how it ended."""


class TalkView:
    """What has been said so far, and how it goes; `most` lines are kept for the screen, the rest only counted."""

    def __init__(self, most: int = 14) -> None:
        self.lines: deque[Line] = deque(maxlen=most)
        self.floor = "quiet"
        self.user_db = self.agent_db = METER_DB[0]
        self.erle_db: float | None = None
        self.latencies_s: list[float] = []
        self.stops_s: list[float] = []
        self.troubles: deque[str] = deque(maxlen=3)
        self.underruns = 0
        self.microphone = "open"
        self.keys = ""
        self.echo: str | None = None
        """The canceller in use; None when there is none to speak of."""
        self.echo_trusted = True
        self.device_ms: float | None = None
        """From the microphone to the loudspeaker, by the devices' own account."""
        self.now = 0
        self._user: Line | None = None
        self._replies: dict[int, Line] = {}
        self._labels = ""

    def take(self, event: Event) -> list[str]:
        """Note an event; returns finished lines of plain text, for a screen that cannot be redrawn."""
        self.now = max(self.now, event.at)
        match event:
            case FloorChanged(floor=floor):
                self.floor = floor
            case Levels():
                self.user_db, self.agent_db, self.erle_db = event.user_db, event.agent_db, event.erle_db
            case SpeechLabelled():
                self._labels = labels_of(event)
                if self._user is not None:
                    self._user.note = self._labels
            case UserTranscript():
                return self._user_said(event)
            case Backchannel():
                self._forget_user()
                self._labels = ""
                return self._add(Line(event.at, "you", event.text or "(a sound)", done=True, note="the agent talks on"))
            case AgentBackchannel():
                return self._add(Line(event.at, "agent", event.text, done=True, note="it listens"))
            case ResponseStarted():
                self._reply(event).note = "" if event.latency_s is None else f"after {event.latency_s:.2f} s"
                if event.latency_s is not None:
                    self.latencies_s.append(event.latency_s)
            case AgentTranscript():
                line = self._reply(event)
                line.said, line.unheard = _split(event.heard, event.text)
            case ResponseEnded():
                return self._ended(event)
            case Trouble(message=message):
                self.troubles.append(message)
                return [f"{_clock(event.at)}  !      {message}"]
            case _:
                pass
        return []

    def _user_said(self, event: UserTranscript) -> list[str]:
        if self._user is None:
            self._user = Line(event.at, "you")
            self.lines.append(self._user)
        line = self._user
        line.said, line.done, line.note = event.text, event.final, self._labels
        if not event.final:
            return []
        self._user, self._labels = None, ""
        return [_plain(line)] if line.said.strip() else []

    def _forget_user(self) -> None:
        if self._user is not None and self._user in self.lines:
            self.lines.remove(self._user)
        self._user = None

    def _reply(self, event: ResponseStarted | AgentTranscript | ResponseEnded) -> Line:
        line = self._replies.get(event.epoch)
        if line is None:
            line = self._replies[event.epoch] = Line(event.at, "agent")
            self.lines.append(line)
        return line

    def _ended(self, event: ResponseEnded) -> list[str]:
        if event.epoch not in self._replies and not event.heard.strip():
            return []  # nobody heard of it
        line = self._reply(event)
        del self._replies[event.epoch]
        line.said, line.unheard = _split(event.heard, event.text)
        line.done = True
        notes = [line.note] if line.note else []
        if event.reason != "completed":
            notes.append(event.reason)
        else:
            line.unheard = ""
        if event.stop_latency_s is not None:
            self.stops_s.append(event.stop_latency_s)
            notes.append(f"silent {1000 * event.stop_latency_s:.0f} ms later")
        line.note = ", ".join(notes)
        return [_plain(line)]

    def _add(self, line: Line) -> list[str]:
        self.lines.append(line)
        return [_plain(line)]

    # -- what is shown ------------------------------------------------------------------------------------------------------------

    def render(self) -> RenderableType:
        """The whole screen."""
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(style="dim", width=7, justify="right")
        table.add_column(width=5)
        table.add_column(ratio=1, overflow="fold")
        for line in self.lines:
            table.add_row(_clock(line.at), Text(line.who, "green" if line.who == "you" else "cyan"), _words(line))
        parts: list[RenderableType] = [Panel(table, title="Duologue", subtitle=self._subtitle()), self._status()]
        parts += [Text(f"! {message}", "yellow") for message in self.troubles]
        return Group(*parts)

    def _subtitle(self) -> str:
        return ", ".join(part for part in (self.keys, "q or Ctrl-C ends the conversation") if part)

    def _status(self) -> RenderableType:
        words, style = FLOORS.get(self.floor, (self.floor, ""))
        grid = Table.grid(padding=(0, 2))
        shut = "" if self.microphone.startswith("open") else "bold yellow"
        grid.add_row(Text(words, style), "you", meter(self.user_db, "green"), "agent", meter(self.agent_db, "cyan"))
        devices = "" if self.device_ms is None else f"devices {self.device_ms:.0f} ms"
        stop = f"{1000 * self.stops_s[-1]:.0f} ms" if self.stops_s else "-"
        grid.add_row(f"{_clock(self.now)}, {self.underruns} gaps", "answer", self._answers(), "stop", stop)
        grid.add_row(devices, "mic", Text(self.microphone, shut), "echo", self._echo())
        return grid

    def _answers(self) -> str:
        if not self.latencies_s:
            return "-"
        return f"{self.latencies_s[-1]:.2f} s, median {_median(self.latencies_s):.2f} s"

    def _echo(self) -> str:
        if self.echo in (None, "none"):
            return "not cancelled"
        if self.echo == "half_duplex":
            return "half duplex"
        removed = "none yet" if self.erle_db is None else f"-{self.erle_db:.0f} dB"
        return f"{self.echo} {removed}" + ("" if self.echo_trusted else ", learning")

    def summary(self) -> list[str]:
        """How it went, in a few lines."""
        lines = [f"{seconds(self.now):.0f} s of conversation, {len(self.latencies_s)} answers, {self.underruns} gaps in the voice."]
        if self.latencies_s:
            slowest = max(self.latencies_s)
            lines.append(f"Response latency: median {_median(self.latencies_s):.2f} s, slowest {slowest:.2f} s.")
        if self.stops_s:
            lines.append(f"Interrupted {len(self.stops_s)} times; silent after at most {1000 * max(self.stops_s):.0f} ms.")
        if self.erle_db is not None:
            lines.append(f"Echo removed at the end: {self.erle_db:.0f} dB.")
        return lines


def meter(level_db: float, style: str) -> Text:
    """A bar of METER_CELLS cells for METER_DB; the last tenth is red, for there it clips."""
    low, high = METER_DB
    filled = round(METER_CELLS * min(max((level_db - low) / (high - low), 0.0), 1.0))
    hot = METER_CELLS - METER_CELLS // 10
    bar = Text("█" * min(filled, hot), style)
    bar.append("█" * max(filled - hot, 0), "red")
    bar.append("·" * (METER_CELLS - filled), "dim")
    return bar


def _words(line: Line) -> Text:
    """Interim words dim, heard words plain, what was never heard struck out."""
    text = Text(line.said, "" if line.done or line.who == "agent" else "dim italic")
    if line.unheard:
        text.append(line.unheard, "strike dim" if line.done else "dim")
    if line.note:
        text.append(f"  [{line.note}]", "dim")
    return text


def _plain(line: Line) -> str:
    unheard = f" (unheard: {line.unheard.strip()})" if line.unheard.strip() else ""
    note = f"  [{line.note}]" if line.note else ""
    return f"{_clock(line.at)}  {line.who:<5}  {line.said.strip()}{unheard}{note}"


def _split(heard: str, text: str) -> tuple[str, str]:
    """(heard, the rest of what was written)."""
    return heard, text[len(heard) :] if text.startswith(heard) else ""


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _clock(at: int) -> str:
    whole = int(seconds(at))
    return f"{whole // 60:d}:{whole % 60:02d}"
