"""The one exception tree.

    DuologueError            exit code 1
    ├── ConfigError          2   a configuration key or a command-line value is wrong
    ├── InputError           3   a file that the user gave cannot be used
    ├── WeightsError         4   weights are missing, damaged, or could not be fetched
    ├── DeviceError          5   no sound device, or it went away
    └── OutputError          6   the result could not be written (full disk, no permission)

Each message is one sentence (or two) that says what is wrong and what to do. Ctrl-C exits with 130.
"""

from __future__ import annotations


class DuologueError(Exception):
    """Something the user can mend; the message says how."""

    exit_code = 1


class ConfigError(DuologueError, ValueError):
    """A configuration key or command-line value is wrong."""

    exit_code = 2


class InputError(DuologueError, ValueError):
    """A file the user gave cannot be used."""

    exit_code = 3


class WeightsError(DuologueError):
    """Weights are missing, damaged, or could not be fetched."""

    exit_code = 4


class DeviceError(DuologueError):
    """No sound device, or it went away."""

    exit_code = 5


class OutputError(DuologueError):
    """The result could not be written."""

    exit_code = 6
