"""The `duologue` command: finds the subcommand, imports only that, and turns what goes wrong into one sentence and an exit code.

    0 done   1 unexpected   2 configuration or arguments   3 input file   4 weights   5 sound device   6 output   130 Ctrl-C

Each subcommand is a module of this package with `add_arguments(parser)` and `run(args) -> int`. Nothing heavy is imported here:
`duologue --help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.metadata
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from apps.interrupts import put_off
from duplex.errors import DuologueError, OutputError

COMMANDS = {
    "demo": "run the shipped conversation: transcripts, latencies, stereo recording, picture",
    "talk": "talk with the agent by microphone and loudspeaker",
    "file": "let the agent talk with a recording, and write what both said",
    "say": "let the agent's voice say a text, into a file",
    "serve": "the agent as a server that speaks the OpenAI Realtime protocol",
    "web": "the same server with a page to talk to in a browser",
    "mqtt": "the agent as dialogue manager of a voice assistant on MQTT (Hermes topics)",
    "fetch": "download the weights of a profile (once) and convert them",
    "devices": "list microphones and loudspeakers",
    "train": "teach the parts that are trained here (predictor), from speech that is made on the spot",
    "bench": "measure understanding, intelligibility, latency and speed on this machine",
}
"""Subcommand -> what it does; each is the module `apps.<name>`."""

EXTRAS = {
    "sounddevice": "talk",
    "pywebrtc_audio": "talk",
    "jiwer": "bench",
    "fastapi": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "gradio": "web",
    "aiomqtt": "mqtt",
}
"""Importable name -> the extra of this distribution that brings it."""

log = logging.getLogger("duologue")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "--verbose" in arguments or "-v" in arguments
    try:
        _set_up_logging(verbose)
        with put_off():
            args = _parse(arguments)
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except SystemExit as exit_:  # argparse: 0 for --help, 2 for wrong arguments
        return exit_.code if isinstance(exit_.code, int) else 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `duologue ... | head`: nobody reads on, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _explain(error, verbose)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses with the arguments of one subcommand; the others are only names, so their modules are not imported."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="say more, and show tracebacks")
    parser = argparse.ArgumentParser(prog="duologue", description="A full-duplex spoken dialogue agent.")
    parser.add_argument("--version", action="version", version=f"duologue {_version()}")
    parser.add_argument("-v", "--verbose", dest="verbose_first", action="store_true", help="say more, and show tracebacks")
    subparsers = parser.add_subparsers(metavar="command", dest="command", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", parents=[common])
        if name == chosen:
            module = importlib.import_module(f"apps.{name}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser.parse_args(arguments)


def _version() -> str:
    try:
        return importlib.metadata.version("duologue")
    except importlib.metadata.PackageNotFoundError:
        return "(running from a checkout)"


def _set_up_logging(verbose: bool) -> None:
    """Our own log on stderr; other libraries' chatter only with --verbose."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, force=True)
    log.setLevel(logging.DEBUG if verbose else logging.WARNING)
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models come from our own cache, no library shall go and look for others
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*quanti[sz]ation.*", category=UserWarning)


def _explain(error: Exception, verbose: bool) -> int:
    """One sentence on stderr, and the exit code."""
    if verbose:
        log.error("traceback of what stopped the program", exc_info=error)
    told = _as_ours(error)
    if told is not None:
        print(f"duologue: {told}", file=sys.stderr)
        return told.exit_code
    what = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
    print(f"duologue: Something unexpected happened ({what}); run again with --verbose to see where.", file=sys.stderr)
    return 1


def _as_ours(error: Exception) -> DuologueError | None:
    """What the user can mend, as an error of our own tree."""
    if isinstance(error, DuologueError):
        return error
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "").partition(".")[0]
        if name in EXTRAS:
            return DuologueError(f"This command needs the package {name}; install it with: pip install 'duologue[{EXTRAS[name]}]'")
        return None
    if isinstance(error, MemoryError):
        return DuologueError("There is not enough memory; close other programs, or use a smaller profile.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return OutputError(f"The disk is full{where}; free some space and run the command again.")
    return None
