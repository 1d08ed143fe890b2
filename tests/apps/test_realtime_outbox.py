"""What waits for a client: joined, bounded, kept while it is away."""

from __future__ import annotations

import base64
import json

import numpy as np

from apps.realtime_audio import SoundOut
from apps.realtime_outbox import MOST_WAITING, Outbox


def frame(value: float = 0.5) -> np.ndarray:
    return np.full(480, value, np.float32)


def test_sound_that_waits_is_one_message_and_order_is_kept() -> None:
    box, encoder = Outbox(), SoundOut("audio/pcm")
    for _ in range(3):
        box.put_sound({"type": "sound"}, encoder, frame())
    box.put({"type": "between"})
    box.put_sound({"type": "sound"}, encoder, frame())
    told = [json.loads(box.take()) for _ in range(len(box))]
    assert [event["type"] for event in told] == ["sound", "between", "sound"]
    assert [len(base64.b64decode(event.get("delta", ""))) for event in told] == [2880, 0, 960]
    assert len({event["event_id"] for event in told}) == 3


def test_a_client_that_does_not_read_is_to_be_cut_off() -> None:
    box = Outbox()
    for _ in range(MOST_WAITING + 5):
        box.put({"type": "x"})
    assert box.overfull.is_set() and len(box) == MOST_WAITING


def test_away_sound_is_dropped_and_the_oldest_events_are_lost() -> None:
    box, encoder = Outbox(), SoundOut("audio/pcm")
    box.put_sound({"type": "sound"}, encoder, frame())
    box.go_away()
    box.put_sound({"type": "sound"}, encoder, frame())
    for number in range(MOST_WAITING + 5):
        box.put({"type": "x", "number": number})
    assert box.dropped == 5 and not box.overfull.is_set()
    box.come_back([{"type": "first"}])
    told = [json.loads(box.take()) for _ in range(3)]
    assert [event.get("number", event["type"]) for event in told] == ["first", 5, 6]
