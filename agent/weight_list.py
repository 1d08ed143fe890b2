"""The list of weights (configs/weights.yaml) as typed values: artifacts, where they come from, and what is converted from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent import strict_yaml
from agent.profiles import CONFIGS
from duplex.errors import ConfigError


@dataclass(frozen=True)
class Hub:
    """One file of a repository on a model hub."""

    repo: str
    """`owner/name`."""
    path: str
    """Path of the file inside the repository."""
    revision: str = ""
    """Branch, tag or commit; empty for the hub's default branch."""


@dataclass(frozen=True)
class WheelPart:
    """One file inside a Python wheel, read as data; several parts in a row are concatenated."""

    package: str
    """Pinned requirement, `name==version`."""
    member: str
    """Path of the file inside the wheel."""
    bytes: int
    """Size of that file, in bytes."""
    wheel_bytes: int
    """Size of the whole wheel, in bytes: what is downloaded."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", self.package):
            raise ConfigError(f"package must be pinned as name==version, found '{self.package}'.")


@dataclass(frozen=True)
class Source:
    """One place that has an artifact; exactly one of the fields is set."""

    hugging_face: Hub | None = None
    """A file on Hugging Face (HF_ENDPOINT names a mirror)."""
    model_scope: Hub | None = None
    """A file on ModelScope."""
    wheels: tuple[WheelPart, ...] | None = None
    """Files inside wheels of the Python package index, concatenated in this order."""
    url: str | None = None
    """Any http or https address."""
    folder: str | None = None
    """A folder on this machine that holds the file under the artifact's file name."""

    def __post_init__(self) -> None:
        given = [name for name in self.__dataclass_fields__ if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError("a source needs exactly one of hugging_face, model_scope, wheels, url, folder.")


@dataclass(frozen=True)
class Artifact:
    """One file as its publisher released it."""

    file: str
    """File name in the cache."""
    bytes: int
    """Exact size in bytes."""
    sha256: str
    """Hash of the content, 64 hexadecimal digits."""
    licence: str
    """Licence, in words."""
    publisher: str
    """Who released it."""
    sources: tuple[Source, ...]
    """Where to get it, best first."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError("sha256 must be 64 lower-case hexadecimal digits.")
        if self.bytes <= 0:
            raise ConfigError("bytes must be positive.")
        if Path(self.file).name != self.file or self.file in ("", ".", ".."):
            raise ConfigError(f"file must be a plain file name, found '{self.file}'.")
        for source in self.sources:
            if source.wheels is not None and sum(part.bytes for part in source.wheels) != self.bytes:
                raise ConfigError("the parts' bytes do not add up to the artifact's bytes.")


@dataclass(frozen=True)
class Conversion:
    """A folder that is made once from an artifact, in a form that loads fast."""

    source: str
    """Name of the artifact that it is made from."""
    converter: str
    """`module:function`, called with the artifact's path and a folder to make."""
    version: int
    """Goes up when the converter's output changes; older folders are then made anew."""
    bytes: int
    """About how much space the folder takes, in bytes."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z_0-9.]+:[a-z_0-9]+", self.converter):
            raise ConfigError(f"converter must be module:function, found '{self.converter}'.")


@dataclass(frozen=True)
class WeightList:
    """All of weights.yaml."""

    artifacts: dict[str, Artifact]
    """Files to download, by name."""
    conversions: dict[str, Conversion] = field(default_factory=dict)
    """Folders made from them, by name."""

    def __post_init__(self) -> None:
        for name, conversion in self.conversions.items():
            if conversion.source not in self.artifacts:
                raise ConfigError(f"conversion {name} is made from '{conversion.source}', which is no artifact.")

    def split(self, names: Sequence[str], where: str = "weights") -> tuple[list[str], list[str]]:
        """Names -> (artifacts, conversions); an artifact that only serves a conversion is in neither. Raises ConfigError."""
        known = [*self.artifacts, *self.conversions]
        for name in names:
            if name not in known:
                raise strict_yaml.unknown_key(name, known, where)
        return [name for name in names if name in self.artifacts], [name for name in names if name in self.conversions]


def load_weight_list(path: Path = CONFIGS / "weights.yaml") -> WeightList:
    """Reads the list. Raises ConfigError."""
    return strict_yaml.build(WeightList, strict_yaml.read(path), path.name)
