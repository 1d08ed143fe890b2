"""The ears' bench: reads speech from outside, hears as a session hears, and makes noise of the level it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from apps import bench_ears
from apps.bench_ears import Published, Said, hear, read_speech
from duplex.errors import InputError
from tests.encoders.babble import babble
from tests.encoders.test_projector_ears import tiny


def test_speech_is_read_from_a_list(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "one.wav", babble(1), 8000)
    (tmp_path / "people.tsv").write_text("one.wav\tHello there.\n\n# no sound\n")
    (one,) = read_speech(tmp_path / "people.tsv")
    assert (one.group, one.text, len(one.samples)) == ("people", "Hello there.", 32_000)
    (tmp_path / "bad.tsv").write_text("two.wav\tHello.\n")
    for name in ("bad.tsv", "none.tsv"):
        with pytest.raises(InputError, match="cannot be read"):
            read_speech(tmp_path / name)
    (tmp_path / "empty.tsv").write_text("\n")
    with pytest.raises(InputError, match="lists no speech"):
        read_speech(tmp_path / "empty.tsv")


def test_noise_has_the_level_that_is_said() -> None:
    speech = babble(3, 2)
    for db in (20.0, 5.0):
        noise = bench_ears._noisy(Said("a", "b", speech), db).samples - speech
        loud = (speech[speech != 0] ** 2).mean()
        assert 10 * np.log10(loud / (noise**2).mean()) == pytest.approx(db, abs=1.0)


def test_whisper_as_it_is_published_hears_once_and_thirty_seconds() -> None:
    ears = Published.tiny(3)
    heard = []
    encode = ears.model.encode
    ears.model.encode = lambda frames: (heard.append(len(frames)), encode(frames))[1]  # type: ignore[method-assign, assignment]
    _, after, before = hear(ears, babble(4))
    assert heard == [ears.model.max_frames] and before == 0 < after


def test_it_hears_as_a_session_hears() -> None:
    ears = tiny()
    transcript, after, before = hear(ears, babble(4))
    state = ears.open()
    quiet = np.zeros(4800, np.float32)
    ears.feed(state, np.concatenate([quiet, babble(4), quiet[:3840]]))
    assert transcript.text == ears.transcribe(ears.window(state)).text != ""
    assert after > 0 and before > 0
