"""YAML read strictly into frozen dataclasses.

An unknown key is an error that names its nearest neighbours, a wrong type is an error that names the path, and a key written twice
is an error as well (plain YAML keeps the last one silently). Numbers like `1e-3` are floats here, as people expect.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from duplex.errors import ConfigError

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads every usual float."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' is written twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse(text: str, where: str) -> Any:
    """YAML text -> plain Python values. Raises ConfigError naming `where` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}:{line} is not valid YAML: {problem}.") from error
    except (ValueError, RecursionError) as error:  # impossible dates, nesting without end
        raise ConfigError(f"{where}: is not valid YAML: {error}.") from error


def read(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"There is no configuration file '{path}'; check the name.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file '{path}' cannot be read: {error}.") from error
    value = parse(text, path.name)
    if not isinstance(value, dict):
        raise ConfigError(f"{path.name}: expected keys and values at the top level, found {_kind(value)}.")
    return value


def unknown_key(key: object, known: Sequence[str], where: str) -> ConfigError:
    """The error for a key that nobody reads; names its neighbours."""
    close = difflib.get_close_matches(str(key), known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known keys are {', '.join(sorted(known))}."
    return ConfigError(f"{where}: unknown key '{key}'; {hint}")


def build(cls: type[T], mapping: Any, where: str) -> T:
    """Builds the dataclass `cls` from a mapping.

    `where` opens every message, for example `edge.yaml: turns`. Handles nested dataclasses, Optional and other unions, Literal,
    list, tuple, dict, Path; an int is accepted for a float, nothing else is converted. Raises ConfigError.
    """
    if not dataclasses.is_dataclass(cls):
        raise AssertionError(f"{cls} is no dataclass")
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected keys and values, found {_kind(mapping)}.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in mapping:
        if key not in fields:
            raise unknown_key(key, list(fields), where)
    hints = typing.get_type_hints(cls)
    values = {str(key): _convert(hints[key], value, _join(where, str(key))) for key, value in mapping.items()}
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and name not in values:
            raise ConfigError(f"{where}: the key '{name}' is missing.")
    try:
        return typing.cast(T, cls(**values))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is typing.Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):  # type first: 1 == True
            raise ConfigError(f"{where}: expected one of {', '.join(map(str, arguments))}, found {value!r}.")
        return value
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        return _convert_sequence(origin or hint, arguments, value, where)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected keys and values, found {_kind(value)}.")
        key_hint, value_hint = arguments or (Any, Any)
        return {_convert(key_hint, key, where): _convert(value_hint, item, _join(where, str(key))) for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    return _convert_plain(hint, value, where)


def _convert_union(choices: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and types.NoneType in choices:
        return None
    errors = []
    for choice in choices:
        if choice is types.NoneType:
            continue
        try:
            return _convert(choice, value, where)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _convert_sequence(kind: Any, arguments: Sequence[Any], value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, found {_kind(value)}.")
    if kind is tuple and arguments and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        if len(value) != len(arguments):
            raise ConfigError(f"{where}: expected a list of {len(arguments)} values, found {len(value)}.")
        hints: Sequence[Any] = arguments
    else:
        hints = [arguments[0] if arguments else Any] * len(value)
    items = [_convert(hint, item, f"{where}[{index}]") for index, (hint, item) in enumerate(zip(hints, value, strict=True))]
    return items if kind is list else tuple(items)


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(hint, type):
        raise AssertionError(f"{where}: the type {hint} is not one that YAML can hold")
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise ConfigError(f"{where}: expected {_NAMES.get(hint, hint.__name__)}, found {_kind(value)}.")


_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
}


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "keys and values"
    if isinstance(value, list):
        return "a list"
    return f"{_NAMES.get(type(value), type(value).__name__)} ({value!r})"


def _join(where: str, key: str) -> str:
    """`edge.yaml` + `turns` -> `edge.yaml: turns`; deeper levels are joined by dots."""
    return f"{where}.{key}" if ": " in where else f"{where}: {key}"
