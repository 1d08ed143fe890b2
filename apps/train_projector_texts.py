"""What is said in the input projector's training: sentences and their phones.

Everything that needs the lexicon happens here, once, and goes into one file (`projector-texts.safetensors`), so that the training itself
does not need it. Sources: templates of what people say to an agent, the questions and texts of the voice's corpus, and, where they are
installed, WordNet's example sentences and definitions (`wordnet-base`) and the fortunes (`fortunes`), which know more words than templates
do. Numbers are written as they are said ("eighty five"): a projector hears words, it does not do sums.

    text, text_offsets            UTF-8, flat
    phones, phones_offsets        the voice joe's ids without pads; empty where it cannot say the sentence
    sounds                        [256] which of those ids are sounds, not stress, length, marks or spaces
    space                         the id that stands between words
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from apps import train_corpus_questions as corpus
from apps import train_projector_words as words
from decoders import numbers_en
from duplex.errors import WeightsError
from duplex.scenario_texts import choose, sentences

WORDNET = Path("/usr/share/wordnet")
FORTUNES = Path("/usr/share/games/fortunes")
FORTUNE_FILES = (
    "literature",
    "people",
    "wisdom",
    "work",
    "food",
    "education",
    "science",
    "politics",
    "sports",
    "travel",
    "love",
    "law",
    "computers",
    "cookie",
    "definitions",
    "drugs",
    "ethnic",
    "goedel",
    "humorists",
    "kids",
    "magic",
    "medicine",
    "men-women",
    "miscellaneous",
    "news",
    "pets",
    "platitudes",
    "riddles",
    "songs-poems",
    "startrek",
    "tao",
)


@dataclass(frozen=True, slots=True)
class Texts:
    """What there is to say, and what it should become."""

    texts: list[str]
    phones: list[NDArray[np.uint8]]
    """Per text, joe's phones; [0] where it cannot say it."""
    sounds: NDArray[np.bool_]
    """[256] which of joe's phones are sounds."""
    space: int
    """The phone between words."""

    def __len__(self) -> int:
        return len(self.texts)


def _split(text: str, mark: str = "/") -> list[str]:
    return [one for line in text.strip().split("\n") for one in line.split(mark)]


_WORDS = {
    "name": _split(words.NAMES),
    "place": _split(words.PLACES),
    "thing": _split(words.THINGS),
    "topic": _split(words.TOPICS),
    "act": _split(words.ACTS),
}


def templates(rng: np.random.Generator, count: int) -> Iterator[str]:
    """`count` sentences as people say them to an agent, some with a hesitation in front."""
    patterns = _split(words.TEMPLATES, "|")
    leads = _split(words.LEADS)
    floor = sentences("training")
    for _ in range(count):
        if rng.random() < 0.12:
            yield re.sub(r"\s*\|+\s*", " ", choose(floor[rng.integers(len(floor))], rng))
            continue
        text = patterns[rng.integers(len(patterns))]
        while (gap := re.search(r"\{(\w+)\}", text)) is not None:
            text = text[: gap.start()] + _filled(gap.group(1), rng) + text[gap.end() :]
        text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
        if rng.random() < 0.2:
            lead = leads[rng.integers(len(leads))]
            text = f"{lead} " + (text if re.match(r"(I\b|I'|[A-Z][a-z]+ (lives|and|wants))", text) else text[0].lower() + text[1:])
        yield text


def _filled(kind: str, rng: np.random.Generator) -> str:
    if kind == "n":
        return str(int(rng.integers(2, 13 if rng.random() < 0.4 else 100 if rng.random() < 0.8 else 1000)))
    if kind == "small":
        return str(int(rng.integers(2, 12)))
    if kind == "year":
        return str(int(rng.integers(1700, 2030)))
    if kind == "digits":
        return " ".join(numbers_en.digits("".join(str(rng.integers(10)) for _ in range(3 * int(rng.integers(1, 3))))))
    found = _WORDS[kind]
    return found[rng.integers(len(found))]


def wordnet(folder: Path) -> Iterator[str]:
    """WordNet's example sentences and definitions; nothing where it is not installed."""
    for file in sorted(folder.glob("data.*")):
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            gloss = line.partition(" | ")[2].strip()
            yield from re.findall(r'"([^"]{8,120})"', gloss)
            definition = re.sub(r"\([^)]*\)", "", gloss.split(";")[0]).strip()
            if '"' not in definition and 3 <= len(definition.split()) <= 16:
                yield definition


def fortunes(folder: Path) -> Iterator[str]:
    """Sentences of the fortunes; nothing where they are not installed."""
    for name in FORTUNE_FILES:
        file = folder / name
        if file.is_file():
            for one in re.split(r"\n%\n", file.read_text(encoding="utf-8", errors="replace")):
                body = re.sub(r"\s+", " ", re.split(r"\n\s*--", one)[0])
                yield from filter(None, re.split(r"(?<=[.!?])\s+", body.strip()))


