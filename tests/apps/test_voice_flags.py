"""`--voice` and `--voice-text`, as `talk` and `file` take them."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import soundfile

from agent.voice_sample import SHIPPED, VoiceSample
from apps.cli import main
from apps.voice_flags import add_named_voice_arguments, add_voice_arguments, named_voices_of, voice_of
from duplex.errors import ConfigError, InputError


def parsed(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_voice_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_a_sample_is_read_at_its_own_rate_and_mixed_to_mono(tmp_path: Path) -> None:
    left, right = np.full(44_100, 0.5), np.full(44_100, -0.25)
    soundfile.write(tmp_path / "me.wav", np.stack([left, right], 1), 44_100, subtype="FLOAT")
    sample = voice_of(parsed("--voice", tmp_path / "me.wav", "--voice-text", " Hello there. "))
    assert sample is not None
    assert (sample.rate_hz, sample.text, sample.samples.shape) == (44_100, "Hello there.", (44_100,))
    np.testing.assert_allclose(sample.samples, 0.125, atol=1e-6)


def test_the_words_may_lie_beside_the_sample() -> None:
    sample = voice_of(parsed("--voice", SHIPPED))
    assert sample is not None
    assert sample.text == SHIPPED.with_suffix(".txt").read_text(encoding="utf-8").strip()
    assert voice_of(parsed()) is None


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "me.wav", np.zeros(16_000), 16_000)
    with pytest.raises(ConfigError, match="--voice-text, or in a text file"):
        voice_of(parsed("--voice", tmp_path / "me.wav"))
    with pytest.raises(ConfigError, match="are missing"):
        voice_of(parsed("--voice", tmp_path / "me.wav", "--voice-text", " "))
    with pytest.raises(ConfigError, match="name the sample with --voice"):
        voice_of(parsed("--voice-text", "Hello."))
    with pytest.raises(InputError, match="does not exist"):
        voice_of(parsed("--voice", tmp_path / "no.wav", "--voice-text", "Hello."))
    soundfile.write(tmp_path / "long.wav", np.zeros(121 * 8_000), 8_000)
    with pytest.raises(InputError, match="121 s long; cut out"):
        voice_of(parsed("--voice", tmp_path / "long.wav", "--voice-text", "Hello."))


def named(*words: object) -> dict[str, VoiceSample]:
    parser = argparse.ArgumentParser()
    add_named_voice_arguments(parser)
    return named_voices_of(parser.parse_args([str(word) for word in words]))


def test_voices_by_name() -> None:
    found = named(
        "--voice", f"joe={SHIPPED}", "--voice", f"his-brother={SHIPPED}", "--voice-text", "his-brother=These = his words."
    )
    assert list(found) == ["joe", "his-brother"]
    assert found["joe"].text == SHIPPED.with_suffix(".txt").read_text(encoding="utf-8").strip()
    assert found["his-brother"].text == "These = his words."
    assert named() == {}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--voice", "me.wav"], "write it with a name, for example --voice me=me.wav"),
        (["--voice", "me="], "write it with a name"),
        (["--voice", f"default={SHIPPED}"], "but not default"),
        (["--voice", f"my voice={SHIPPED}"], "letters, digits"),
        (["--voice", f"me={SHIPPED}", "--voice", f"me={SHIPPED}"], "given twice"),
        (["--voice-text", "me=Hello."], "there is no voice of this name"),
    ],
)
def test_voices_by_name_that_cannot_be(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        named(*words)


def user(folder: Path) -> Path:
    path = folder / "user.wav"
    t = np.arange(3 * 16_000) / 16_000
    soundfile.write(path, 0.2 * np.sin(2 * np.pi * 150 * t) * (t > 0.5) * (t < 2), 16_000)
    return path


def test_file_speaks_with_a_cloned_voice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOLOGUE_HOME", str(tmp_path / "home"))
    words = ["file", str(user(tmp_path)), str(tmp_path / "out.wav"), "--profile", "tiny", "--voice", str(SHIPPED)]
    assert main(words) == 0
    assert soundfile.info(tmp_path / "out.wav").frames == 3 * 24_000


def test_a_profile_that_cannot_clone_and_a_sample_that_is_no_voice_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["file", str(user(tmp_path)), str(tmp_path / "out.wav")]
    assert main([*common, "--profile", "edge", "--voice", str(SHIPPED)]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("duologue: ") and "cannot be cloned" in told and "\n" not in told
    soundfile.write(tmp_path / "quiet.wav", np.zeros(5 * 24_000), 24_000)
    assert main([*common, "--profile", "tiny", "--voice", str(tmp_path / "quiet.wav"), "--voice-text", "Hello there."]) == 3
    told = capsys.readouterr().err.strip()
    assert told.startswith("duologue: The voice sample is silent") and "\n" not in told
