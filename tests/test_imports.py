"""Imports flow one way: apps -> agent -> encoders, decoders -> duplex. Read from the source, so nothing has to be installed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "duplex": set(),
    "encoders": {"duplex"},
    "decoders": {"duplex"},
    "agent": {"encoders", "decoders", "duplex"},
    "apps": {"agent", "encoders", "decoders", "duplex"},
}
NO_ASYNCIO = {"duplex", "encoders", "decoders"}


def torch_allowed(path: Path) -> bool:
    """As far as `duplex` goes, torch is in the predictor, its training, and the reading of checkpoints."""
    return path.parts[0] != "duplex" or path.stem.startswith(("predictor", "checkpoint"))


def imported(source: str) -> Iterator[str]:
    """Every module named by an import statement anywhere in the source, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ("." * node.level) + (node.module or "")


def faults(path: Path, source: str) -> list[str]:
    """What a file at `path` (relative to the root) may not import."""
    package = path.parts[0]
    found = []
    for name in imported(source):
        top = name.split(".")[0]
        if name.startswith("."):
            found.append(f"relative import {name}")
        elif top in MAY_IMPORT and top != package and top not in MAY_IMPORT[package]:
            found.append(f"{package} imports {name}")
        elif top == "asyncio" and package in NO_ASYNCIO:
            found.append(f"{package} imports asyncio")
        elif top in ("torch", "transformers") and not torch_allowed(path):
            found.append(f"{path} imports {name}")
        elif top in ("tests", "configs"):
            found.append(f"{package} imports {name}")
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_flow_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = [f"{file.relative_to(ROOT)}: {fault}" for file in files for fault in faults(file.relative_to(ROOT), file.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("duplex/core.py", "import asyncio"),
        ("duplex/core.py", "def f():\n    from torch import nn"),
        ("encoders/a.py", "from decoders import voice"),
        ("decoders/a.py", "import encoders.ears"),
        ("agent/a.py", "from apps import cli"),
        ("duplex/a.py", "from agent.session import Session"),
        ("agent/a.py", "from .session import Session"),
    ],
)
def test_the_rule_has_teeth(path: str, source: str) -> None:
    assert faults(Path(path), source)


def test_configs_hold_yaml_only() -> None:
    others = [path.name for path in (ROOT / "configs").iterdir() if path.suffix != ".yaml" and path.name != "__pycache__"]
    assert others == []
