"""The turn-taking core: signals in, actions out, every transition in one table.

No I/O, no clock, no models. `TurnTaking.receive(signal)` looks up the rows for (floor, signal type), takes the first whose guard
holds, moves to the row's next floor and returns the row's actions. A signal without a row changes nothing. `docs/turn-taking.md`
is drawn from the same table (`python -m duplex.turn_docs`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from duplex.audio import seconds
from duplex.errors import ConfigError
from duplex.events import Floor
from duplex.turn_signals import (
    Action,
    BeginTurn,
    CancelAsked,
    Discard,
    DropTurn,
    Duck,
    ForResponse,
    GiveBackchannel,
    Hold,
    MannerChanged,
    NoteBackchannel,
    NothingSaid,
    Prepare,
    Release,
    ResponseAsked,
    ResponseAudible,
    ResponseDrained,
    Resume,
    Signal,
    Stop,
    Ticked,
    Transcribe,
    TurnKept,
    VoiceBegan,
    VoiceEnded,
)


@dataclass(frozen=True, slots=True)
class TurnConfig:
    """Thresholds on the predictor's probabilities."""

    prepare_p: float = 0.5
    """P(respond) from which a response is prepared, unheard."""
    release_p: float = 0.8
    """P(respond) from which it is let out."""
    yield_p: float = 0.8
    """P(yield) from which the agent gives up the floor."""
    backchannel_p: float = 0.8
    """P(backchannel) from which a sound over the agent's voice is let pass."""
    hold_s: float = 0.06
    """Voice over the agent's from which the agent holds its breath until it is clear what the user wants."""
    hold_backchannel_p: float = 0.4
    """P(backchannel) from which the agent talks on, ducked, instead of holding."""
    held_most_s: float = 2.0
    """The longest hold; then the agent goes on."""
    backchannels: bool = False
    """The agent gives backchannels of its own while the user pauses in the middle of a long turn."""
    goes_on_p: float = 0.8
    """P(the user goes on) from which a pause may have one."""
    backchannel_after_s: float = 3.0
    """So long the user has spoken since the turn began, or since the last one."""
    backchannel_pause_s: float = 0.3
    """So long they have been silent: somebody who only breathes is not disturbed."""
    interrupt: bool = True
    """False: the agent finishes what it says, whatever the user does."""

    def __post_init__(self) -> None:
        if not 0 < self.prepare_p <= self.release_p <= 1:
            raise ConfigError("turns: prepare_p must be positive and at most release_p, which must be at most 1.")
        if min(self.backchannel_after_s, self.backchannel_pause_s) < 0:
            raise ConfigError("turns: backchannel_after_s and backchannel_pause_s must be 0 or more.")


@dataclass(slots=True)
class _Memory:
    """What the guards look at."""

    voice: bool = False
    onset: int = 0
    epoch: int = 0  # newest response ever made
    current: int | None = None  # the response being prepared or played
    audible: bool = False
    answers: bool = False  # the response answers a turn of the user's
    overlap_at: int = 0
    held_at: int = 0
    silent_at: int = 0  # where the user's voice last ended
    spoken: int = 0  # how long they have spoken since the turn began, or since the agent's last backchannel


Guard = Callable[[TurnConfig, _Memory, Signal], bool]
Effect = Callable[[_Memory, Signal], list[Action]]


@dataclass(frozen=True, slots=True)
class Row:
    """One transition."""

    floor: Floor
    signal: type[Signal]
    guard: Guard
    when: str
    """The guard in words, for the documentation."""
    actions: tuple[type[Action], ...]
    next: Floor


def _always(c: TurnConfig, m: _Memory, s: Signal) -> bool:
    return True


def _decision(name: str, limit: str) -> Guard:
    def guard(c: TurnConfig, m: _Memory, s: Signal) -> bool:
        assert isinstance(s, Ticked)
        return bool(getattr(s.decision, name) >= getattr(c, limit))

    return guard


_respond = _decision("respond", "prepare_p")
_commit = _decision("respond", "release_p")
_yield = _decision("yield_", "yield_p")
_backchannel = _decision("backchannel", "backchannel_p")
_humming = _decision("backchannel", "hold_backchannel_p")


def _both(*guards: Guard) -> Guard:
    return lambda c, m, s: all(g(c, m, s) for g in guards)


