"""The four labels in front of the text, and the chance that nobody speaks."""

import pytest
import torch

from encoders.sensevoice_labels import OFFICIAL_IDS, OFFICIAL_SIZE, LabelReader, RichLabels
from encoders.sensevoice_pieces import Pieces, tiny_pieces

TINY = tiny_pieces()
IDS = {piece: i for i, piece in enumerate(TINY.pieces)}


def logits(*names: str, strength: float = 5.0) -> torch.Tensor:
    """Rows in which one label each stands out among its kind, and a letter above all."""
    rows = torch.zeros(4, TINY.size)
    rows[:, IDS["a"]] = 9.0
    for row, name in zip(rows, names, strict=True):
        row[IDS[f"<|{name}|>"]] = strength
    return rows


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("en", "HAPPY", "Speech", "withitn"), RichLabels("en", "happy", "speech", True)),
        (("yue", "EMO_UNKNOWN", "Laughter", "woitn"), RichLabels("yue", None, "laughter", False)),
        (("nospeech", "NEUTRAL", "Event_UNK", "withitn"), RichLabels(None, "neutral", None, True)),
    ],
)
def test_each_label_is_the_likeliest_of_its_kind(names, labels):
    assert LabelReader(TINY)(logits(*names))[0] == labels


def test_no_speech_is_the_share_of_its_label_at_the_language_position():
    rows = logits("nospeech", "HAPPY", "Speech", "woitn", strength=12.0)
    _, silent = LabelReader(TINY)(rows)
    assert silent == pytest.approx(float(rows[0].softmax(-1)[IDS["<|nospeech|>"]]), rel=1e-6) and silent > 0.9
    _, spoken = LabelReader(TINY)(logits("en", "HAPPY", "Speech", "woitn", strength=12.0))
    assert spoken < 1e-4


def test_the_official_vocabulary_is_read_by_number_and_by_name():
    words = ["x"] * OFFICIAL_SIZE
    words[24993] = "<|Speech|>"
    words[24997] = "<|Laughter|>"
    words[25005] = "<|FEARFUL|>"
    read = LabelReader(Pieces(tuple(words)))
    numbers = {name: i for i, name in OFFICIAL_IDS.items()}
    rows = torch.zeros(4, OFFICIAL_SIZE)
    for row, token in zip(rows, (numbers["ja"], numbers["angry"], 24997, numbers["withitn"]), strict=True):
        row[token] = 9.0
    assert read(rows)[0] == RichLabels("ja", "angry", "laughter", True)
    rows[1, 25005] = 10.0
    assert read(rows.bfloat16())[0].emotion == "fearful"


def test_a_vocabulary_without_labels_says_nothing():
    labels, silent = LabelReader(Pieces(("<unk>", "a")))(torch.zeros(4, 2))
    assert labels == RichLabels() and silent == 0.0
