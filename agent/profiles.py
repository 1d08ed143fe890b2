"""Profiles: one YAML file says which parts make up an agent and how they are set.

A profile's sections (`ears`, `thinker`, ...) belong to the parts that they configure: `profile.section("ears", EarsConfig)` builds
the owner's own dataclass, strictly, so this file knows no part of the agent. What a section leaves out keeps the owner's default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from agent import strict_yaml
from duplex.errors import ConfigError

T = TypeVar("T")

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
"""The folder of shipped YAML files; it lies beside the packages, in a checkout as well as when installed."""

Encoder = Literal["whisper", "sensevoice"]
Decoder = Literal["vits", "cosyvoice2"]

SECTIONS = ("ears", "predictor", "thinker", "voice", "echo", "session", "runtime")
"""Every section that a profile may hold; each is read by its owner when an agent is built."""


@dataclass(frozen=True)
class _Head:
    """The keys of a profile that are not sections."""

    description: str
    input: Literal["bridge", "projector"] = "bridge"
    output: Literal["bridge", "projector"] = "bridge"
    encoder: Encoder = "whisper"
    decoder: Decoder = "vits"
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """What one YAML file says."""

    name: str
    """File name without `.yaml`."""
    description: str
    """One sentence for people."""
    input: Literal["bridge", "projector"]
    """How speech reaches the LLM: as the transcript's text tokens (bridge) or as projected embeddings."""
    output: Literal["bridge", "projector"]
    """What the voice reads: text-token embeddings (bridge) or projected hidden states."""
    encoder: Encoder = "whisper"
    """Whose ears: Whisper's or SenseVoice's."""
    decoder: Decoder = "vits"
    """Whose voice: a VITS voice that reads clauses, or CosyVoice2's, which speaks codes."""
    weights: tuple[str, ...] = ()
    """Artifacts and conversions of weights.yaml that this profile loads; empty for random weights."""
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Raw settings of each part, by section name."""
    file: str = ""
    """Name of the file, for messages."""

    def section(self, name: str, cls: type[T]) -> T:
        """The settings of one part as the owner's dataclass. Raises ConfigError naming file, key and neighbours."""
        if name not in SECTIONS:
            raise AssertionError(f"no section is called {name}")
        return strict_yaml.build(cls, self.sections.get(name, {}), f"{self.file or self.name}: {name}")


def profile_names() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "weights")


def load_profile(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Profile:
    """Reads a shipped profile by name, or any file by path (something with a folder or `.yaml` in it).

    `overrides` are `section.key=value` (or `key=value` for the head), the value written as in YAML. Raises ConfigError.
    """
    path = _find(name_or_path)
    raw = strict_yaml.read(path)
    for text in overrides:
        _override(raw, text)
    head_keys = tuple(_Head.__dataclass_fields__)
    for key in raw:
        if key not in head_keys and key not in SECTIONS:
            raise strict_yaml.unknown_key(key, [*head_keys, *SECTIONS], path.name)
    head = strict_yaml.build(_Head, {key: value for key, value in raw.items() if key in head_keys}, path.name)
    sections: dict[str, Mapping[str, Any]] = {}
    for key in SECTIONS:
        value = raw.get(key) if raw.get(key) is not None else {}
        if not isinstance(value, dict):
            raise ConfigError(f"{path.name}: {key}: expected keys and values, found {value!r}.")
        sections[key] = value
    return Profile(path.stem, **vars(head), sections=sections, file=path.name)


def _find(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        return Path(text).expanduser()
    if text not in profile_names():
        raise ConfigError(
            f"There is no profile '{text}'; choose one of {', '.join(profile_names())}, or give the path of a YAML file."
        )
    return CONFIGS / f"{text}.yaml"


def _override(raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {text}: write it as section.key=value, for example session.interim_s=0.5.")
    if len(path) == 1 and path[0] in SECTIONS:
        raise ConfigError(f"--set {text}: '{path[0]}' is a section; set one of its keys, as in {path[0]}.key=value.")
    here = raw
    for part in path[:-1]:
        below = here.get(part)
        if below is None:
            below = here[part] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"--set {text}: '{part}' holds a value, it has no keys of its own.")
        here = below
    here[path[-1]] = strict_yaml.parse(value, f"--set {text}")
