"""Reading token ids."""

import base64

import pytest

from duplex.errors import WeightsError
from encoders import vocabulary


def test_text_joins_bytes_across_tokens_and_skips_specials():
    words = vocabulary.bytewise()
    assert words.text([words.start, *"né".encode(), words.end]) == "né"
    assert words.text("é".encode()[:1]) == "�"


def test_english_lays_out_openais_special_ids(tmp_path):
    path = tmp_path / "gpt2.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(b" " if i == 220 else b"w%d" % i) + b" %d\n" % i for i in range(50_256)))
    words = vocabulary.english(path)
    assert (words.end, words.start, words.no_speech, words.no_timestamps, words.size) == (50256, 50257, 50361, 50362, 51864)
    assert words.blank == (220, 50256)
    assert words.end not in words.suppressed and {1, 50257, 50361, 51863} <= set(words.suppressed)
    assert words.text([0, 220, 3]) == "w0 w3"


@pytest.mark.parametrize("content", [b"", b"IQ== 0\n", b"IQ== 1\n", b"not base64! 0\n", b"\xff\xfe\x00", b"IQ==\n"])
def test_a_damaged_file_is_a_weights_error(tmp_path, content):
    path = tmp_path / "gpt2.tiktoken"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="fetch the weights again"):
        vocabulary.english(path)


def test_a_missing_file_is_a_weights_error(tmp_path):
    with pytest.raises(WeightsError):
        vocabulary.english(tmp_path / "none")
