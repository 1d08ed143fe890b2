"""Playout: frames, gains, what was heard."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.audio import AGENT_FRAME
from duplex.playout import Pace, Playout, PlayoutConfig


def filled(words: int = 10, samples: int = 2400) -> Playout:
    playout = Playout()
    playout.begin(1)
    for i in range(words):
        playout.put(1, np.full(samples, 0.5, np.float32), [(f" w{i}", samples)])
    playout.finish(1)
    playout.release(1)
    return playout


def test_nothing_leaves_before_release() -> None:
    playout = Playout()
    playout.begin(1)
    playout.put(1, np.ones(960, np.float32), [("hi", 960)])
    assert not playout.pull().any() and playout.texts(1) == ("", "hi")
    playout.release(1)
    assert playout.pull().all()


def test_stale_chunks_are_refused() -> None:
    playout = filled()
    playout.begin(2)
    assert not playout.put(1, np.ones(10, np.float32), [])
    assert playout.texts(1) == ("", "")


def test_heard_words_are_those_whose_sound_was_pulled() -> None:
    playout = filled()
    for _ in range(5 * 3 + 1):  # 3.2 words
        playout.pull()
    assert playout.texts(1) == (" w0 w1 w2", "".join(f" w{i}" for i in range(10)))


def test_stop_fades_within_one_frame_and_nothing_follows() -> None:
    playout = filled()
    playout.pull()
    playout.stop()
    frame = playout.pull()
    assert frame[0] == pytest.approx(0.5) and not frame[192:].any()
    assert np.abs(np.diff(frame)).max() < 0.01  # no click
    assert not playout.pull().any()
    assert not playout.put(1, np.ones(10, np.float32), [])


def test_hold_keeps_the_place_and_resume_begins_the_cut_word_again() -> None:
    playout = filled()
    for _ in range(7):  # into the second word
        playout.pull()
    playout.hold()
    playout.pull()
    before = playout.buffered()
    assert not playout.pull().any() and playout.buffered() == before
    playout.resume()
    frame = playout.pull()
    assert frame[-1] == pytest.approx(0.5)
    assert playout.buffered() == 8 * 2400 + 2400 - AGENT_FRAME


def respond(playout: Playout, epoch: int, share: float, frames: int = 100) -> tuple[int, int]:
    """A response of `frames` frames made at `share` of real time: (frames until it was heard, frames in which it ran dry)."""
    playout.begin(epoch)
    playout.release(epoch)
    before, made, first = playout.underruns, 0, -1
    for now in range(10 * frames):
        while made < frames and made < (now + 1) * share:
            playout.put(epoch, np.full(AGENT_FRAME, 0.5, np.float32), [(f" {made}", AGENT_FRAME)])
            made += 1
        if made == frames:
            playout.finish(epoch)
        playout.pull()
        if first < 0 and playout.started():
            first = now
        if playout.drained() is not None:
            return first, playout.underruns - before
    raise AssertionError("the response never ended")


def test_a_machine_that_is_too_slow_begins_later_and_does_not_run_dry() -> None:
    playout = Playout()
    waits, dry = zip(*(respond(playout, epoch, 0.8) for epoch in range(1, 6)), strict=True)
    assert waits[0] <= 1 and dry[0] > 15
    assert sum(dry[1:]) <= 8 and max(waits) <= 40
    calm = [respond(playout, epoch, 2.0) for epoch in range(6, 40)]
    assert all(dry == 0 for _, dry in calm) and calm[-1][0] <= 1


def test_the_wait_has_a_limit_and_ends_with_the_response() -> None:
    playout = Playout(PlayoutConfig(most_lead_ms=200.0))
    for epoch in range(1, 6):
        wait, _ = respond(playout, epoch, 0.3)
        assert wait <= 3 + 10
    assert respond(playout, 6, 0.3, frames=3)[0] <= 3 / 0.3  # a short one is whole before the wait is over
    never = Playout(PlayoutConfig(most_lead_ms=0.0))
    assert all(respond(never, epoch, 0.5)[0] <= 1 for epoch in range(1, 4))


def test_what_one_conversation_learns_the_next_one_knows() -> None:
    pace = Pace()
    first, second = Playout(pace=pace), Playout(pace=pace)
    dry = respond(first, 1, 0.8)[1]
    assert not first.pull().any()  # it is over
    wait, less = respond(second, 1, 0.8)
    assert wait >= dry > 15 and less <= 2
    assert respond(Playout(PlayoutConfig(most_lead_ms=0.0), pace), 1, 0.8)[0] <= 1


def test_a_response_that_had_waited_and_ran_dry_all_the_same_makes_the_next_one_wait_longer_than_both() -> None:
    playout = Playout()
    playout.begin(1)
    playout.put(1, np.ones(5 * AGENT_FRAME, np.float32), [])
    for _ in range(20):  # prepared, and let out 20 frames later
        playout.pull()
    playout.release(1)
    for _ in range(5 + 7):
        playout.pull()
    playout.begin(2)
    assert playout.underruns == 7 and playout.pace.lead == 27


def test_a_response_that_nobody_heard_teaches_nothing() -> None:
    playout = Playout()
    respond(playout, 1, 0.8)
    for epoch in range(2, 29):  # prepared and thrown away
        playout.begin(epoch)
        playout.drop(epoch)
    playout.begin(29)  # prepared long before it is let out
    playout.put(29, np.ones(AGENT_FRAME, np.float32), [])
    for _ in range(100):
        assert not playout.pull().any()
    playout.release(29)
    assert playout.pull().any(), "it has waited long enough"
    playout.drop(29)
    assert respond(Playout(), 1, 0.8)[0] <= 1


@given(st.lists(st.tuples(st.floats(0.2, 3.0), st.integers(1, 60)), min_size=1, max_size=8))
def test_every_response_is_played_whole_whatever_the_wait(responses: list[tuple[float, int]]) -> None:
    playout = Playout()
    for epoch, (share, frames) in enumerate(responses, 1):
        wait, _ = respond(playout, epoch, share, frames)
        assert wait >= 0 and playout.words_heard(epoch) == frames


def test_duck_lowers_and_resume_raises() -> None:
    playout = filled()
    playout.pull()
    playout.duck()
    playout.pull()
    assert playout.pull()[100] == pytest.approx(0.5 * 10 ** (-14 / 20), rel=1e-3)
    playout.resume()
    playout.pull()
    assert playout.pull()[100] == pytest.approx(0.5)


def test_a_stall_is_counted_and_an_end_is_not() -> None:
    playout = Playout()
    playout.begin(1)
    playout.put(1, np.ones(AGENT_FRAME, np.float32), [("a", AGENT_FRAME)])
    playout.release(1)
    for _ in range(3):
        playout.pull()
    assert playout.underruns == 2 and playout.drained() is None
    playout.finish(1)
    assert playout.drained() == 1
    playout.pull()
    assert playout.underruns == 2


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=20), st.integers(0, 5))
def test_what_is_pulled_is_what_was_put(lengths: list[int], early: int) -> None:
    """Chunks of any length, put before or between pulls, come out once and in order."""
    playout = Playout()
    playout.begin(1)
    playout.release(1)
    whole, pulled = [], []
    for number, length in enumerate(lengths):
        chunk = np.full(length, (number + 1) / 100, np.float32)
        whole.append(chunk)
        playout.put(1, chunk, [(f"{number} ", length)])
        if number >= early and playout.buffered() >= AGENT_FRAME:
            pulled.append(playout.pull())
    playout.finish(1)
    while playout.drained() is None:
        pulled.append(playout.pull())
    expected = np.concatenate(whole)
    got = np.concatenate(pulled) if pulled else np.zeros(0, np.float32)
    assert np.array_equal(got[: len(expected)], expected) and not got[len(expected) :].any()
    assert playout.texts(1)[0] == playout.texts(1)[1] == "".join(f"{n} " for n in range(len(lengths)))


def test_a_murmur_is_played_between_responses_and_belongs_to_none() -> None:
    playout = Playout()
    playout.murmur(np.full(AGENT_FRAME + 100, 0.3, np.float32))
    first, second, third = playout.pull(), playout.pull(), playout.pull()
    assert (
        (first == np.float32(0.3)).all() and (second[:100] == np.float32(0.3)).all() and not second[100:].any() and not third.any()
    )
    assert playout.playing is None and not playout.murmuring and not playout.started() and playout.underruns == 0


@given(st.integers(0, 4), st.integers(0, 3 * AGENT_FRAME))
def test_a_response_that_becomes_audible_ends_a_murmur_without_a_click(frames: int, length: int) -> None:
    playout = filled()
    playout.begin(2)
    playout.murmur(np.full(length, 0.3, np.float32))
    before = [playout.pull() for _ in range(frames)]
    playout.put(2, np.full(3 * AGENT_FRAME, 0.5, np.float32), [(" yes", 3 * AGENT_FRAME)])
    playout.release(2)
    after = np.concatenate([playout.pull() for _ in range(3)])
    assert playout.playing == 2 and not playout.murmuring
    assert sum(float(frame.sum()) for frame in before) == pytest.approx(0.3 * min(length, frames * AGENT_FRAME), rel=1e-3)
    left = max(length - frames * AGENT_FRAME, 0)
    assert (after[192:] == 0.5).all() and (after[0] == pytest.approx(0.8) if left > 1 else after.max() <= 0.81)
    assert float(np.abs(np.diff(after)).max(initial=0)) <= (0.31 if 0 < left < 192 else 0.01)
