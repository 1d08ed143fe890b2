"""The agent's own backchannels: in the pauses of a long turn, in its voice, and never as a response."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.backchannels import BackchannelConfig
from agent.response import ResponseConfig
from agent.session import SessionConfig
from duplex.errors import ConfigError
from duplex.events import AgentBackchannel, ResponseStarted, Trouble
from duplex.turns import TurnConfig
from tests.agent.conversations import Line, Outcome, converse

CONFIG = SessionConfig(
    response=ResponseConfig(group_tokens=1),
    turns=TurnConfig(backchannels=True),
    backchannels=BackchannelConfig(texts=("Mm-hm.", "I see."), level_db=-6.0),
)
STORY = Line("So yesterday I went to the", 4.0, then="station and my train was late.", gap_s=1.0)


def told(config: SessionConfig) -> Outcome:
    return converse([STORY], ["Oh no."], config)


def test_a_pause_in_a_long_turn_gets_one_in_the_agents_voice() -> None:
    done = told(CONFIG)
    (given,) = done.of(AgentBackchannel)
    said = done.user.said[0]
    assert given.text == "Mm-hm." and said.start + 64_000 < given.at < said.start + 80_000
    _, agent = done.user.tracks()
    at = round(given.at * 1.5)
    heard = agent[at : at + 6000]
    assert float(np.abs(heard).max()) == pytest.approx(0.1, abs=0.01)  # half of the voice's 0.2
    assert not agent[at + 7000 : round((said.start + 80_000) * 1.5)].any()


def test_it_is_no_response_and_is_not_remembered() -> None:
    done = told(CONFIG)
    assert len(done.of(ResponseStarted)) == 1 and not done.of(Trouble)
    assert done.history() == [("user", "So yesterday I went to the station and my train was late."), ("assistant", "Oh no.")]


def test_there_are_none_unless_they_are_asked_for() -> None:
    done = told(replace(CONFIG, turns=TurnConfig()))
    assert not done.of(AgentBackchannel)
    _, agent = done.user.tracks()
    assert not agent[: round(done.user.said[0].end * 1.5)].any()


def test_a_short_turn_gets_none() -> None:
    done = converse([replace(STORY, lasts_s=1.0)], ["Oh no."], CONFIG)
    assert not done.of(AgentBackchannel)


def test_a_list_without_texts_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one text"):
        BackchannelConfig(texts=())
    with pytest.raises(ConfigError, match="no empty one"):
        BackchannelConfig(texts=("Right.", " "))
