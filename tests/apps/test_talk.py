"""`duologue talk` around a real session with scripted models: plain lines, the live screen, the recording, and every end."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from agent.doubles import LevelVad, ScriptedEars, ScriptedThinker, ToneVoice, spoken
from agent.parts import Parts
from agent.response import ResponseConfig
from agent.session import Session, SessionConfig
from agent.transport import Transport
from agent.virtual_time import run_virtual
from agent.worker import VirtualWorker
from apps import devices, talk
from apps.devices import Device
from apps.recorder import RecordedTransport, Recorder
from apps.sound_card_state import SoundCardStats
from apps.talk_microphone import GatedTransport, MicrophoneGate
from apps.talk_view import TalkView
from duplex.audio import AGENT_FRAME, FRAME_MS, USER_FRAME, USER_RATE_HZ, Frame, Samples, user_samples
from duplex.echo import EchoControl, NoEcho
from duplex.errors import ConfigError, DeviceError, OutputError
from duplex.predictor import RulePredictor


class OneQuestion:
    """A transport: silence, a question of a second, silence; what the agent says comes back as the reference of the next frame."""

    def __init__(self, length_s: float = 8.0, gone_after_s: float | None = None) -> None:
        question = spoken(1.0)
        self.sound = np.zeros(user_samples(length_s), np.float32)
        self.sound[USER_RATE_HZ : USER_RATE_HZ + len(question)] = question
        self.gone_after = None if gone_after_s is None else user_samples(gone_after_s)
        self.at = 0
        self.far = np.zeros(USER_FRAME, np.float32)
        self.closed = False

    async def receive(self) -> Frame | None:
        await asyncio.sleep(FRAME_MS / 1000)
        if self.gone_after is not None and self.at >= self.gone_after:
            raise DeviceError("The microphone 'x' stopped answering.")
        if self.at >= len(self.sound):
            return None
        frame = Frame(self.at, self.sound[self.at : self.at + USER_FRAME], self.far)
        self.at += USER_FRAME
        return frame

    async def send(self, samples: Samples) -> None:
        assert samples.shape == (AGENT_FRAME,)
        self.far = np.interp(np.arange(USER_FRAME) * 1.5, np.arange(AGENT_FRAME), samples).astype(np.float32)

    def committed(self) -> int:
        return 0

    async def close(self) -> None:
        self.closed = True


def session_on(transport: Transport) -> Session:
    words = [(USER_RATE_HZ, USER_RATE_HZ + user_samples(0.9), "what is the time?")]
    parts = Parts(ScriptedEars(words), LevelVad(), ScriptedThinker(["It is ten past nine."]), ToneVoice(), RulePredictor())
    worker = VirtualWorker(cost_s={"listen": 0.05, "think": 0.01, "speak": 0.03}.__getitem__)
    return Session(parts, transport, worker, SessionConfig(response=ResponseConfig(group_tokens=1)))


def converse(
    transport: OneQuestion, console: Console, recorder: Recorder | None = None, gate: MicrophoneGate | None = None
) -> tuple[int, TalkView]:
    view = TalkView()

    async def main() -> int:
        shut = None if gate is None else gate.shut
        wrapped: Transport = transport if recorder is None else RecordedTransport(transport, recorder, shut)
        if gate is not None:
            wrapped = GatedTransport(wrapped, gate)
        return await talk.converse(session_on(wrapped), view, console, recorder, gate=gate)

    return run_virtual(main()), view


def test_without_a_terminal_each_turn_is_a_plain_line() -> None:
    out = io.StringIO()
    transport = OneQuestion()
    code, view = converse(transport, Console(file=out, width=60))
    assert code == 0
    assert transport.closed
    lines = out.getvalue().splitlines()
    assert [line[6:11].strip() for line in lines] == ["you", "agent"]
    assert "what is the time?" in lines[0]
    assert "It is ten past nine.  [after " in lines[1]
    assert "\x1b" not in out.getvalue()
    assert len(view.latencies_s) == 1


def test_on_a_terminal_the_screen_is_redrawn() -> None:
    out = io.StringIO()
    converse(OneQuestion(), Console(file=out, force_terminal=True, width=90, height=30))
    assert out.getvalue().count("Duologue") > 20
    assert "It is ten past nine." in out.getvalue()
    assert "the agent speaks" in out.getvalue()


def test_a_device_that_leaves_ends_the_talk_with_its_error() -> None:
    transport = OneQuestion(gone_after_s=2.0)
    with pytest.raises(DeviceError, match="stopped answering"):
        converse(transport, Console(file=io.StringIO()))
    assert transport.closed


def test_the_recording_holds_both_sides_and_the_events(tmp_path: Path) -> None:
    with Recorder(tmp_path / "new" / "folder") as recorder:
        transport = OneQuestion()
        converse(transport, Console(file=io.StringIO()), recorder)
    sound, rate = soundfile.read(tmp_path / "new/folder/conversation.wav")
    assert rate == USER_RATE_HZ
    np.testing.assert_allclose(sound[:, 0], np.clip(transport.sound, -1, 1), atol=1e-4)
    assert np.abs(sound[:, 1]).max() > 0.1
    events = [json.loads(line) for line in (tmp_path / "new/folder/events.jsonl").read_text().splitlines()]
    kinds = {event["type"] for event in events}
    assert {"user_started", "user_transcript", "response_started", "response_ended"} <= kinds
    assert "levels" not in kinds
    assert recorder.failure is None


def test_a_disk_that_fills_up_ends_the_recording_not_the_talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Recorder(tmp_path) as recorder:
        real_write, frames = recorder._sound.write, []

        def write(user: Samples, agent: Samples) -> None:
            frames.append(user)
            if len(frames) > 50:
                raise OutputError("conversation.wav could not be written (No space left on device).")
            real_write(user, agent)

        monkeypatch.setattr(recorder._sound, "write", write)
        code, view = converse(OneQuestion(), Console(file=io.StringIO()), recorder)
    assert code == 0
    assert len(view.latencies_s) == 1
    assert recorder.failure is not None
    assert len(soundfile.read(tmp_path / "conversation.wav")[0]) == 50 * USER_FRAME


def test_what_is_said_to_a_shut_microphone_is_neither_heard_nor_recorded(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        _, view = converse(OneQuestion(), Console(file=io.StringIO()), recorder, MicrophoneGate(push_to_talk=True))
    assert not view.lines
    assert view.microphone == "shut, space to talk"
    assert np.abs(soundfile.read(tmp_path / "conversation.wav")[0][:, 0]).max() == 0


def test_an_open_gate_changes_nothing(tmp_path: Path) -> None:
    gate = MicrophoneGate(push_to_talk=True)
    gate.press(b" ")
    with Recorder(tmp_path) as recorder:
        _, view = converse(OneQuestion(), Console(file=io.StringIO()), recorder, gate)
    assert len(view.latencies_s) == 1
    sound, _ = soundfile.read(tmp_path / "conversation.wav")
    assert np.abs(sound[:, 0]).max() > 0.1 and np.abs(sound[:, 1]).max() > 0.1


def test_notes_of_the_devices_are_shown_and_recorded_and_the_room_is_forgotten(tmp_path: Path) -> None:
    class Cards(OneQuestion):
        """Goes away for a moment after three seconds."""

        stats = SoundCardStats(underruns=3)

        def latency_ms(self) -> float:
            return 120.0

        async def receive(self) -> Frame | None:
            if self.at == 3 * USER_RATE_HZ:
                self.on_note("The microphone 'x' stopped answering; the conversation waits for it.")
                self.on_reopened()
            return await super().receive()

    out, cards, resets = io.StringIO(), Cards(), []
    view = TalkView()

    async def main() -> int:
        session = session_on(cards)
        session.echo = EchoControl(NoEcho())
        session.echo.reset = lambda: resets.append(session.now)  # type: ignore[method-assign]
        return await talk.converse(session, view, Console(file=out, width=120), recorder, cards)  # type: ignore[arg-type]

    with Recorder(tmp_path) as recorder:
        assert run_virtual(main()) == 0
    assert "!      The microphone 'x' stopped answering; the conversation waits for it." in out.getvalue()
    assert resets == [3 * USER_RATE_HZ]
    assert (view.device_ms, view.underruns, view.echo) == (120.0, 3, "none")
    assert any(json.loads(line)["type"] == "trouble" for line in (tmp_path / "events.jsonl").read_text().splitlines())


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another folder"):
        Recorder(tmp_path / "file")


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    talk.add_arguments(parser)
    return parser.parse_args(words)


def test_a_wrong_device_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [Device(0, "Mic", "ALSA", 1, 0, 48_000, True, False), Device(1, "Speaker", "ALSA", 0, 2, 48_000, False, True)]
    monkeypatch.setattr(talk, "list_devices", lambda: cards)
    monkeypatch.setattr(talk, "build_parts", lambda *_, **__: pytest.fail("loaded the models"))
    with pytest.raises(DeviceError, match="No microphone is called 'tape'"):
        talk.run(arguments("--input", "tape"))
    with pytest.raises(DeviceError, match="No loudspeaker is called 'tape'"):
        talk.run(arguments("--output", "tape"))


def test_without_the_sound_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError("PortAudio library not found")

    monkeypatch.setattr(devices.importlib, "import_module", missing)
    with pytest.raises(DeviceError, match="libportaudio2"):
        talk.run(arguments())


def test_echo_takes_only_the_known_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments("--echo", "half_duplex").echo == "half_duplex"
    with pytest.raises(SystemExit):
        arguments("--echo", "magic")
    assert "half_duplex" in capsys.readouterr().err


def test_half_duplex_is_short_for_the_echo_of_that_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments("--half-duplex").echo == "half_duplex"
    assert arguments().echo is None
    with pytest.raises(SystemExit):
        arguments("--half-duplex", "--echo", "none")
    assert "not allowed with" in capsys.readouterr().err


def test_push_to_talk_without_keys_says_so_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "list_devices", lambda: pytest.fail("asked for devices"))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ConfigError, match="needs a terminal"):
        talk.run(arguments("--push-to-talk"))


LIVE = """
import asyncio, sys
from rich.console import Console
sys.path[:0] = {path!r}
from test_talk import OneQuestion, session_on
from apps import talk
from apps.talk_view import TalkView

