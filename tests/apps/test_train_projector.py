"""Teaching the input projector from the command line: texts, speech without the real voices, and runs that go on."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from apps import cli, train_projector, train_projector_speech, train_projector_texts
from apps.train_corpus_questions import questions
from apps.train_projector_language import learn
from apps.train_projector_speech import (
    HELD_EVERY,
    MADE,
    PROGRAMS,
    PROMPT_SHARE,
    PROMPTS,
    SpeechConfig,
    keep_prompts,
    speak,
)
from apps.train_projector_speech import gather as gather_speech
from apps.train_projector_texts import Texts, fortunes, gather, load, sounds, templates, tidy, wordnet
from duplex.errors import InputError, WeightsError
from encoders.speech_projector import SpeechProjector, SpeechProjectorConfig
from tests.encoders.test_speech_projector import whisper_tensors

SMALL = SpeechProjectorConfig(32, 2, 1, 1, 48, 3, left=2, rank=4)

SPEAKS = f"""#!{sys.executable}
import math, struct, sys, wave
if "--batch" in sys.argv:  # as festival is called
    script = sys.argv[-1]
    text, out, rate = script.split('Text "')[1].split('"')[0], script.rsplit('"', 2)[1], 16000
elif "-w" in sys.argv:  # as espeak-ng is called
    text, out, rate = sys.argv[-1], sys.argv[sys.argv.index("-w") + 1], 22050
else:
    text, out = sys.argv[sys.argv.index("-t") + 1], sys.argv[sys.argv.index("-o") + 1]
    rate = 8000 if sys.argv[sys.argv.index("-voice") + 1] == "kal" else 16000
