"""A picture of a conversation: both waveforms on one time axis, who had the floor, and the words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from duplex.audio import AGENT_RATE_HZ, USER_RATE_HZ, Samples, seconds
from duplex.events import AgentBackchannel, Backchannel, Event, FloorChanged, ResponseEnded, ResponseStarted, UserTranscript

_FLOOR_COLOURS = {
    "quiet": "#f2f2f2",
    "user": "#9ecae1",
    "pause": "#deebf7",
    "agent": "#fdae6b",
    "ducked": "#e6550d",
    "held": "#a63603",
}
_ROW_S = 20.0
_COLUMNS = 1500


def draw_timeline(path: Path, user: Samples, agent: Samples, events: Sequence[Event], title: str = "") -> None:
    """Write a PNG: user [n] at 16 kHz, agent [m] at 24 kHz, one row per 20 s. Raises OSError when it cannot be written."""
    from matplotlib.figure import Figure

    duration = max(len(user) / USER_RATE_HZ, 0.1)
    rows = max(int(np.ceil((duration - 0.5) / _ROW_S)), 1)  # half a second more needs no row
    figure = Figure(figsize=(16, 2.6 * rows + 0.6), layout="constrained")
    if title:
        figure.suptitle(title)
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for row, axis in enumerate(axes):
        start, end = row * _ROW_S, (row + 1) * _ROW_S
        axis.set_xlim(start, end)
        axis.set_ylim(-2.6, 2.6)
        axis.set_yticks([1, -1], ["user", "agent"])
        _floor(axis, events, duration)
        _wave(axis, user, USER_RATE_HZ, start, end, 1.0, "#08519c")
        _wave(axis, agent, AGENT_RATE_HZ, start, end, -1.0, "#7f2704")
        _words(axis, events, start, end)
    axes[-1].set_xlabel("seconds")
    figure.legend(
        handles=[_patch(colour, name) for name, colour in _FLOOR_COLOURS.items()],
        loc="outside lower center",
        ncols=6,
        title="the floor",
    )
    figure.savefig(path, dpi=90)


def _patch(colour: str, name: str) -> object:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=name)


def _floor(axis: object, events: Sequence[Event], duration: float) -> None:
    changes = [(seconds(e.at), e.floor) for e in events if isinstance(e, FloorChanged)]
    spans = [(0.0, "quiet"), *changes]
    for (start, floor), (end, _) in zip(spans, [*spans[1:], (duration, "quiet")], strict=True):
        axis.axvspan(start, end, ymin=0.44, ymax=0.56, color=_FLOOR_COLOURS[floor], lw=0)  # type: ignore[attr-defined]


def _wave(axis: object, samples: Samples, rate_hz: int, start: float, end: float, centre: float, colour: str) -> None:
    part = samples[int(start * rate_hz) : int(end * rate_hz)]
    if len(part) == 0:
        return
    step = max(int((end - start) * rate_hz / _COLUMNS), 1)
    whole = part[: len(part) // step * step].reshape(-1, step)
    times = start + (np.arange(len(whole)) + 0.5) * step / rate_hz
    axis.fill_between(times, centre + whole.min(1), centre + whole.max(1), color=colour, lw=0)  # type: ignore[attr-defined]


def _words(axis: object, events: Sequence[Event], start: float, end: float) -> None:
    begun: dict[int, float] = {}
    user_row = agent_row = 0
    for event in events:
        at = seconds(event.at)
        text, where = "", at
        if isinstance(event, ResponseStarted):
            begun[event.epoch] = at
        elif isinstance(event, UserTranscript) and event.final:
            text, y = f"{event.text} ▸", 2.3 - 0.28 * (user_row % 2)
            user_row += 1
        elif isinstance(event, Backchannel):
            text, y = f"({event.text or 'noise'})", 1.75
        elif isinstance(event, AgentBackchannel):
            text, y = f"({event.text})", -1.75
        elif isinstance(event, ResponseEnded) and event.epoch in begun:
            where = begun[event.epoch]
            cut = " ✂" if event.reason == "interrupted" else ""
            text, y = event.heard.strip() + cut, -2.1 - 0.28 * (agent_row % 2)
            agent_row += 1
        if text and start <= where < end:
            late = where > start + 0.6 * (end - start)
            shown = text if len(text) < 90 else text[:87] + "…"
            axis.text(where, y, shown, ha="right" if late else "left", fontsize=8, clip_on=False)  # type: ignore[attr-defined]
