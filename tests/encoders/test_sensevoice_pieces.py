"""Ids into text as SentencePiece does it, labels left out."""

import io

import pytest
import sentencepiece

from duplex.errors import WeightsError
from encoders.sensevoice_pieces import Pieces, joined, read_pieces, tiny_pieces
from tests.encoders.sensevoice_folder import SENTENCES, sentencepiece_model


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())


@pytest.fixture
def pieces(tmp_path) -> Pieces:
    path = tmp_path / "pieces.model"
    path.write_bytes(sentencepiece_model())
    return read_pieces(path)


@pytest.mark.parametrize("sentence", [*SENTENCES, "  good   day "])
def test_text_is_what_sentencepiece_makes_of_it(pieces, processor, sentence):
    ids = [i for i in processor.encode(sentence) if i != processor.unk_id()]
    assert pieces.text(ids).strip() == processor.decode(ids) != ""


def test_byte_pieces_become_characters():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=model, model_type="bpe", vocab_size=360, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = Pieces(tuple(processor.id_to_piece(i) for i in range(processor.vocab_size())))
    ids = processor.encode("how ñ 猫 are")
    assert pieces.text(ids).strip() == processor.decode(ids) == "how ñ 猫 are"


def test_labels_are_named_and_never_text(pieces):
    ids = {piece: i for i, piece in enumerate(pieces.pieces)}
    assert [pieces.label(ids[x]) for x in ("<|zh|>", "<|HAPPY|>", "</|Speech|>", "<s>", "<unk>")] == [
        "zh",
        "HAPPY",
        None,
        None,
        None,
    ]
    words = [i for i, piece in enumerate(pieces.pieces) if piece in ("▁how", "▁good")]
    assert len(words) == 2
    marked = [ids["<|en|>"], words[0], ids["</|Speech|>"], ids["<s>"], words[1], ids["<unk>"], ids["<|BGM|>"]]
    assert pieces.text(marked) == pieces.text(words)
    assert pieces.text([]) == ""


def test_a_leading_space_is_kept_for_the_caller():
    letters = tiny_pieces()
    ids = {piece: i for i, piece in enumerate(letters.pieces)}
    assert letters.text([ids["▁a"], ids["b"], ids["▁c"]]) == " ab c"
    with pytest.raises(IndexError):
        letters.text([letters.size])


@pytest.mark.parametrize(
    ("before", "after", "whole"),
    [
        ("How are", "you?", "How are you?"),
        ("开饭时间。", " 早上九点", "开饭时间。早上九点"),
        ("今天", "天气", "今天天气"),
        ("안녕", "하세요", "안녕 하세요"),
        ("", " and", "and"),
        ("and ", "", "and"),
    ],
)
def test_stretches_are_joined_as_their_script_asks(before, after, whole):
    assert joined(before, after) == whole


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "rubbish").write_bytes(b"not a model" * 9)
    (tmp_path / "cut").write_bytes(sentencepiece_model()[:500])
    for name in ("rubbish", "cut", "missing"):
        with pytest.raises(WeightsError, match="no SentencePiece model") as caught:
            read_pieces(tmp_path / name)
        assert "\n" not in str(caught.value)
