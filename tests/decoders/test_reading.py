"""Reading a reply word by word: nothing lost, nothing said otherwise than at once, every word as early as it is certain."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.vocabulary import ByteVocabulary
from decoders.normalize import Reader, normalize
from decoders.phonemes import BEGIN, END, SPACE, Lexicon, PhonemeTable
from decoders.reading import Piece, TextReader
from decoders.tiny_voice import tiny_phonemes, tiny_table

BYTES = ByteVocabulary()
TABLE = PhonemeTable(tiny_table())
READER = TextReader(tiny_phonemes, TABLE, BYTES.decode)
LEXICON = Lexicon()
IPA = PhonemeTable({symbol: [index] for index, symbol in enumerate("_^$ !'(),-.:;?abcdefhijklmnopstuvwzæðŋɑɐɔəɚɛɜɡɪɹɾʃʊʌʒˈˌːθᵻ")})
SENTENCES = [
    "The capital of France is Paris.",
    "Yes, the apple is on the table, and it is red.",
    "Dr. Smith paid $5 million for 20 km of road in May 1999.",
    "World War II ended in 1945.",
    "I have read it to all of them; read it again.",
    "It takes 5 minutes at 350 degrees, or until 3 p.m. on May 5.",
    "Call 555-123-4567 and ask for the other one!",
    "Is 3.14 the answer to everything?",
    "She said that the U.S. has 50 states (really).",
    "The temperature is -5°C, about 1 1/2 times colder.",
    "J. K. Rowling lives at No. 5 St. James St. in the city.",
    "10 - 5 = 5, and 2 + 2 = 4.",
    "NASA and the FBI are well-known; www.example.com is not.",
    "It costs between 10 and 20 dollars, e.g. for a cat or a dog.",
    "The 1990s were fun: the 21st of June, 10% off, and so on.",
]
# A bit of everything that is written: the parts of which texts are put together.
PARTS_TEXT = """
    The the cat it to eat egg 5 20 km May 1999 , . ! ? ... — - ( ) " ' * ** # 1. ` ``` $5 million % Dr. Smith U.S. p.m. NASA USA
    http://a.b/c x@y.com é 你好 😀 1/2 + = w/o No. sq ft < > a
"""
PARTS = st.sampled_from([*PARTS_TEXT.split(), "\n"])
TEXTS = st.lists(st.tuples(PARTS, st.sampled_from(["", " ", " ", " "])), max_size=24).map(
    lambda pairs: "".join(word + gap for word, gap in pairs)
)


def grouped(reader: TextReader, tokens: list[int], cuts: list[int]) -> list[Piece]:
    state = reader.open()
    pieces = []
    at = 0
    for size in cuts:
        pieces += reader.push(state, tokens[at : at + size])
        at += size
    return [*pieces, *reader.push(state, tokens[at:]), *reader.finish(state)]


@settings(max_examples=150, deadline=None)
@given(TEXTS | st.text(max_size=60), st.lists(st.integers(1, 9), max_size=12))
def test_any_grouping_gives_the_same_pieces_and_loses_nothing(text: str, cuts: list[int]) -> None:
    text = text.encode("utf-8", errors="ignore").decode()
    tokens = BYTES.encode(text)
    pieces = grouped(READER, tokens, cuts)
    assert pieces == grouped(READER, tokens, [])
    assert "".join(piece.source for piece in pieces) == text
    places = [piece.tokens for piece in pieces]
    assert places == sorted(places)
    assert all(1 <= place <= max(len(tokens), 1) for place in places)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_what_follows_never_changes_what_was_given_out(text: str) -> None:
    whole = READER.read(BYTES.encode(text)).pieces
    state = READER.open()
    early = READER.push(state, BYTES.encode(text[: len(text) // 2]))
    assert tuple(early) == whole[: len(early)]


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_phones_are_laid_out_in_sentences(text: str) -> None:
    begin, end, space = (TABLE.phones(symbol)[0] for symbol in (BEGIN, END, SPACE))
    phones = list(READER.read(BYTES.encode(text)).phones)
    inside = False
    for index, phone in enumerate(phones):
        assert (phone == begin) == (not inside), index
        inside = phone != end
        assert phone != space or phones[index - 1] not in (begin, space, end)
    assert not inside


@pytest.mark.parametrize("text", SENTENCES)
def test_a_sentence_sounds_as_if_it_had_been_read_at_once(text: str) -> None:
    reader = TextReader(LEXICON, IPA, BYTES.decode)
    expected: list[int] = []
    run: list[str] = []
    whole = normalize(text, Reader())
    for piece in whole:
        run += piece.words
        if piece.mark or piece is whole[-1]:
            words = LEXICON(run)
            expected += [phone for word in words for phone in [*IPA.phones(SPACE), *IPA.phones(word)]]
            expected += IPA.phones(piece.mark)
            run = []
    expected = [*IPA.phones(BEGIN), *expected[1:], *IPA.phones(END)]
    assert reader.read(BYTES.encode(text)).phones.tolist() == expected


@pytest.mark.parametrize(
    ("given_so_far", "said"),
    [
        ("The cat", ""),
        ("The cat s", "The cat "),
        ("Paris, F", "Paris, "),
        ("It is 5", "It is "),
        ("It is 5 m", "It is "),
        ("It is 5 cats", "It is 5 "),
        ("It is 5 men", "It is 5 "),
        ("Ask Dr.", "Ask "),
        ("Ask Dr. Who n", "Ask Dr. Who "),
        ("Go to", "Go "),
        ("Go to it n", "Go to "),
        ("It was May 1", "It was "),
        ("It was May o", "It was May "),
        ("Wow! Y", "Wow! "),
        ("one — two", "one — "),
        ("a + b", ""),
    ],
)
def test_a_word_is_given_out_as_soon_as_it_is_certain(given_so_far: str, said: str) -> None:
    reader = TextReader(LEXICON, IPA, BYTES.decode)
    pieces = reader.push(reader.open(), BYTES.encode(given_so_far))
    assert "".join(piece.source for piece in pieces) == said


def test_the_token_of_a_phone_is_the_one_that_made_it_certain() -> None:
    reading = READER.read(BYTES.encode("Hi you"))  # "Hi" is certain with "y", the seventh byte never comes
    assert [(piece.source, piece.tokens) for piece in reading.pieces] == [("Hi ", 4), ("you", 6)]
    assert reading.phone_token.tolist() == [3] * len(reading.pieces[0].phones) + [5] * len(reading.pieces[1].phones)


def test_a_sentence_without_end_is_ended() -> None:
    begin, end = TABLE.phones(BEGIN)[0], TABLE.phones(END)[0]
    reading = TextReader(tiny_phonemes, TABLE, BYTES.decode, most_phones=60).read(BYTES.encode("and so " * 100))
    phones = reading.phones.tolist()
    assert phones.count(begin) == phones.count(end) > 3
    longest = max(b - a for a, b in zip([-1, *_places(phones, end)], _places(phones, end), strict=False))
    assert longest <= 60 + 10


def _places(phones: list[int], phone: int) -> list[int]:
    return [index for index, other in enumerate(phones) if other == phone]


def test_nothing_said_gives_nothing() -> None:
    assert READER.read([]).pieces == ()
    reading = READER.read(BYTES.encode("😀\n"))
    assert "".join(piece.source for piece in reading.pieces) == "😀\n"
    assert not len(reading.phones)


def test_a_limit_that_holds_no_sentence_is_refused() -> None:
    with pytest.raises(ValueError, match="30 or more"):
        TextReader(tiny_phonemes, TABLE, BYTES.decode, most_phones=5)
