"""The turn-taking core: its table, and that no order of signals can break it."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from duplex import turn_signals as s
from duplex.predictor import TickDecision
from duplex.turn_docs import turn_table_markdown
from duplex.turns import TABLE, TurnConfig, TurnTaking

DOCS = Path(__file__).parents[2] / "docs" / "turn-taking.md"


def test_the_documentation_is_drawn_from_the_table() -> None:
    assert DOCS.read_text(encoding="utf-8") == turn_table_markdown()


def kinds(actions: list[s.Action]) -> list[str]:
    return [type(a).__name__ for a in actions]


def tick(at: int, **p: float) -> s.Ticked:
    return s.Ticked(at, TickDecision(**p))


def test_a_turn_from_onset_to_the_last_sample_of_the_answer() -> None:
    turns = TurnTaking()
    assert turns.receive(s.VoiceBegan(100)) == [s.BeginTurn(100)]
    assert kinds(turns.receive(s.VoiceEnded(9000))) == ["Transcribe"]
    assert turns.receive(tick(10_000, respond=0.3)) == []
    assert turns.receive(tick(11_000, respond=0.6)) == [s.Prepare(1)]
    assert turns.receive(tick(12_000, respond=0.6)) == []
    assert turns.receive(tick(13_000, respond=0.9)) == [s.Release(1)]
    assert turns.floor == "agent"
    turns.receive(s.ResponseAudible(14_000, 1))
    assert turns.receive(s.ResponseDrained(40_000, 7)) == []
    assert turns.receive(s.ResponseDrained(40_000, 1)) == []
    assert turns.floor == "quiet" and turns.current is None


def speaking() -> TurnTaking:
    turns = TurnTaking()
    for signal in (s.VoiceBegan(0), s.VoiceEnded(8000), tick(16_000, respond=1.0), s.ResponseAudible(17_000, 1)):
        turns.receive(signal)
    assert turns.floor == "agent"
    return turns


def test_duck_hold_stop() -> None:
    turns = speaking()
    assert turns.receive(s.VoiceBegan(20_000)) == [s.Duck(1), s.BeginTurn(20_000)]
    assert turns.receive(tick(22_000, yield_=0.2, backchannel=0.1)) == [s.Hold(1)]
    assert turns.receive(tick(30_000, yield_=0.9)) == [s.Stop(1)]
    assert turns.floor == "user"


def test_a_hum_ducks_and_passes() -> None:
    turns = speaking()
    turns.receive(s.VoiceBegan(20_000))
    assert turns.receive(tick(22_000, backchannel=0.5)) == []
    turns.receive(s.VoiceEnded(27_000))
    assert turns.receive(tick(30_000, backchannel=0.9)) == [s.Resume(1), s.NoteBackchannel()]
    assert turns.floor == "agent"


def test_untrusted_voice_does_not_duck_the_agent() -> None:
    turns = speaking()
    assert turns.receive(s.VoiceBegan(20_000, trusted=False)) == []
    assert turns.receive(s.ResponseDrained(30_000, 1)) == [s.BeginTurn(20_000)]
    assert turns.floor == "user"


def test_an_endless_hold_is_given_up() -> None:
    turns = speaking()
    turns.receive(s.VoiceBegan(20_000))
    turns.receive(tick(22_000))
    assert kinds(turns.receive(tick(22_000 + 16_000 * 3))) == ["Resume", "NoteBackchannel"]


def test_every_row_can_be_reached() -> None:
    seen = {(row.floor, row.signal) for row in TABLE}
    assert {floor for floor, _ in seen} == {"quiet", "user", "pause", "agent", "ducked", "held"}
    for row in TABLE:
        assert row.next in {r.floor for r in TABLE}
        assert row.when or row.guard.__name__ == "_always"


probability = st.floats(0, 1)
signals = st.one_of(
    st.builds(s.VoiceBegan, st.integers(0, 10**6), st.booleans()),
    st.builds(s.VoiceEnded, st.integers(0, 10**6)),
    st.builds(s.Ticked, st.integers(0, 10**6), st.builds(TickDecision, probability, probability, probability)),
    st.builds(s.NothingSaid, st.integers(0, 10**6)),
    st.builds(s.ResponseAudible, st.integers(0, 10**6), st.integers(1, 5)),
    st.builds(s.ResponseDrained, st.integers(0, 10**6), st.integers(1, 5)),
    st.builds(s.CancelAsked, st.integers(0, 10**6)),
    st.builds(s.ResponseAsked, st.integers(0, 10**6)),
)


@given(st.lists(signals, max_size=60), st.booleans())
def test_any_order_of_signals_keeps_the_books(given_signals: list[s.Signal], interrupt: bool) -> None:
    """Epochs rise, one response lives at a time, and each ends once: by Discard, by Stop, or by being drained."""
    turns = TurnTaking(TurnConfig(interrupt=interrupt))
    newest, live, released = 0, None, False
    for signal in given_signals:
        before = turns.floor
        for action in turns.receive(signal):
            match action:
                case s.Prepare(epoch):
                    assert live is None and epoch == newest + 1
                    newest, live, released = epoch, epoch, False
                case s.Release(epoch):
                    assert epoch == live and not released
                    released = True
                case s.Discard(epoch):
                    assert epoch == live
                    live = None
                case s.Stop(epoch):
                    assert epoch == live and released
                    live = None
                case s.Duck(epoch) | s.Hold(epoch) | s.Resume(epoch):
                    assert epoch == live and released and interrupt
        if isinstance(signal, s.ResponseDrained) and before in ("agent", "ducked") and turns.current is None:
            live = None
        assert turns.current == live
        assert (turns.floor in ("agent", "ducked", "held")) == (live is not None and released)


def pausing(config: TurnConfig, spoken_s: float = 4.0) -> TurnTaking:
    turns = TurnTaking(config)
    turns.receive(s.VoiceBegan(0))
    turns.receive(s.VoiceEnded(round(16_000 * spoken_s)))
    return turns


def test_a_long_turn_that_goes_on_gets_one_backchannel() -> None:
    config = TurnConfig(backchannels=True, backchannel_after_s=3.0, backchannel_pause_s=0.3)
    turns = pausing(config)
    assert turns.receive(tick(67_200, goes_on=0.9)) == []  # 200 ms of silence: only a breath
    assert turns.receive(tick(70_400, goes_on=0.7)) == []
    assert turns.receive(tick(70_400, goes_on=0.9)) == [s.GiveBackchannel()]
    assert turns.receive(tick(80_000, goes_on=0.9)) == [] and turns.floor == "pause"
    turns.receive(s.VoiceBegan(90_000))
    turns.receive(s.VoiceEnded(110_000))  # too short to be encouraged again
    assert turns.receive(tick(120_000, goes_on=0.9)) == []
    turns.receive(s.VoiceBegan(130_000))
    turns.receive(s.VoiceEnded(160_000))
    assert turns.receive(tick(170_000, goes_on=0.9)) == [s.GiveBackchannel()]
    assert turns.receive(tick(180_000, respond=0.9)) == [s.Prepare(1), s.Release(1)]


def test_short_turns_and_a_silent_agent_get_none() -> None:
    assert pausing(TurnConfig(backchannels=True), 2.0).receive(tick(70_400, goes_on=1.0)) == []
    assert pausing(TurnConfig()).receive(tick(70_400, goes_on=1.0)) == []