def _not(guard: Guard) -> Guard:
    return lambda c, m, s: not guard(c, m, s)


def _prepared(c: TurnConfig, m: _Memory, s: Signal) -> bool:
    return m.current is not None


def _voice(c: TurnConfig, m: _Memory, s: Signal) -> bool:
    return m.voice


def _audible(c: TurnConfig, m: _Memory, s: Signal) -> bool:
    return m.audible


def _unasked(c: TurnConfig, m: _Memory, s: Signal) -> bool:
    return not m.answers


def _may_interrupt(c: TurnConfig, m: _Memory, s: Signal) -> bool:
    assert isinstance(s, VoiceBegan)
    return c.interrupt and s.trusted


def _ours(c: TurnConfig, m: _Memory, s: Signal) -> bool:
    assert isinstance(s, ResponseDrained)
    return s.epoch == m.current


def _long_enough(c: TurnConfig, m: _Memory, s: Signal) -> bool:
    return m.voice and seconds(s.at - m.overlap_at) >= c.hold_s


def _held_too_long(c: TurnConfig, m: _Memory, s: Signal) -> bool:
    return seconds(s.at - m.held_at) >= c.held_most_s


def _may_encourage(c: TurnConfig, m: _Memory, s: Signal) -> bool:
    assert isinstance(s, Ticked)
    long_turn = seconds(m.spoken) >= c.backchannel_after_s and seconds(s.at - m.silent_at) >= c.backchannel_pause_s
    return c.backchannels and long_turn and s.decision.goes_on >= c.goes_on_p


TABLE: tuple[Row, ...] = (
    Row("quiet", VoiceBegan, _always, "", (BeginTurn,), "user"),
    Row("quiet", ResponseAsked, _always, "", (Prepare, Release), "agent"),
    Row("user", VoiceEnded, _always, "", (Transcribe,), "pause"),
    Row("user", CancelAsked, _prepared, "a response is prepared", (Discard,), "user"),
    Row("pause", VoiceBegan, _prepared, "a response is prepared", (Discard,), "user"),
    Row("pause", VoiceBegan, _always, "", (), "user"),
    Row("pause", NothingSaid, _prepared, "a response is prepared", (Discard, DropTurn), "quiet"),
    Row("pause", NothingSaid, _always, "", (DropTurn,), "quiet"),
    Row("pause", TurnKept, _prepared, "a response is prepared", (Discard, DropTurn), "quiet"),
    Row("pause", TurnKept, _always, "", (DropTurn,), "quiet"),
    Row("pause", Ticked, _both(_commit, _prepared), "P(respond) ≥ release_p, a response is prepared", (Release,), "agent"),
    Row("pause", Ticked, _commit, "P(respond) ≥ release_p", (Prepare, Release), "agent"),
    Row(
        "pause",
        Ticked,
        _may_encourage,
        "backchannels are on, P(goes_on) ≥ goes_on_p, the user spoke for backchannel_after_s and is silent for backchannel_pause_s",
        (GiveBackchannel,),
        "pause",
    ),
    Row("pause", Ticked, _both(_respond, _not(_prepared)), "P(respond) ≥ prepare_p, none is prepared", (Prepare,), "pause"),
    Row("pause", ResponseAsked, _prepared, "a response is prepared", (Release,), "agent"),
    Row("pause", ResponseAsked, _always, "", (Prepare, Release), "agent"),
    Row("pause", MannerChanged, _prepared, "a response is prepared", (Discard,), "pause"),
    Row("pause", CancelAsked, _prepared, "a response is prepared", (Discard, DropTurn), "quiet"),
    Row("agent", NothingSaid, _not(_audible), "nothing of it was heard", (Discard, DropTurn), "quiet"),
    Row(
        "agent",
        VoiceBegan,
        _both(_not(_audible), _unasked),
        "nothing of it was heard, it answers no turn",
        (Discard, BeginTurn),
        "user",
    ),
    Row("agent", VoiceBegan, _not(_audible), "nothing of it was heard", (Discard,), "user"),
    Row("agent", VoiceBegan, _may_interrupt, "interruption is allowed and the echo is under control", (Duck, BeginTurn), "ducked"),
    Row("agent", ResponseDrained, _both(_ours, _voice), "it is the current response, the user is speaking", (BeginTurn,), "user"),
    Row("agent", ResponseDrained, _ours, "it is the current response", (), "quiet"),
    Row("agent", CancelAsked, _always, "", (Stop,), "quiet"),
    Row("ducked", VoiceEnded, _always, "", (Transcribe,), "ducked"),
    Row("ducked", Ticked, _both(_yield, _voice), "P(yield) ≥ yield_p, the user is speaking", (Stop,), "user"),
    Row("ducked", Ticked, _yield, "P(yield) ≥ yield_p", (Stop,), "pause"),
    Row("ducked", Ticked, _backchannel, "P(backchannel) ≥ backchannel_p", (Resume, NoteBackchannel), "agent"),
    Row(
        "ducked",
        Ticked,
        _both(_long_enough, _not(_humming)),
        "the voice lasts hold_s and P(backchannel) < hold_backchannel_p",
        (Hold,),
        "held",
    ),
    Row("ducked", ResponseDrained, _both(_ours, _voice), "it is the current response, the user is speaking", (), "user"),
    Row("ducked", ResponseDrained, _ours, "it is the current response", (), "pause"),
    Row("ducked", CancelAsked, _voice, "the user is speaking", (Stop,), "user"),
    Row("ducked", CancelAsked, _always, "", (Stop,), "pause"),
    Row("held", VoiceEnded, _always, "", (Transcribe,), "held"),
    Row("held", Ticked, _both(_yield, _voice), "P(yield) ≥ yield_p, the user is speaking", (Stop,), "user"),
    Row("held", Ticked, _yield, "P(yield) ≥ yield_p", (Stop,), "pause"),
    Row("held", Ticked, _backchannel, "P(backchannel) ≥ backchannel_p", (Resume, NoteBackchannel), "agent"),
    Row("held", Ticked, _held_too_long, "held for held_most_s", (Resume, NoteBackchannel), "agent"),
    Row("held", CancelAsked, _voice, "the user is speaking", (Stop,), "user"),
    Row("held", CancelAsked, _always, "", (Stop,), "pause"),
)


