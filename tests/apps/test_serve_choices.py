"""What a server is started with, for its clients to choose: several profiles, and voices by name, made of samples on the command line."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest

from agent.profiles import CONFIGS
from agent.voice_sample import SHIPPED
from apps import serve
from apps.realtime import AccessConfig
from apps.serve_app import build_app
from apps.serve_thread import running
from duplex.errors import ConfigError, InputError
from tests.apps.realtime_client import talk
from tests.apps.served import Served


def parsed(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """A profile of the user's own, whose voice cannot be cloned."""
    path = tmp_path / "second.yaml"
    shutil.copy(CONFIGS / "tiny.yaml", path)
    path.write_text(path.read_text(encoding="utf-8").replace("decoder: cosyvoice2", "decoder: vits"), encoding="utf-8")
    return path


async def test_a_client_chooses_profile_and_voice(second: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = serve.host_from(parsed("--profile", f"tiny, {second}", "--voice", f"joe={SHIPPED}"))
    assert "The voice of the profile second cannot be cloned; it keeps its own." in capsys.readouterr().out
    access = AccessConfig()
    app = build_app(host, access)
    with running(app, access) as server:
        served = Served(host, app.state.door, server)
        async with talk(served, model="tiny") as talking:
            assert talking.events[0].session.duologue["voices"] == ["default", "joe"]
            for asked, given in (("joe", "joe"), ("alloy", "default"), ("joe", "joe")):
                await talking.connection.session.update(session={"type": "realtime", "audio": {"output": {"voice": asked}}})
                assert (await talking.until("session.updated")).session.audio.output.voice == given
            content = [{"type": "input_text", "text": "Hello."}]
            await talking.connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
            await talking.connection.response.create(response={"max_output_tokens": 8})
            await talking.until("response.output_audio.delta", 60)
            (conversation,) = [kept.conversation for kept in app.state.door._kept]
            assert conversation._session.manner.speaker is host.default.voices["joe"]
        async with talk(served, model="second") as talking:
            assert talking.events[0].session.duologue["voices"] == ["default"]


def test_voices_need_a_profile_that_can_clone(second: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="The voice of the profile edge cannot be cloned; take one with"):
        serve.host_from(parsed("--voice", f"joe={SHIPPED}"))
    with pytest.raises(InputError, match="does not exist"):
        serve.host_from(parsed("--profile", "tiny", "--voice", f"joe={tmp_path / 'joe.wav'}", "--voice-text", "joe=Hello."))


def test_profiles_that_cannot_be_told_apart(second: Path, tmp_path: Path) -> None:
    assert [profile.name for profile in serve.profiles_from(parsed("--profile", f"edge,{second},"))] == ["edge", "second"]
    shutil.copy(second, tmp_path / "edge.yaml")
    for names in ("tiny,tiny", f"edge,{tmp_path / 'edge.yaml'}"):
        with pytest.raises(ConfigError, match="two profiles are called"):
            serve.profiles_from(parsed("--profile", names))
    with pytest.raises(ConfigError, match="no profile"):
        serve.profiles_from(parsed("--profile", " , "))
    with pytest.raises(ConfigError, match="There is no profile 'egde'"):
        serve.profiles_from(parsed("--profile", "edge,egde"))
