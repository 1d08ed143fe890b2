"""The command line: quick to start, one sentence and the right exit code for everything that goes wrong."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from apps import cli
from duplex.errors import ConfigError, DeviceError, DuologueError, InputError, OutputError, WeightsError

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parent.parent.parent


def command(monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None, code: int = 0) -> None:
    """Puts a command `probe` into the table that raises `error` or returns `code`."""

    def run(args: argparse.Namespace) -> int:
        if error is not None:
            raise error
        return code

    module = types.ModuleType("apps.probe")
    module.add_arguments = lambda parser: parser.add_argument("--depth", type=int, default=1)  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apps.probe", module)
    monkeypatch.setitem(cli.COMMANDS, "probe", "try something")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DuologueError("Mend it."), 1),
        (ConfigError("Mend it."), 2),
        (InputError("Mend it."), 3),
        (WeightsError("Mend it."), 4),
        (DeviceError("Mend it."), 5),
        (OutputError("Mend it."), 6),
    ],
)
def test_our_errors_are_one_sentence_and_their_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, error: DuologueError, code: int
) -> None:
    command(monkeypatch, error)
    assert cli.main(["probe"]) == code
    assert capsys.readouterr().err == "duologue: Mend it.\n"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "Stopped."),
        (MemoryError(), 1, "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "out.wav"), 6, "disk is full while writing out.wav"),
        (ModuleNotFoundError("No module named 'sounddevice'", name="sounddevice"), 1, "pip install 'duologue[talk]'"),
        (RuntimeError("odd\nthings"), 1, "(RuntimeError: odd things); run again with --verbose"),
    ],
)
def test_other_errors_are_one_sentence_too(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, error: BaseException, code: int, words: str
) -> None:
    command(monkeypatch, error)
    assert cli.main(["probe"]) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--verbose", "probe"], ["probe", "-v"]])
def test_verbose_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str]) -> None:
    command(monkeypatch, RuntimeError("odd"))
    assert cli.main(arguments) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_commands_own_exit_code_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, code=3)
    assert cli.main(["probe", "--depth", "2"]) == 3


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["probe", "--depht", "2"], ["probe", "--depth", "deep"]])
def test_wrong_arguments_are_two(monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str]) -> None:
    command(monkeypatch)
    assert cli.main(arguments) == 2
    assert "usage: duologue" in capsys.readouterr().err


def test_version_and_help(capsys: Capture) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("duologue ")
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_its_module(name: str, capsys: Capture) -> None:
    assert importlib.util.find_spec(f"apps.{name}") is not None
    assert cli.main([name, "--help"]) == 0
    assert f"usage: duologue {name}" in capsys.readouterr().out


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    heavy = "[name for name in ('torch', 'numpy', 'transformers', 'rich') if name in sys.modules]"
    code = f"import sys; from apps.cli import main; main(['--help']); print({heavy})"
    times = []
    for _ in range(3):
        begun = _children_s()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        times.append(_children_s() - begun)
        assert done.stdout.endswith("[]\n")
    assert min(times) < 1.0  # it takes 0.06 s of a new processor's time


def _children_s() -> float:
    """Processor time of the programs that have ended; what else a machine does at the time adds nothing."""
    used = os.times()
    return used.children_user + used.children_system


def test_a_closed_pipe_is_quiet() -> None:
    writer = "import sys, types; from apps import cli\n"
    writer += "probe = types.ModuleType('apps.probe'); probe.add_arguments = lambda parser: None\n"
    writer += "probe.run = lambda args: [print('line') for _ in range(100000)] and 0\n"
    writer += "sys.modules['apps.probe'] = probe; cli.COMMANDS['probe'] = 'print'\nsys.exit(cli.main(['probe']))\n"
    with subprocess.Popen(
        [sys.executable, "-c", writer], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0
