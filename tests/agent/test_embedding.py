"""The agent inside another program: the example of the documentation, as it stands there; and what `import agent` costs."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import agent
from agent.doubles import spoken
from agent.scripted_user import Say, ScriptedUser
from duplex.errors import ConfigError
from duplex.events import Event, UserStarted, UserStopped

ROOT = Path(__file__).parents[2]


def example() -> str:
    """The first Python example of docs/embedding.md."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs/embedding.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_has_about_twenty_lines() -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 20


@pytest.mark.weights
def test_the_example_runs_as_it_stands(edge_weights: dict[str, Path]) -> None:
    lines = run(example()).splitlines()
    assert lines[0] == "user:  What is the capital of France?"
    assert lines[1].startswith("agent: ") and "Paris" in lines[1]


def test_importing_the_package_is_light_and_what_it_exports_is_there() -> None:
    code = "import sys, agent; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run(code).split() == ["False", "False"]
    for name in agent.__all__:
        assert getattr(agent, name).__name__ == name
    assert set(agent.__all__) <= set(dir(agent))
    with pytest.raises(AttributeError, match="no attribute 'Sesion'; it has Agent"):
        agent.Sesion  # noqa: B018


async def test_one_agent_holds_two_conversations_at_once() -> None:
    async def talk(held: agent.Agent, seconds: float) -> list[Event]:
        user = ScriptedUser([Say(spoken(seconds))], patience_s=1.0, hang_up_s=0.5)
        session = held.session(user, echo="none", system_prompt="You are a parrot.")
        assert session.config.response.system_prompt == "You are a parrot."
        events = session.events()
        async with session:
            await session.wait()
        return [event async for event in events]

    with agent.load_agent("tiny") as held:
        for length, events in zip((0.6, 1.2), await asyncio.gather(talk(held, 0.6), talk(held, 1.2)), strict=True):
            (began,) = (event.at for event in events if isinstance(event, UserStarted))
            (ended,) = (event.at for event in events if isinstance(event, UserStopped))
            assert (ended - began) / 16_000 == pytest.approx(length, abs=0.2)


def test_a_profile_may_be_a_name_or_a_loaded_one_and_a_wrong_one_is_told() -> None:
    profile = agent.load_profile("tiny", ["session.interim_s=0.4"])
    with agent.load_agent(profile) as held:
        assert held.profile is profile
        assert held.session(ScriptedUser([Say(np.zeros(320, np.float32))])).config.interim_s == 0.4
    held.close()
    with pytest.raises(ConfigError, match="no profile 'huge'"):
        agent.load_agent("huge")