with wave.open(out, "wb") as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(rate)
    tones = [200 + 40 * (ord(c) % 60) for c in text if c.isalpha()]
    samples = [int(9000 * math.sin(2 * math.pi * hz * i / rate)) for hz in tones for i in range(rate // 8)]
    file.writeframes(struct.pack(f"<{{len(samples)}}h", *samples))
"""


@pytest.fixture
def flite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """All programs."""
    for name in set(PROGRAMS.values()):
        (tmp_path / name).write_text(SPEAKS)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return str(tmp_path / "flite")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """What --pack leaves, for an LLM of bytes."""
    folder = tmp_path / "work"
    folder.mkdir()
    numbers = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    texts = [f"{word}." for word in numbers for _ in range(9)][: HELD_EVERY + 10]
    flat = train_projector_texts._flat
    save_file(
        {
            **flat("text", [np.frombuffer(text.encode(), np.uint8) for text in texts]),
            **flat("phones", [np.frombuffer(text.lower().encode(), np.uint8) for text in texts]),
            "sounds": torch.tensor([chr(byte).isalpha() and byte < 128 for byte in range(256)]),
            "space": torch.tensor(32),
        },
        folder / "projector-texts.safetensors",
    )
    whisper = {name: 0.2 * value for name, value in whisper_tensors(SpeechProjector(SMALL)).items()}
    save_file({name: value.half().contiguous() for name, value in whisper.items()}, folder / "whisper-encoder.safetensors")
    return folder


def test_templates_are_sentences() -> None:
    made = list(templates(np.random.default_rng(0), 400))
    assert len(set(made)) > 250
    assert all(tidy(text) for text in made) and not any("{" in text or "|" in text for text in made)
    assert not any(f" a {vowel}" in text for text in made for vowel in "aeio")


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("he likes it", "He likes it."),
        ("Who are you?", "Who are you?"),
        ("`so what`", "So what."),
        ("it costs 12", "It costs twelve."),
        ("In 1984, 300 people", "In nineteen eighty four, three hundred people."),
        ("dial 007", "Dial zero zero seven."),
        ("call 555-1234", None),
        ("it costs 1,200", None),
        ("the 90's", None),
        ("the NASA program", None),
        ("...", None),
        ("a (strange) thing", None),
    ],
)
def test_only_what_people_say_is_kept(raw: str, clean: str | None) -> None:
    assert tidy(raw) == clean


def test_dictionaries_and_fortunes_are_read_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "data.verb").write_text(
        '00001740 29 v 01 breathe 0 | draw air into the lungs; "I can breathe better when the air is clean"\n'
    )
    assert list(wordnet(tmp_path)) == ["I can breathe better when the air is clean", "draw air into the lungs"]
    (tmp_path / "wisdom").write_text("He who knows does not speak.\nHe is silent.\n\t\t-- Lao Tzu\n%\nTwo is\nenough!\n")
    assert [one for one in fortunes(tmp_path) if one] == ["He who knows does not speak.", "He is silent.", "Two is enough!"]
    assert list(wordnet(tmp_path / "none")) == [] == list(fortunes(tmp_path / "none"))
    found = gather(60, 0, tmp_path, tmp_path)
    asked = {tidy(one.text) for one in questions(12, 0)}
    assert len(asked & set(found)) >= 10  # and what the voice's corpus is asked
    assert not {"What is the capital of Italy?", "Stop, please."} & set(gather(30_000, 0, tmp_path, tmp_path))  # the bench's
    assert len(found) == 60 and "Draw air into the lungs." in found and len(set(found)) == 60


def test_voices_share_the_texts_and_are_kept(tmp_path: Path, work: Path, flite: str) -> None:
    texts = load(work / "projector-texts.safetensors")
    told: list[str] = []
    spoken = speak(texts, tmp_path / "speech", None, SpeechConfig(60, 2), told.append, "cpu", flite)
    assert set(spoken.voice) == {name for name, _ in MADE} and sorted(spoken.text) == list(range(len(texts)))
    assert spoken.held.sum() == 2 and (spoken.lengths > 3000).all()
    row = spoken.voice.index("kal")
    start = int(spoken.bank.starts[row])
    tone = spoken.bank.sound[start : start + 800].float()  # 8 kHz, brought to 16
    wanted = 200 + 40 * (ord(texts.texts[spoken.text[row]][0]) % 60)
    assert float(torch.fft.rfft(tone).abs().argmax()) * 20 == pytest.approx(wanted, abs=25)
    again = speak(texts, tmp_path / "speech", None, SpeechConfig(60, 2), told.append, "cpu", "/nonesuch/flite")
    assert torch.equal(again.bank.sound, spoken.bank.sound)


def test_without_any_voice_there_is_a_sentence(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_projector_speech.shutil, "which", lambda name: None)
    texts = load(work / "projector-texts.safetensors")
    with pytest.raises(InputError, match="nobody to speak"):
        speak(texts, tmp_path / "speech", None, SpeechConfig(1, 1), print, "cpu")
    with pytest.raises(WeightsError, match="--pack"):
        load(tmp_path / "none.safetensors")


def test_the_command_makes_weights_a_card_and_goes_on(
    tmp_path: Path, work: Path, flite: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        train_projector, "SpeechProjectorConfig", functools.partial(SpeechProjectorConfig, 32, 2, 1, 1, 48, 3, left=2)
    )
    out = tmp_path / "out" / "projector.safetensors"
    command = ["train", "projector", "--work", str(work), "--device", "cpu", "--batch", "20", "--flite", flite, "--threads", "2"]
    command += ["--teacher", str(tmp_path / "none.safetensors"), "--speech-seconds", "60", "--out", str(out)]
    assert cli.main([*command, "--minutes", "0.02", "--dry-run"]) == 0 and not out.exists()
    assert cli.main([*command, "--minutes", "0.02"]) == 0
    said = capsys.readouterr().out
    assert "joe does not speak" in said and "of words wrong" in said
    card = out.with_suffix(".md").read_text()
    assert "awb, kal16, ked, espeak, kal" in card and "0.02" in card and out.stat().st_size > 10_000
    assert cli.main([*command, "--minutes", "0.03"]) == 0
    assert "going on after" in capsys.readouterr().out
    (work / "projector-0.pt").unlink()
    assert cli.main([*command, "--minutes", "0.02", "--begin", str(out)]) == 0
    assert f"beginning with {out}" in capsys.readouterr().out
    assert cli.main([*command, "--minutes", "0"]) == 2


def test_stress_length_and_marks_are_no_sounds() -> None:
    found = sounds({"a": [1], "ˈ": [2], "ː": [3], " ": [4], ".": [5], "ʃ": [6], "^": [7]})
    assert np.flatnonzero(found).tolist() == [1, 6]


def test_prompts_are_heard_more_often_and_never_judged_by(tmp_path: Path, work: Path, flite: str) -> None:
    texts = load(work / "projector-texts.safetensors")
    folder = tmp_path / "speech"
    with pytest.raises(InputError, match="nobody"):
        keep_prompts(folder, [0], [np.full(8000, 0.25, np.float32)])
        gather_speech(texts, folder, torch.device("cpu"))
    spoken = speak(texts, folder, None, SpeechConfig(60, 2), lambda text: None, "cpu", flite)
    rows = [row for row, voice in enumerate(spoken.voice) if voice == PROMPTS]
    assert len(rows) == round(PROMPT_SHARE * len(texts)) > 1 and not spoken.held[rows].any() and spoken.held.any()
    start = int(spoken.bank.starts[rows[-1]])
    assert spoken.bank.sound[start : start + 8000].unique().tolist() == [8191] and spoken.lengths[rows[-1]] == 8000
    used = sorted(set("".join(texts.texts).replace(".", "")))
    assert [used[one] for one in spoken.phones[0]] == list(texts.texts[0].strip("."))


def said(text: str, words: str) -> tuple[str, np.ndarray]:
    return text, np.frombuffer(words.encode(), np.uint8)


def test_what_is_known_of_the_language_is_what_its_texts_say() -> None:
    rows = [
        said("Kept for judging.", "kept for"),
        *[said("Is it Ann's cat?", "is it anz kat")] * 5,
        said("It is. So is Ann.", "it is so iz an"),
    ]
    rows += [said("Seven two one.", "seven")] * 2 + [said("Is a dog? It is.", "iz a dog it is")]
    texts = Texts(
        [one for one, _ in rows], [one for _, one in rows], np.array([chr(i).isalpha() and i < 128 for i in range(256)]), 32
    )
    found = learn(texts, 100)
    lexicon, ngrams = found.lexicon, found.ngrams
    assert set(lexicon.words) == {"", "is", "it", "Ann's", "cat", "so", "Ann", "a", "dog"}
    used = sorted(set("keptforisitanzkatitissoizanseveniza" + "dogitis"))
    ways = {(lexicon.words[word], "".join(used[p] for p in way)) for word, way in zip(lexicon.word, lexicon.phones, strict=True)}
    assert ("is", "is") in ways and ("is", "iz") in ways and ("Ann's", "anz") in ways and ("Ann", "an") in ways
    odds = {used_way: odd for used_way, odd in zip(lexicon.phones, lexicon.odds, strict=True)}
    assert np.exp([odds[tuple(used.index(p) for p in way)] for way in ("is", "iz")]).tolist() == pytest.approx([7 / 9, 2 / 9])
    number = {word: index for index, word in enumerate(lexicon.words)}
    assert lexicon.question([number["is"], number["it"]]) and not lexicon.question([number["it"], number["is"]])
    pair = np.array([number["is"]]), np.array([number["it"]])
    assert ngrams.log(*pair, np.array([number["Ann's"]]))[0] > ngrams.log(*pair, np.array([number["dog"]]))[0] + 1
    with pytest.raises(InputError, match="--pack"):
        learn(Texts(["One two."], [np.zeros(0, np.uint8)], texts.sounds, 32), 100)
