"""The voice bench: the shipped texts, the table, and that only what changed is judged again."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from apps.bench_voice import Bench, Spoken, centre, failed, line, named, per, wer
from apps.bench_voice_judges import Judged, errors
from apps.bench_voice_mos import Opinion
from apps.bench_voice_rows import Row, fingerprint, text_seed
from apps.bench_voice_texts import KINDS, HeldOut, chosen, held_out
from apps.cli import main
from decoders.normalize import Reader, normalize
from duplex.audio import Samples
from duplex.errors import ConfigError


class Ears:
    """Judges that hear everything as one sentence, and count."""

    def __init__(self, heard: str = "Good morning.") -> None:
        self.heard, self.judged, self.rated = heard, 0, 0

    def judge(self, sound: Samples, *, mos: bool = True) -> Judged:
        self.judged += 1
        return Judged(self.heard, len(sound) / 16_000, (1.0, 0.0), *((3.0, 3.5, 4.0) if mos else ()))

    def opinion(self, sound: Samples) -> Opinion | None:
        self.rated += 1
        return Opinion(3.5, 4.0, 3.0)

    def embedding(self, sound: Samples) -> tuple[float, ...]:
        return (1.0, 0.0)


TEXTS = (HeldOut("replies", "", "Good morning."), HeldOut("replies", "", "Good night."))


def tone(text: HeldOut, seed: int) -> Samples:
    return np.sin(np.arange(24_000) / 20).astype(np.float32) * 0.1


def arguments(tmp_path: Path, **changed: object) -> argparse.Namespace:
    usual = {"count": None, "mos": 0, "jobs": 1, "seed": 0, "keep": None, "work": tmp_path / "work", "wait_while": None}
    return argparse.Namespace(**{**usual, **changed})


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_texts_can_be_spoken(kind: str) -> None:
    texts = held_out(kind)  # type: ignore[arg-type]
    assert len({item.text for item in texts}) == len(texts)
    for item in texts:
        assert any(piece.words for piece in normalize(item.text, Reader())), item.text


def test_there_are_a_hundred_hard_texts_of_every_sort() -> None:
    texts = [item.text for item in held_out("hard")]
    assert len(texts) == 100
    assert sum(any(c.isdigit() for c in text) for text in texts) >= 30
    assert sum("peck" in text or "seashells" in text for text in texts) == 2


def test_a_few_texts_are_spread_over_all() -> None:
    assert chosen("hard", None) == held_out("hard") == chosen("hard", 1000)
    few = chosen("hard", 4)
    assert [held_out("hard").index(item) for item in few] == [0, 25, 50, 75]


def test_only_what_changed_is_judged_again(tmp_path: Path) -> None:
    row = Row("a voice", tone, 24_000, "1")
    ears = Ears()
    first = Bench(ears, arguments(tmp_path)).spoken(row, TEXTS)  # type: ignore[arg-type]
    assert ears.judged == 2
    again = Bench(ears, arguments(tmp_path)).spoken(row, TEXTS)  # type: ignore[arg-type]
    assert (ears.judged, again) == (2, first)
    rated = Bench(ears, arguments(tmp_path)).spoken(row, TEXTS, mos=1)  # type: ignore[arg-type]
    assert (ears.judged, ears.rated) == (2, 1)  # the sound alone is rated now
    assert [said.judged.overall for said in rated] == [3.0, None]
    Bench(ears, arguments(tmp_path)).spoken(Row("a voice", tone, 24_000, "2"), TEXTS)  # type: ignore[arg-type]
    assert ears.judged == 4
    Bench(ears, arguments(tmp_path)).spoken(row, TEXTS, seed=1)  # type: ignore[arg-type]
    assert ears.judged == 6


def test_a_damaged_judgement_is_made_again(tmp_path: Path) -> None:
    ears, row = Ears(), Row("a voice", tone, 24_000, "1")
    Bench(ears, arguments(tmp_path)).spoken(row, TEXTS[:1])  # type: ignore[arg-type]
    (file,) = (tmp_path / "work").iterdir()
    file.write_text("{")
    Bench(ears, arguments(tmp_path)).spoken(row, TEXTS[:1])  # type: ignore[arg-type]
    assert ears.judged == 2


def test_sounds_are_kept_when_asked(tmp_path: Path) -> None:
    bench = Bench(Ears(), arguments(tmp_path, keep=tmp_path / "kept", jobs=2))  # type: ignore[arg-type]
    bench.spoken(Row("codes, flow 2 steps", tone, 24_000, "1"), TEXTS)
    names = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert len(names) == 2
    assert all(name.startswith("replies-") and name.endswith("-codes-flow-2-steps.wav") for name in names)


def test_the_table_says_what_was_measured() -> None:
    said = [
        Spoken(item, Judged(heard, 2.0, (1.0, 0.0), 3.0, 3.5, 4.0), errors(item.text, heard))
        for item, heard in zip(TEXTS, ("Good morning.", "Bad night, bad night, bad night."), strict=True)
    ]
    assert wer(said) == pytest.approx((0 + 5) / 4)
    expected = dict.fromkeys(TEXTS, 2.0)
    told = line("a voice", said, said[:1], expected, (1.0, 1.0))
    words, phones = told.split()[2:6:2], told.split()[6:10:2]
    assert words == ["125.0", "0.0"]
    assert float(phones[0]) == pytest.approx(100 * per(said), abs=0.05) and phones[1] == "0.0"
    assert per(said) > 0.5
    assert told.split()[10:] == ["1", "(33.3", "%)", "3.00", "3.50", "4.00", "0.707", "1.00"]
    assert failed("a voice", said, expected) == [
        "  a voice: 1 repeats",
        "    repeats: Good night.  ->  Bad night, bad night, bad night.",
    ]
    assert failed("a voice", said[:1], expected) == []
    assert centre([said[0].judged, Judged("", 1.0, (0.0, 1.0)), Judged("", 1.0, ())]) == (0.5, 0.5)


def test_seeds_differ_by_text_and_not_by_place() -> None:
    assert text_seed(TEXTS[0], 0) != text_seed(TEXTS[1], 0)
    assert text_seed(TEXTS[0], 0) != text_seed(TEXTS[0], 1)
    assert text_seed(TEXTS[0], 3) == text_seed(HeldOut("hard", "?", TEXTS[0].text), 3)


def test_a_fingerprint_follows_content(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("1")
    one = fingerprint([file], "x")
    assert one == fingerprint([file], "x") != fingerprint([file], "y")
    assert fingerprint([tmp_path], "x") == one
    file.write_text("2")
    assert fingerprint([file], "x") != one


def test_rows_are_chosen_by_parts_of_their_names() -> None:
    rows = [Row(name, tone, 24_000, "1") for name in ("teacher", "codes, flow 1 step", "own voice")]
    assert named(rows, None) == rows
    assert [row.name for row in named(rows, "flow, own")] == ["codes, flow 1 step", "own voice"]
    with pytest.raises(ConfigError, match="teacher; codes"):
        named(rows, "vocoder")


def test_wrong_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--jobs"):
        Bench(Ears(), arguments(tmp_path, jobs=0))  # type: ignore[arg-type]


def test_a_profile_without_the_teacher_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--profile", "tiny", "voice"]) == 2
    assert "such as edge" in capsys.readouterr().err
