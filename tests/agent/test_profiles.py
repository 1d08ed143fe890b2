"""Profiles and strict YAML: what is written is what is meant, and a slip is named together with what was probably meant."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import strict_yaml
from agent.profiles import SECTIONS, load_profile, profile_names
from agent.weight_list import load_weight_list
from duplex.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    level_db: float = -40.0


@dataclass(frozen=True)
class Turns:
    commit_s: float = 0.5
    windows: int = 3
    duck: bool = True
    mode: Literal["fast", "calm"] = "fast"
    words: tuple[str, ...] = ("mm-hm",)
    pair: tuple[int, float] = (1, 2.0)
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.commit_s <= 0:
            raise ValueError("commit_s must be positive; try 0.5.")


def build(text: str) -> Turns:
    return strict_yaml.build(Turns, strict_yaml.parse(text, "edge.yaml"), "edge.yaml: turns")


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_values_arrive_typed() -> None:
    made = build("{commit_s: 1, mode: calm, words: ['yes', 'no'], pair: [4, 5], limit: 7, inner: {level_db: -3e1}}")
    assert made == Turns(commit_s=1.0, mode="calm", words=("yes", "no"), pair=(4, 5.0), limit=7, inner=Inner(-30.0))
    assert isinstance(made.commit_s, float)


def test_an_empty_mapping_gives_the_defaults() -> None:
    assert build("{}") == Turns()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{comit_s: 1}", "edge.yaml: turns: unknown key 'comit_s'; did you mean commit_s?"),
        ("{zzz: 1}", "known keys are commit_s, duck"),
        ("{commit_s: soon}", "edge.yaml: turns.commit_s: expected a number, found text ('soon')."),
        ("{commit_s: true}", "edge.yaml: turns.commit_s: expected a number, found true or false (True)."),
        ("{windows: 1.5}", "edge.yaml: turns.windows: expected a whole number"),
        ("{windows: true}", "edge.yaml: turns.windows: expected a whole number"),
        ("{duck: 1}", "edge.yaml: turns.duck: expected true or false"),
        ("{mode: slow}", "edge.yaml: turns.mode: expected one of fast, calm, found 'slow'."),
        ("{words: uh}", "edge.yaml: turns.words: expected a list"),
        ("{words: [uh, 3]}", "edge.yaml: turns.words[1]: expected text"),
        ("{pair: [1]}", "edge.yaml: turns.pair: expected a list of 2 values, found 1."),
        ("{limit: many}", "edge.yaml: turns.limit: expected a whole number"),
        ("{inner: {level: 1}}", "edge.yaml: turns.inner: unknown key 'level'; did you mean level_db?"),
        ("{inner: 3}", "edge.yaml: turns.inner: expected keys and values"),
        ("{commit_s: -1}", "edge.yaml: turns: commit_s must be positive; try 0.5."),
        ("[1]", "edge.yaml: turns: expected keys and values, found a list."),
    ],
)
def test_a_slip_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "line 2 is not valid YAML: the key 'a' is written twice"),
        ("a: [", "mine.yaml: line"),
        ("a: 2024-99-99", "mine.yaml"),
    ],
)
def test_broken_yaml_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        strict_yaml.read(write(tmp_path, text))
    assert message in str(caught.value)


@given(st.text(max_size=60))
def test_no_text_raises_anything_but_config_error(text: str) -> None:
    try:
        strict_yaml.parse(text, "any.yaml")
    except ConfigError:
        return


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_value_raises_anything_but_config_error(value: Any) -> None:
    try:
        made = strict_yaml.build(Turns, value, "any.yaml: turns")
    except ConfigError:
        return
    assert isinstance(made, Turns)


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_load_and_name_known_weights(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    artifacts, conversions = load_weight_list().split(profile.weights)
    assert set(artifacts) | set(conversions) == set(profile.weights)


def test_overrides_set_one_key() -> None:
    profile = load_profile("tiny", ["session.commit_s=0.75", "session.inner.level_db=-20", "output=projector"])
    assert profile.section("session", Turns) == Turns(commit_s=0.75, inner=Inner(-20.0))
    assert profile.output == "projector"
    assert load_profile("tiny").output == "bridge"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("session", "write it as section.key=value"),
        ("session=3", "'session' is a section"),
        (".x=3", "write it as section.key=value"),
        ("sesion.commit_s=3", "did you mean session?"),
        ("output.deep=3", "'output' holds a value"),
        ("output=aloud", "expected one of bridge, projector"),
        ("session.commit_s=[", "is not valid YAML"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("tiny", [override])
    assert message in str(caught.value)


def test_a_profile_may_be_any_file(tmp_path: Path) -> None:
    path = write(tmp_path, "description: Mine.\nsession: {commit_s: 2}\nvoice:\n")
    profile = load_profile(str(path))
    assert (profile.name, profile.section("session", Turns).commit_s) == ("mine", 2.0)
    assert set(profile.sections) == set(SECTIONS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("description: x\nsessionz: {}\n", "unknown key 'sessionz'; did you mean session?"),
        ("session: {}\n", "the key 'description' is missing"),
        ("description: x\nsession: 3\n", "session: expected keys and values"),
        ("just text", "expected keys and values at the top level"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile(write(tmp_path, text))
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="edge"):
        load_profile("egde")
    with pytest.raises(ConfigError, match="no configuration file"):
        load_profile("nowhere/edge.yaml")
