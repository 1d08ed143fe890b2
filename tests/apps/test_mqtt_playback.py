"""The way of the voice to a satellite, on a clock that the test turns: just in time, droppable, and known to be heard or not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.mqtt_playback import PAUSE_FRAMES, Piece, Playback, PlaybackConfig
from duplex.audio import AGENT_FRAME, AGENT_RATE_HZ
from duplex.errors import ConfigError

LOUD = np.full(AGENT_FRAME, 0.3, np.float32)
SILENT = np.zeros(AGENT_FRAME, np.float32)


class Player:
    """A satellite that plays pieces one after another, each after a gap, and reports them if it does."""

    def __init__(self, config: PlaybackConfig | None = None, gap_s: float = 0.0, reports: bool = True) -> None:
        self.playback = Playback(config)
        self.gap_s, self.reports = gap_s, reports
        self.now = 0.0
        self.pieces: list[tuple[Piece, float, float]] = []
        self._told = 0

    def frames(self, frame: np.ndarray, count: int) -> None:
        for _ in range(count):
            while self.reports and self._told < len(self.pieces) and self.pieces[self._told][2] <= self.now:
                piece = self.pieces[self._told][0]
                self.playback.played(piece.passage, piece.index, self.now)
                self._told += 1
            for piece in self.playback.take(frame, self.now):
                begins = max(self.now, self.until) + self.gap_s
                self.pieces.append((piece, begins, begins + len(piece.samples) / AGENT_RATE_HZ))
            self.now += 0.02

    @property
    def until(self) -> float:
        return self.pieces[-1][2] if self.pieces else 0.0

    @property
    def sound(self) -> np.ndarray:
        return np.concatenate([np.zeros(0), *(p.samples for p, _, _ in self.pieces)])


@given(
    chunk=st.integers(20, 800),
    lead=st.integers(0, 200),
    speech=st.lists(st.tuples(st.integers(1, 80), st.integers(PAUSE_FRAMES + 1, 60)), min_size=1, max_size=4),
    reports=st.booleans(),
    streaming=st.booleans(),
)
def test_every_sample_goes_out_once_in_order(
    chunk: int, lead: int, speech: list[tuple[int, int]], reports: bool, streaming: bool
) -> None:
    player = Player(PlaybackConfig(chunk, lead, streaming), reports=reports)
    for loud, silent in speech:
        player.frames(LOUD, loud)
        player.frames(SILENT, silent)
    player.frames(SILENT, 200)
    sound = player.sound
    assert (np.abs(sound) > 0.1).sum() == sum(loud for loud, _ in speech) * AGENT_FRAME
    assert not player.playback.waiting and not player.playback.busy(player.now + 10)
    if streaming:
        indexes = [p.index for p, _, _ in player.pieces]
        assert [p.last for p, _, _ in player.pieces] == [*(i == 0 for i in indexes[1:]), True]


def test_a_passage_is_played_without_gaps_and_begins_after_a_piece_and_the_lead() -> None:
    player = Player()
    player.frames(LOUD, 100)
    player.frames(SILENT, 20)
    begins, ends = [b for _, b, _ in player.pieces], [e for _, _, e in player.pieces]
    assert begins[0] == pytest.approx(0.36, abs=0.021)
    np.testing.assert_allclose(begins[1:], ends[:-1])


def test_never_more_than_the_bound_is_out_of_reach() -> None:
    player = Player()
    for _ in range(120):
        player.frames(LOUD, 1)
        assert player.playback.left_s(player.now) <= player.playback.config.stop_bound_ms / 1000


def test_what_is_dropped_is_never_played_and_the_cut_fades() -> None:
    player = Player()
    player.frames(LOUD, 50)
    player.frames(LOUD, 5)
    waiting = player.playback.waiting
    unheard = player.playback.drop()
    assert 0 < waiting - unheard <= AGENT_RATE_HZ // 100
    before = len(player.sound)
    player.frames(LOUD, 2)  # the fade that was under way
    player.frames(SILENT, 60)
    tail = player.sound[before:]
    assert len(tail) == waiting - unheard and tail[0] > 0.25 and abs(tail[-1]) < 0.01
    player.frames(LOUD, 30)
    player.frames(SILENT, 60)
    assert (np.abs(player.sound[before + len(tail) :]) > 0.1).sum() == 30 * AGENT_FRAME


def test_a_pause_keeps_what_is_here_until_it_goes_on() -> None:
    player = Player()
    player.frames(LOUD, 52)
    count = len(player.pieces)
    player.playback.pause()
    player.frames(LOUD, 1)
    player.frames(SILENT, 40)
    assert len(player.pieces) == count and player.playback.waiting > 0
    player.playback.go_on()
    player.frames(LOUD, 20)
    player.frames(SILENT, 60)
    assert (np.abs(player.sound) > 0.1).sum() == 73 * AGENT_FRAME


def test_a_player_with_gaps_is_followed_and_not_flooded() -> None:
    player = Player(gap_s=0.1)
    player.frames(LOUD, 500)
    assert player.until - player.now < 2 * player.playback.config.stop_bound_ms / 1000 + 0.2
    assert player.playback.waiting < 2 * AGENT_RATE_HZ  # longer pieces make up for the gaps, as far as can be
    player.frames(SILENT, 200)
    assert (np.abs(player.sound) > 0.1).sum() == 500 * AGENT_FRAME


def test_a_satellite_that_never_answers_is_believed_by_the_clock() -> None:
    player = Player(reports=False)
    player.frames(LOUD, 20)
    player.frames(SILENT, 60)
    assert not player.playback.busy(player.now)


def test_settings_out_of_range_are_told() -> None:
    for wrong in ({"chunk_ms": 10}, {"chunk_ms": 9000}, {"lead_ms": -1}, {"rate_hz": 96_000}):
        with pytest.raises(ConfigError):
            PlaybackConfig(**wrong)
