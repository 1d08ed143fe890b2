"""Tokens to text: the pieces join to the whole, and no half character is ever released."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from decoders.text_stream import TextStream, finish, push


def detokenize(tokens: object) -> str:
    """One byte a token: the hardest case."""
    return bytes(tokens).decode("utf-8", errors="replace")  # type: ignore[call-overload]


@given(st.text(max_size=60), st.integers(1, 7))
def test_pieces_join_to_the_text_and_hold_back_half_characters(text: str, size: int) -> None:
    tokens, stream, pieces = list(text.encode()), TextStream(), []
    for at in range(0, len(tokens), size):
        pieces.append(push(stream, tokens[at : at + size], detokenize))
        assert text.startswith("".join(pieces))
    assert "".join(pieces) + finish(stream, detokenize) == text


@given(st.lists(st.integers(0, 255), max_size=60))
def test_broken_bytes_pass_and_the_window_stays_short(tokens: list[int]) -> None:
    stream = TextStream()
    for token in tokens:
        push(stream, [token], detokenize)
        assert len(stream.tokens) <= 10
    finish(stream, detokenize)


def test_cut_off_character_comes_at_the_end() -> None:
    stream = TextStream()
    assert push(stream, list("aé".encode())[:2], detokenize) == "a"
    assert finish(stream, detokenize) == "\ufffd"
