"""The agent with its real weights: what a user gets."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agent.build import build_parts, build_session
from agent.feed import Feed
from agent.history import MOST_MESSAGES, History
from agent.profiles import load_profile
from agent.scripted_user import Say, ScriptedUser
from agent.virtual_time import run_virtual
from agent.worker import VirtualWorker
from apps.bench_clips import clips
from apps.bench_conversation import contains
from apps.bench_talks import talk
from duplex.errors import ConfigError
from duplex.events import Event, ResponseEnded, ResponseStarted, Trouble, UserTranscript
from duplex.metrics import stop_latency_s
from tests.encoders.real_speech import recorded, wrong_words

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def parts(edge_weights: dict[str, Path]):
    return build_parts(load_profile("edge"))


@pytest.fixture
def own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work takes the time that this program's processor spends on it, not what other programs on the machine take meanwhile."""
    monkeypatch.setattr("agent.worker.time", SimpleNamespace(perf_counter=time.process_time))


@pytest.mark.weights
def test_a_spoken_question_is_heard_answered_and_understood(parts, own_time: None) -> None:
    clip = next(c for c in clips("questions") if "France" in c.text)
    done = talk(load_profile("edge"), parts, [Say(clip.samples())], paced=False)
    assert [e.text for e in done.of(UserTranscript) if e.final] == [clip.text]
    (ended,) = done.of(ResponseEnded)
    assert contains(ended.heard, clip.expect) and ended.heard == ended.text
    assert done.of(ResponseStarted)[0].latency_s < 3.0  # loose: the machine may be slow; the bench measures
    assert done.underruns == 0
    state = parts.ears.open()
    from duplex.resample import resample

    parts.ears.feed(state, np.asarray(resample(done.agent_track, 24_000, 16_000), np.float32)[-16_000 * 8 :])
    heard = parts.ears.transcribe(parts.ears.window(state)).text
    assert "paris" in heard.lower()


@pytest.mark.weights
def test_a_man_who_pauses_is_waited_for(parts, own_time: None) -> None:
    """Kennedy in 1961, who falls silent three times before he has asked what he asks."""
    man = recorded("jfk")
    done = talk(load_profile("edge"), parts, [Say(man)], paced=False)
    (started,) = done.of(ResponseStarted)
    assert started.at > done.user.said[0].end, "the agent began before he had finished"
    said = [e.text for e in done.of(UserTranscript) if e.final]
    assert len(said) == 1 and wrong_words("jfk", said[0]) <= 2


@pytest.mark.weights
def test_an_interruption_stops_the_agent_and_the_next_answer_fits(parts, own_time: None) -> None:
    asked, cut = clips("long_questions")[1], clips("interruptions")[0]
    script = [Say(asked.samples()), Say(cut.samples(), "speaking", 1.5)]
    done = talk(load_profile("edge"), parts, script, paced=False)
    first, *_ = done.of(ResponseEnded)
    assert first.reason == "interrupted" and first.text.startswith(first.heard) and len(first.heard) < len(first.text)
    latency = stop_latency_s(done.agent_track, done.user.said[1].start)
    assert latency is not None and latency < 0.5


@pytest.mark.weights
def test_with_the_projector_the_llm_answers_what_it_hears(edge_weights: dict[str, Path], own_time: None) -> None:
    profile = load_profile("edge", ["input=projector"])
    clip = next(c for c in clips("questions") if "France" in c.text)
    done = talk(profile, build_parts(profile), [Say(clip.samples())], paced=False)
    assert [e.text for e in done.of(UserTranscript) if e.final] == [clip.text]
    (ended,) = done.of(ResponseEnded)
    assert contains(ended.heard, clip.expect) and ended.heard == ended.text


@pytest.mark.weights
def test_the_readme_example_runs(edge_weights: dict[str, Path]) -> None:
    code = README.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    root = README.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_the_tiny_profile_runs_the_same_pipeline() -> None:
    profile = load_profile("tiny")
    done = talk(profile, build_parts(profile), [Say(clips("questions")[0].samples())], paced=False, patience_s=2.0)
    assert len(done.user_track) > 16_000


@pytest.mark.parametrize(("profile", "side"), [("tiny", "input"), ("edge", "input"), ("minmo-7b", "input"), ("minmo-7b", "output")])
def test_projectors_without_weights_are_refused(profile: str, side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encoders.projector_ears.WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="bridge"):
        build_parts(load_profile(profile, [f"{side}=projector"]))


def test_a_reader_that_falls_behind_is_told() -> None:
    async def main() -> list[Event]:
        feed = Feed(most=3)
        subscription = feed.subscribe()
        for at in range(5):
            feed.put(Event(at))
        feed.close()
        return [e async for e in subscription]

    first, *rest = run_virtual(main())
    assert isinstance(first, Trouble) and "2 events" in first.message
    assert [e.at for e in rest] == [2, 3, 4]


def test_history_joins_sides_and_is_bounded() -> None:
    history = History()
    history.add("user", " Hello ")
    history.add("user", "there.")
    history.add("assistant", "  ")
    assert [m.text for m in history.messages] == ["Hello there."]
    assert [m.text for m in history.with_user("And?")] == ["Hello there. And?"]
    for i in range(500):
        history.add("assistant" if i % 2 == 0 else "user", str(i))
    assert len(history.messages) <= MOST_MESSAGES and history.messages[-1].text == "499"
    beginnings = []
    for i in range(500, 560):
        history.add("user" if i % 2 else "assistant", str(i))
        beginnings.append(history.messages[0].text)
    assert len(set(beginnings)) <= 3  # what is forgotten goes together, so that the LLM need not read anew at every turn


def test_the_scripted_user_waits_for_the_agent() -> None:
    profile = load_profile("tiny")

    async def main() -> list[tuple[int, int]]:
        user = ScriptedUser([Say(np.full(8000, 0.1, np.float32), delay_s=0.5)], patience_s=1.0)
        async with build_session(
            profile, build_parts(profile), user, VirtualWorker(cost_s=lambda lane: 0.0), echo="none"
        ) as session:
            await session.wait()
        return [(s.start, s.end) for s in user.said]

    ((start, end),) = run_virtual(main())
    assert start == 8000 and end == 16_000
