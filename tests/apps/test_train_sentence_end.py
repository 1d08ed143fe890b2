"""Where sentences could break off, and a small training from the command line with the real language model."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.cli import main
from apps.train_sentence_end import Read, Reader, places, said, save
from duplex.predictor_sentence_end import SentenceEnd
from encoders.sound_heads import SoundHeads, weights_of
from encoders.sound_heads_training import Places
from tests.apps.heard_shards import write

WORD = st.text("abcdefgXYZ019'", min_size=1, max_size=6).filter(lambda word: word[-1] != "'")


@given(st.lists(st.tuples(WORD, st.sampled_from(["", ",", ".", "?"])), min_size=1, max_size=8), st.data())
def test_a_text_may_break_off_after_every_word_and_ends_once(said_words: list[tuple[str, str]], data: st.DataObject) -> None:
    body = " ".join(word + mark for word, mark in said_words).rstrip(",.?")
    pieces = re.findall(r" ?[A-Za-z0-9']+|[,.?]", body)  # as the LLM's tokenizer keeps words apart from marks
    split = [part for piece in pieces for part in _cut(piece, data)]
    found = places(body, split)
    assert [end for _, end in found].count(True) == 1 and found[-1] == (len(split) - 1, True)
    told = ["".join(split[: index + 1]) for index, _ in found]
    inner = [mark for _, mark in said_words[:-1]]
    assert len(told) == 1 + sum(mark not in (".", "?") for mark in inner)
    assert all(body.startswith(text) and text[-1] not in " ,.?" for text in told)


def _cut(piece: str, data: st.DataObject) -> list[str]:
    at = data.draw(st.integers(0, len(piece)))
    return [part for part in (piece[:at], piece[at:]) if part]


def test_texts_are_drawn_anew_for_each_seed_and_end_without_a_mark() -> None:
    texts = said(60, 3)
    assert texts == said(60, 3) and texts != said(60, 4)
    assert all(text[-1] not in " .?!" and "|" not in text and "{" not in text for text in texts)


def test_asking_what_it_costs_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sentence-end", "--dry-run", "--work", str(tmp_path / "w")]) == 0
    assert "min of reading" in capsys.readouterr().out and not (tmp_path / "w").exists()


def test_too_few_texts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sentence-end", "--texts", "10"]) != 0
    assert "at least 400 texts" in capsys.readouterr().err


def read(seed: int) -> Read:
    rng = np.random.default_rng(seed)
    states = rng.normal(0, 1, (400, 32)).astype(np.float16)
    return Read(Places(states, states[:, 0] > 0.8), rng.normal(-3, 1, 400).astype(np.float32))


def test_what_was_read_and_heard_is_learnt_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.train_sentence_end.INPUTS", {"bridge": 20, "projector": 20})
    for seed, name in enumerate(("read-0-000", "read-0-001", "read-0-002", "unseen-0")):
        save(tmp_path / f"{name}.npz", read(seed))
    args = argparse.Namespace(conversations=100, sentences=20, seed=0)
    write(tmp_path, "bridge", args, last=4)
    write(tmp_path, "projector", args, last=0)
    out = tmp_path / "made" / "head.safetensors"
    command = ["train", "sentence-end", "--texts", "600", "--conversations", "100", "--sentences", "20", "--epochs", "300"]
    assert main([*command, "--work", str(tmp_path), "--out", str(out), "--sounds", str(out.parent)]) == 0
    printed = capsys.readouterr().out
    told = re.findall(r"places: (0\.\d+) \(AUC\); the LLM's own odds (0\.\d+)", printed)
    assert [float(found) > 0.9 > float(own) for found, own in told] == [True, True]
    assert SentenceEnd.load(out).hidden == 32
    card = out.with_suffix(".md").read_text()
    assert "400 places of questions of unseen templates" in card and "--texts 600" in card
    for name in ("bridge", "projector"):
        heads = SoundHeads.load(out.parent / weights_of(name).name)
        assert heads.places == 20 and f"what {name} heard of sentences kept back" in printed
        assert "words and sound: " in (out.parent / weights_of(name).with_suffix(".md").name).read_text()


def test_too_little_to_keep_some_for_judging_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.train_sentence_end.heard_places", lambda *_: (_ for _ in ()).throw(ValueError("too few")))
    for seed, name in enumerate(("read-0-000", "read-0-001", "unseen-0")):
        save(tmp_path / f"{name}.npz", read(seed))
    write(tmp_path, "bridge", argparse.Namespace(conversations=50, sentences=20, seed=0), last=4)
    command = ["train", "sentence-end", "--texts", "400", "--conversations", "50", "--sentences", "20", "--work", str(tmp_path)]
    assert main(command) == 2 and "give more --conversations" in capsys.readouterr().err


def test_a_language_model_reads_each_text_once(edge_weights: dict[str, Path]) -> None:
    reader = Reader()
    assert reader.chat._sentence_end is None, "the head that is to be taught is not needed for teaching it"
    read = reader.read(["Sorry, could you say that again", "what time is it"])
    assert read.places.states.shape == (10, 896) and read.places.ends.tolist() == [False] * 5 + [True] + [False] * 3 + [True]
    assert read.odds[5] > read.odds[4] and read.odds[9] > read.odds[8]