def tidy(text: str) -> str | None:
    """As a transcript writes it: capital first, numbers in words, a final mark; None for what nobody says."""
    text = re.sub(r"\s+", " ", text.replace("`", "'").replace("--", ", ")).strip(" ,;:'\"")
    text = re.sub(r"(?<![\w.,'-])\d{1,4}(?![\w%'-]|[.,]\d)", lambda found: in_words(found.group()), text)
    if not re.fullmatch(r"[A-Za-z ,.?!'’-]+", text) or not 1 <= len(text.split()) <= 24 or re.search(r"\.\.|[A-Z]{2}", text):
        return None
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!" else text + "."


def in_words(number: str) -> str:
    """1984 as a year, 0 to 9999 otherwise as an amount; with a 0 in front digit by digit."""
    value = int(number)
    if number[0] == "0" and len(number) > 1:
        return " ".join(numbers_en.digits(number))
    return " ".join(numbers_en.year(value) if 1100 <= value < 2100 else numbers_en.cardinal(value))


def gather(count: int, seed: int, wordnet_folder: Path = WORDNET, fortunes_folder: Path = FORTUNES) -> list[str]:
    """Up to `count` different sentences, about half of them as people say them to an agent where the others suffice.

    Sentences of the shipped test speech are not among them.
    """
    rng = np.random.default_rng(seed)
    tested = corpus.shipped()

    def some(source: Iterable[str], most: int) -> list[str]:
        clean = list(dict.fromkeys(t for t in map(tidy, source) if t is not None and corpus.plain(t) not in tested))
        return [clean[i] for i in rng.permutation(len(clean))[:most]]

    quotes = some(fortunes(fortunes_folder), count // 8)
    examples = some(wordnet(wordnet_folder), count // 2 - len(quotes))
    asked = some((one.text for one in corpus.questions(count // 5, seed)), count // 5)
    read = some(corpus.texts(count // 20, seed), count // 20)
    said = some(templates(rng, 3 * count), count - sum(map(len, (quotes, examples, asked, read))))
    found = list(dict.fromkeys([*said, *asked, *read, *examples, *quotes]))
    return [found[i] for i in rng.permutation(len(found))]


def prepare(texts: list[str], split: Path, voice_config: Path, file: Path, tell: Callable[[str], None]) -> None:
    """`texts` and their phones into `file`. Raises WeightsError."""
    from decoders.bridge_voice import BridgeVoice

    voice = BridgeVoice.load(split, voice_config, lambda ids: "")
    phones = []
    for index, text in enumerate(texts):
        phones.append(np.array(speakable(voice, text), np.uint8))
        if index % 5000 == 4999:
            tell(f"{index + 1} of {len(texts)} sentences")
    flat = {
        **_flat("text", [np.frombuffer(text.encode(), np.uint8) for text in texts]),
        **_flat("phones", phones),
        "sounds": torch.from_numpy(sounds(voice.table.ids)),
        "space": torch.tensor(voice.table.ids[" "][0]),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in flat.items()}, part)
    part.replace(file)


def sounds(ids: Mapping[str, Sequence[int]]) -> NDArray[np.bool_]:
    """The voice's table of phones -> [256] which ids are letters of the phonetic alphabet, not stress, length, marks or spaces."""
    found = np.zeros(256, bool)
    for symbol, codes in ids.items():
        if len(symbol) == 1 and unicodedata.category(symbol) in ("Ll", "Lu", "Lo"):
            found[list(codes)] = True
    return found


def speakable(voice: Any, text: str) -> list[int]:
    """joe's phones of a text without pads; [] where it has nothing to say."""
    from decoders.normalize import Reader, normalize

    pieces = [piece for piece in normalize(text, Reader()) if piece.words]
    spoken = [word for piece in pieces for word in piece.words]
    if not spoken:
        return []
    marks = [mark for piece in pieces for mark in [*([""] * (len(piece.words) - 1)), piece.mark]]
    ids = voice.table.encode(voice.phonemize(spoken), marks).ids
    return [ids[0], *ids[2:-1:2], ids[-1]]  # ^ _ p _ p _ $


def load(file: Path) -> Texts:
    """What `prepare` wrote. Raises WeightsError."""
    try:
        kept = load_file(file)
    except Exception as error:
        raise WeightsError(
            f"{file} holds no texts for the projector's training ({error}); run `duologue train projector --pack`."
        ) from error
    if "space" not in kept:
        raise WeightsError(f"{file} is of an older version; delete it and run `duologue train projector --pack` again.")
    texts = [bytes(one).decode() for one in _ragged(kept, "text")]
    return Texts(texts, _ragged(kept, "phones"), kept["sounds"].numpy(), int(kept["space"]))


def _flat(name: str, rows: Sequence[NDArray[Any]]) -> dict[str, Tensor]:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return {name: torch.from_numpy(np.concatenate(rows).copy()), f"{name}_offsets": torch.from_numpy(offsets)}


def _ragged(kept: dict[str, Tensor], name: str) -> list[NDArray[Any]]:
    flat, offsets = kept[name].numpy(), kept[f"{name}_offsets"].numpy()
    return [flat[a:b] for a, b in pairwise(offsets)]