class TurnTaking:
    """One conversation's floor."""

    def __init__(self, config: TurnConfig | None = None) -> None:
        self.config = config or TurnConfig()
        self.floor: Floor = "quiet"
        self._memory = _Memory()

    @property
    def current(self) -> int | None:
        """The epoch of the response that is being prepared or played, or None."""
        return self._memory.current

    @property
    def overlap_at(self) -> int:
        """Where the newest sound over the agent's voice set in, in user samples."""
        return self._memory.overlap_at

    def receive(self, signal: Signal) -> list[Action]:
        """Take a fact, move the floor, say what to do. Never raises for a signal that does not fit: it changes nothing."""
        memory = self._memory
        if isinstance(signal, VoiceBegan):
            memory.voice, memory.onset = True, signal.at
        elif isinstance(signal, VoiceEnded):
            memory.spoken += max(signal.at - memory.onset, 0) if memory.voice else 0
            memory.voice, memory.silent_at = False, signal.at
        elif isinstance(signal, ResponseAudible) and signal.epoch == memory.current:
            memory.audible = True
        for row in TABLE:
            if row.floor == self.floor and isinstance(signal, row.signal) and row.guard(self.config, memory, signal):
                actions = [self._act(kind, signal) for kind in row.actions]
                if isinstance(signal, ResponseDrained):
                    memory.current, memory.audible = None, False
                self.floor = row.next
                return actions
        return []

    def _act(self, kind: type[Action], signal: Signal) -> Action:
        memory = self._memory
        if kind is Prepare:
            memory.epoch += 1
            memory.current, memory.audible = memory.epoch, False
            memory.answers = self.floor != "quiet"
            return Prepare(memory.epoch)
        if issubclass(kind, ForResponse):
            assert memory.current is not None, "an order for a response needs one"
            action = kind(memory.current)
            if kind is Duck:
                memory.overlap_at = signal.at
            elif kind is Hold:
                memory.held_at = signal.at
            elif kind in (Discard, Stop):
                memory.current, memory.audible = None, False
            return action
        if kind is BeginTurn:
            memory.spoken = 0
            return BeginTurn(memory.onset)
        if kind is GiveBackchannel:
            memory.spoken = 0
        return kind()
