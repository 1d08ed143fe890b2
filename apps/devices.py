"""`duologue devices`: the microphones and loudspeakers there are; and how one of them is chosen by number or name.

PortAudio is reached through `sounddevice`, imported only when it is needed: a server has neither.
"""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from duplex.errors import DeviceError

Kind = Literal["input", "output"]
NAMES = {"input": "microphone", "output": "loudspeaker"}


@dataclass(frozen=True, slots=True)
class Device:
    """One sound device, as PortAudio sees it."""

    index: int
    name: str
    host: str
    """The system's sound interface: ALSA, Core Audio, WASAPI, ..."""
    inputs: int
    """Channels that can be recorded."""
    outputs: int
    """Channels that can be played."""
    rate_hz: int
    """The rate it runs at by default."""
    default_input: bool
    default_output: bool

    def channels(self, kind: Kind) -> int:
        """How many channels it has in that direction."""
        return self.inputs if kind == "input" else self.outputs

    def is_default(self, kind: Kind) -> bool:
        """Whether the system uses it when nothing is chosen."""
        return self.default_input if kind == "input" else self.default_output


def load_sounddevice() -> Any:
    """The module `sounddevice`. Raises DeviceError, saying what to install, when it or the PortAudio library is missing."""
    try:
        return importlib.import_module("sounddevice")
    except ImportError:
        raise DeviceError("Sound needs the package sounddevice; install it with: pip install 'duologue[talk]'") from None
    except OSError as error:
        raise DeviceError(
            f"The PortAudio library cannot be used ({error}); install it, on Debian and Ubuntu with: sudo apt install libportaudio2"
        ) from None


def list_devices() -> list[Device]:
    """All devices, in PortAudio's order. Raises DeviceError when the sound system cannot be asked."""
    sounddevice = load_sounddevice()
    try:
        hosts = sounddevice.query_hostapis()
        found = sounddevice.query_devices()
        defaults = list(sounddevice.default.device)
    except sounddevice.PortAudioError as error:
        raise DeviceError(f"The sound system does not answer ({error}); check that it runs, then try again.") from None
    for position, kind in enumerate(("input", "output")):
        if defaults[position] < 0:  # nothing chosen in the program: the system's own
            defaults[position] = next((host[f"default_{kind}_device"] for host in hosts if host[f"default_{kind}_device"] >= 0), -1)
    return [
        Device(
            index=index,
            name=device["name"],
            host=hosts[device["hostapi"]]["name"],
            inputs=device["max_input_channels"],
            outputs=device["max_output_channels"],
            rate_hz=round(device["default_samplerate"]),
            default_input=index == defaults[0],
            default_output=index == defaults[1],
        )
        for index, device in enumerate(found)
    ]


def find_device(kind: Kind, wanted: str | None, devices: list[Device] | None = None) -> Device:
    """The device of that number, or whose name contains `wanted` (case ignored; a whole name beats a part); None is the default.

    Raises DeviceError that names the candidates when there is none, or more than one.
    """
    able = [device for device in (list_devices() if devices is None else devices) if device.channels(kind) > 0]
    what = NAMES[kind]
    if not able:
        raise DeviceError(f"This machine has no {what}; connect one, or use `duologue file` with a recording.")
    if wanted is None or not wanted.strip():
        default = next((device for device in able if device.is_default(kind)), None)
        if default is None:
            raise DeviceError(f"No default {what} is set; name one with --{kind}: {_names(able)}.")
        return default
    text = wanted.strip().lower()
    if text.isdecimal():
        chosen = [device for device in able if device.index == int(text)]
    else:
        whole = [device for device in able if device.name.lower() == text]
        chosen = whole or [device for device in able if text in device.name.lower()]
        defaults = [device for device in chosen if device.is_default(kind)]
        if len({device.name for device in chosen}) == 1 and defaults:
            chosen = defaults  # one card seen through several interfaces
    if not chosen:
        raise DeviceError(f"No {what} is called {wanted!r}; there are: {_names(able)}.")
    if len(chosen) > 1:
        raise DeviceError(f"{wanted!r} fits more than one {what}; use its number: {_names(chosen)}.")
    return chosen[0]


def find_again(device: Device, kind: Kind, wanted: str | None, devices: list[Device] | None = None) -> Device:
    """As `find_device`, for a device that went away: numbers are dealt anew then, so one that was chosen by number is known by its name.

    Raises DeviceError when it is not there.
    """
    devices = list_devices() if devices is None else devices
    if wanted is None or not wanted.strip().isdecimal():
        return find_device(kind, wanted, devices)
    same = [other for other in devices if (other.name, other.host) == (device.name, device.host) and other.channels(kind) > 0]
    if not same:
        raise DeviceError(f"The {NAMES[kind]} {device.name!r} is not connected; there are: {_names(devices) or 'none'}.")
    return min(same, key=lambda other: abs(other.index - device.index))


def rescan_devices() -> None:
    """Let PortAudio look for devices again, which it does only when it starts. Every stream must be closed.

    Raises DeviceError when the sound system does not start.
    """
    sounddevice = load_sounddevice()
    try:
        sounddevice._terminate()
        sounddevice._initialize()
    except sounddevice.PortAudioError as error:
        raise DeviceError(f"The sound system does not answer ({error}); check that it runs, then try again.") from None


def _names(devices: list[Device]) -> str:
    return ", ".join(f"{device.index} {device.name!r}" for device in devices)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `duologue devices`."""
    parser.add_argument("--json", action="store_true", help="print the devices as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the devices. Raises DeviceError when there are none."""
    devices = list_devices()
    if args.json:
        print(json.dumps([asdict(device) for device in devices], indent=2))
        return 0
    if not devices:
        raise DeviceError("This machine has no sound device; connect one, or use `duologue file` with a recording.")
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Sound devices", caption="* used unless --input or --output names another")
    for column in ("no.", "name", "interface", "in", "out", "rate"):
        table.add_column(column, justify="left" if column in ("name", "interface") else "right")
    for device in devices:
        ins = f"{device.inputs}{' *' if device.default_input else ''}"
        outs = f"{device.outputs}{' *' if device.default_output else ''}"
        table.add_row(str(device.index), device.name, device.host, ins, outs, f"{device.rate_hz} Hz")
    Console().print(table)
    return 0
