"""Habits that a machine can hold: no loose ends, no path of a machine, tests where they are looked for, documented settings."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("agent", "apps", "decoders", "duplex", "encoders")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TEXT = {".py", ".yaml", ".yml", ".md", ".toml", ".txt", ".json", ".cfg", "", ".sh"}
MACHINE_PATH = re.compile(r"(?<![\w.}/$)])/(?:work|root|home|Users|tmp)/[\w.-]+")
LOOSE_END = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
MAX_LINES = 470
"""A file above this has more than one reason to change."""


def tracked() -> list[Path]:
    """Text files of the repository; outside a checkout, the files that would be."""
    try:
        listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
        files = [ROOT / name for name in listing if name]
    except (OSError, subprocess.CalledProcessError):
        files = [*SOURCES, *ROOT.glob("*.md"), *(ROOT / "configs").glob("*.yaml")]
    return [path for path in files if path.is_file() and path.suffix in TEXT]


def test_no_loose_ends() -> None:
    found = [f"{path.relative_to(ROOT)}: {match[0]}" for path in tracked() if (match := LOOSE_END.search(path.read_text()))]
    assert found == []


def test_no_path_of_a_machine() -> None:
    found = [f"{path.relative_to(ROOT)}: {match[0]}" for path in tracked() if (match := MACHINE_PATH.search(path.read_text()))]
    assert found == []


def test_the_patterns_find_what_they_look_for() -> None:
    assert MACHINE_PATH.search("see /" + "home/ada/voice.wav")
    assert LOOSE_END.search("# TO" + "DO later")


def test_names_say_what_is_inside() -> None:
    assert [str(path) for path in SOURCES if re.search(r"(util|helper|manager|misc|common)s?", path.stem)] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_opens_by_saying_what_is_notable_and_stays_small(path: Path) -> None:
    source = path.read_text()
    if not source.strip():
        assert path.name == "__init__.py"
        return
    assert ast.get_docstring(ast.parse(source)), "the module has no docstring"
    assert source.count("\n") <= MAX_LINES


def test_tests_mirror_the_tree() -> None:
    """tests/<package>/test_<file>.py belongs to <package>/<file>.py, or to a group of files that starts with that word."""
    lost = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        package = path.parent.name
        if package not in PACKAGES:
            continue
        subject = path.stem.removeprefix("test_")
        stems = [source.stem for source in (ROOT / package).rglob("*.py")]
        if not any(stem == subject or subject.startswith(f"{stem}_") or stem.startswith(f"{subject}_") for stem in stems):
            lost.append(str(path.relative_to(ROOT)))
    assert lost == []


def undocumented(source: str) -> list[str]:
    """Fields of frozen dataclasses named ...Config that have no sentence under them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef) or not node.name.endswith("Config") or not node.decorator_list:
            continue
        for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
            documented = (
                isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
            )
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and not documented:
                found.append(f"{node.name}.{statement.target.id}")
    return found


def test_every_setting_is_documented() -> None:
    found = [f"{path.relative_to(ROOT)}: {name}" for path in SOURCES for name in undocumented(path.read_text())]
    assert found == []


def test_an_undocumented_setting_is_found() -> None:
    source = '@dataclass(frozen=True)\nclass TurnConfig:\n    pause_s: float = 1.0\n    """Why."""\n    commit_s: float = 2.0\n'
    assert undocumented(source) == ["TurnConfig.commit_s"]
