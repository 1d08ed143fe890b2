"""What the predictor is told: the newest 80 ms, the loudest voice of the tick, and the user's turn as it stands."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agent.tick import TickSound
from agent.user_turn import UserTurn
from duplex.audio import TICK, TICK_FRAMES, USER_FRAME
from duplex.predictor import Ending
from encoders.ears import Transcript


def test_a_tick_holds_its_own_sound_and_its_own_voice() -> None:
    sound = TickSound()
    stream = np.arange(3 * TICK, dtype=np.float32)
    for tick in range(3):
        for frame in range(TICK_FRAMES):
            at = tick * TICK + frame * USER_FRAME
            sound.take(stream[at : at + USER_FRAME])
            sound.voice(0.1 * (tick + 1) if frame == 1 else 0.0)
        heard = sound.heard(None, False, TICK, (tick + 1) * TICK, agent_speaking=tick == 1)
        assert np.array_equal(heard.sound, stream[tick * TICK : (tick + 1) * TICK])
        assert heard.voice_p == 0.1 * (tick + 1) and heard.agent_speaking == (tick == 1)
        assert heard.silence_s == 0.08 * tick and heard.transcript == ""
    assert sound.heard(None, True, 0, 4 * TICK, agent_speaking=False).voice_p == 0.0


def test_a_turn_is_told_with_its_words_and_over_the_agents_voice_with_its_hum() -> None:
    turn = UserTurn(1, 1000, 17_000)
    turn.transcript = Transcript("Well, no", 17_000, listening=0.3, over=1.0)
    turn.ends = Ending(0.25)
    sound = TickSound()
    sound.take(np.zeros(USER_FRAME, np.float32))
    alone = sound.known(turn, False, 17_000, 25_000, overlap=False)
    assert (alone.voiced_s, alone.silence_s, alone.transcript, alone.transcript_fresh) == (1.0, 0.5, "Well, no", True)
    assert alone.sentence_ends == 0.25 and alone.hum == 0.0 and turn.hum == 1.0
    heard = sound.heard(turn, False, 17_000, 25_000, agent_speaking=False)
    assert heard.sentence_ends == 0.25 and heard.listening == alone.listening == 0.3
    turn.ends = Ending(0.25, learnt=True)
    taught = sound.known(turn, False, 17_000, 25_000, overlap=False)
    assert taught.sentence_ends == pytest.approx(1 / (1 + 3 / math.e)) == pytest.approx(turn.ending)
    assert Ending(0.25, learnt=True).heard(None) == 0.25 and 0 <= Ending(0.0, learnt=True).heard(50.0) <= 1
    over = sound.known(turn, True, 25_000, 25_000, overlap=True)
    assert over.agent_speaking and over.silence_s == 0.0 and over.hum == turn.hum < 1.0
