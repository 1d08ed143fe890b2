"""Choosing a sound device by number or name, and the table of them, with a scripted PortAudio."""

from __future__ import annotations

import argparse
import builtins
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from apps import devices
from apps.devices import Device, find_device, list_devices, load_sounddevice
from duplex.errors import DeviceError

CARDS = [
    Device(0, "HDA Intel: Analog", "ALSA", 2, 2, 48_000, False, False),
    Device(1, "USB Headset: Audio", "ALSA", 1, 2, 44_100, True, False),
    Device(2, "USB Camera: Audio", "ALSA", 1, 0, 16_000, False, False),
    Device(3, "HDMI", "ALSA", 0, 8, 48_000, False, True),
    Device(4, "HDMI 2", "ALSA", 0, 8, 48_000, False, False),
]


@pytest.mark.parametrize(
    ("kind", "wanted", "index"),
    [
        ("input", None, 1),
        ("output", None, 3),
        ("output", "  ", 3),
        ("input", "2", 2),
        ("input", "camera", 2),
        ("output", "usb", 1),
        ("input", "Headset", 1),
        ("output", "hdmi", 3),
        ("output", "HDMI 2", 4),
    ],
)
def test_a_device_is_found(kind: Any, wanted: str | None, index: int) -> None:
    assert find_device(kind, wanted, CARDS).index == index


@pytest.mark.parametrize(
    ("kind", "wanted", "words"),
    [
        ("input", "usb", r"fits more than one microphone.*1 'USB Headset: Audio', 2 'USB Camera: Audio'"),
        ("input", "tape", r"No microphone is called 'tape'; there are: 0 'HDA Intel: Analog', 1 .*, 2 "),
        ("input", "3", "No microphone is called '3'"),
        ("output", "camera", "No loudspeaker is called 'camera'"),
        ("output", "99", "No loudspeaker"),
    ],
)
def test_what_fits_none_or_several_names_the_candidates(kind: Any, wanted: str, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        find_device(kind, wanted, CARDS)


def test_without_devices_or_default_it_says_what_to_do() -> None:
    with pytest.raises(DeviceError, match="no microphone; connect one"):
        find_device("input", None, CARDS[3:])
    with pytest.raises(DeviceError, match="No default loudspeaker is set; name one with --output"):
        find_device("output", None, CARDS[:3])


def test_one_card_seen_through_two_interfaces_is_no_ambiguity() -> None:
    twice = [Device(0, "Mic", "MME", 1, 0, 44_100, False, False), Device(1, "Mic", "WASAPI", 1, 0, 48_000, True, False)]
    assert find_device("input", "mic", twice).index == 1


class FakePortAudio:
    class PortAudioError(Exception): ...

    default = SimpleNamespace(device=[-1, -1])

    def query_hostapis(self) -> list[dict[str, Any]]:
        return [{"name": "ALSA", "default_input_device": 0, "default_output_device": 1}]

    def query_devices(self) -> list[dict[str, Any]]:
        common = {"hostapi": 0, "default_samplerate": 44_100.0}
        return [
            {"name": "mic", "max_input_channels": 1, "max_output_channels": 0, **common},
            {"name": "speaker", "max_input_channels": 0, "max_output_channels": 2, **common},
        ]


def test_the_systems_defaults_are_marked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(devices, "load_sounddevice", FakePortAudio)
    mic, speaker = list_devices()
    assert (mic.default_input, mic.default_output) == (True, False)
    assert (speaker.default_input, speaker.default_output) == (False, True)
    parser = argparse.ArgumentParser()
    devices.add_arguments(parser)
    assert devices.run(parser.parse_args([])) == 0
    table = capsys.readouterr().out
    assert "speaker" in table
    assert "44100 Hz" in table
    assert devices.run(parser.parse_args(["--json"])) == 0
    assert [device["name"] for device in json.loads(capsys.readouterr().out)] == ["mic", "speaker"]


def test_a_machine_without_sound_devices_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(FakePortAudio):
        def query_hostapis(self) -> list[dict[str, Any]]:
            return [{"name": "ALSA", "default_input_device": -1, "default_output_device": -1}]

        def query_devices(self) -> list[dict[str, Any]]:
            return []

    monkeypatch.setattr(devices, "load_sounddevice", Bare)
    with pytest.raises(DeviceError, match="no sound device"):
        devices.run(argparse.Namespace(json=False))


def test_a_sound_system_that_does_not_answer_is_a_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakePortAudio):
        def query_devices(self) -> list[dict[str, Any]]:
            raise self.PortAudioError("PortAudio not initialized")

    monkeypatch.setattr(devices, "load_sounddevice", Broken)
    with pytest.raises(DeviceError, match="does not answer"):
        list_devices()


def test_a_missing_package_or_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(DeviceError, match=r"pip install 'duologue\[talk\]'"):
        load_sounddevice()
    monkeypatch.delitem(sys.modules, "sounddevice")
    real_import = builtins.__import__

    def no_library(name: str, *args: Any, **options: Any) -> Any:
        if name == "_sounddevice":  # the first thing that sounddevice imports; without the library it ends in OSError
            raise OSError("PortAudio library not found")
        return real_import(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", no_library)
    with pytest.raises(DeviceError, match="apt install libportaudio2"):
        load_sounddevice()