class Told(OneQuestion):  # says when the conversation has begun
    async def receive(self):
        if self.at == 0:
            print("READY", flush=True)
        return await super().receive()

async def main():
    return await talk.converse(session_on(Told(60.0)), TalkView(), Console())

sys.exit(asyncio.run(main()))
"""
HERE = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]


def test_ctrl_c_ends_the_talk_with_130() -> None:
    talking = subprocess.Popen([sys.executable, "-c", LIVE.format(path=HERE)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert talking.stdout is not None
    assert talking.stdout.readline() == b"READY\n"
    with pytest.raises(subprocess.TimeoutExpired):
        talking.wait(timeout=1)
    talking.send_signal(signal.SIGINT)
    assert talking.wait(timeout=60) == 130


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_q_ends_the_talk_and_leaves_the_terminal_as_it_was() -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    talking = subprocess.Popen([sys.executable, "-c", LIVE.format(path=HERE)], stdout=subprocess.PIPE, stdin=theirs)
    assert talking.stdout is not None
    assert talking.stdout.readline() == b"READY\n"
    with pytest.raises(subprocess.TimeoutExpired):
        talking.wait(timeout=1)
    os.write(ours, b"x")
    with pytest.raises(subprocess.TimeoutExpired):
        talking.wait(timeout=0.5)
    os.write(ours, b"q")
    assert talking.wait(timeout=60) == 0
    assert termios.tcgetattr(theirs)[3] == before[3]
    os.close(ours)
    os.close(theirs)
