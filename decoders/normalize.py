"""Written English to spoken words, with every character of the source accounted for.

A reply of a language model is full of things that are not said as written: markdown, code fences, emoji, figures, symbols.
`normalize` turns a clause into pieces: a span of the source, the words said for it, and the punctuation that shapes the voice after
it. The sources, joined, are the clause. Any text passes; what has no reading is silent.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from decoders.numbers_en import cardinal, ordinal
from decoders.readings import RULES as FIGURES
from decoders.spelling import ABBREVIATIONS, address, letters, word


@dataclass(frozen=True, slots=True)
class Spoken:
    """A span of the source and how it is said."""

    source: str
    words: tuple[str, ...]
    """Each lower-case letters and apostrophes, or a capital letter said by its name (with an optional "'s")."""
    mark: str = ""
    """The punctuation after it that the voice should hear: one of , ; : . ? ! or none."""


@dataclass(slots=True)
class Reader:
    """What must be remembered from clause to clause of one response."""

    fenced: bool = False
    """Inside a code fence, where nothing is read."""
    line_start: bool = True
    """The next clause begins at the start of a line."""
    previous: str = ""
    """The last word said."""


_STRENGTH = {"": 0, ",": 1, ";": 2, ":": 2, ".": 3, "!": 4, "?": 4}
_TOP_DOMAINS = "com|org|net|io|edu|gov|co|uk|de|fr|eu|ai|dev|app|info|tv|me|ca|au|us"
_FENCE = re.compile(r"(?:```|~~~)[^\n`]*")
_LINE = re.compile(
    r"[ \t]*(?:(?P<fence>(?:```|~~~)[^\n]*)|(?P<rule>(?:[-*_=][ \t]*){3,}(?=\n|$))|(?P<table>\|?[ \t]*:?-{2,}[-:| \t]*(?=\n|$))"
    r"|(?P<heading>#{1,6}[ \t]+)|(?P<bullet>[-*+•‣◦·][ \t]+(?:\[[ xX]\][ \t]+)?)|(?P<quote>(?:>[ \t]?)+)"
    r"|(?P<item>[0-9]{1,3})(?P<stop>[.)])(?=\s))"
)
_SILENT = re.compile(
    r"[^\S\n]+|\]\([^()\s]*(?:\([^()\s]*\)[^()\s]*)*(?:\s+\"[^\"]*\")?\)|!(?=\[)|</?[A-Za-z][^<>\n]*>|\(\)|\\(?=[^\w\s])"
)
_ADDRESS = re.compile(
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?:https?|ftp)://[^\s<>()\[\]\"'`*]+|www\.[^\s<>()\[\]\"'`*]+"
    rf"|(?<![\w.@])(?:[A-Za-z0-9-]+\.)+(?:{_TOP_DOMAINS})(?:/[^\s<>()\[\]\"'`*]*)?(?![\w@])",
    re.ASCII,
)
_INITIALS = re.compile(r"(?:[A-Za-z]\.){2,}(?:[A-Z](?!\w))?|[A-Z]\.(?=\s+[A-Z])")
_SHORT = re.compile(r"(?P<short>[eE]\.g|[iI]\.e|[Pp]h\.[Dd]|[A-Za-z]{2,6})\.")
_NUMBER_SIGN = re.compile(r"(?:No|Nos|no)\.(?=\s?[0-9])|#(?=[0-9])|№")
_SHARP = re.compile(r"(?<!\w)[A-G]#(?!\w)")
_WITH = re.compile(r"w/o(?!\w)|w/(?=[\s\w])")
_WORD = re.compile(r"[^\W\d_]+(?:['’ʼ][^\W\d_]+)*")
_ROMAN = re.compile(r"(?P<roman>[IVX]{1,6})(?![\w'’]|\.\w)")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#[0-9]{1,5});")
_STOPS = re.compile(r"[.!?…。！？]+")
_SOFT = re.compile(r"[,;:，；：、]")
_DASH = re.compile(r"[—–―]+|--+|-(?=\s)")

_COUNTED_TEXT = "war chapter part act volume section phase bowl fantasy type level stage book appendix title figure table article"
_RULERS_TEXT = """
    king queen pope louis henry elizabeth charles george edward james william richard john paul pius benedict philip frederick
    napoleon catherine peter nicholas alexander francis leo gregory innocent ivan ramses mary robert wilhelm
"""
_COUNTED, _RULERS = frozenset(_COUNTED_TEXT.split()), frozenset(_RULERS_TEXT.split())
_SYMBOLS = {
    "&": "and", "@": "at", "%": "percent", "°": "degrees", "×": "times", "÷": "divided by", "≤": "less than or equal to",
    "≥": "greater than or equal to", "≈": "approximately", "≠": "not equal to", "±": "plus or minus", "√": "square root of",
    "∞": "infinity", "=": "equals", "²": "squared", "³": "cubed", "€": "euros", "£": "pounds", "$": "dollars", "¥": "yen",
    "∑": "sum", "§": "section", "¢": "cents", "≡": "equals", "∈": "in", "∆": "delta", "→": "to", "−": "minus",
}  # fmt: skip
# Symbols that are read only between the right neighbours: (before, after, words)
_PLACED = {
    "+": (r"[\w)+]\s*$", r"\s*[\w(+]|$", "plus"),
    "*": (r"[0-9)]\s*$", r"\s*[0-9(]", "times"),
    "-": (r"[0-9)]\s$", r"\s[0-9(]", "minus"),
    "/": (r"[0-9)]\s$", r"\s[0-9(]", "divided by"),
    "<": (r"[\w)]\s*$", r"=?\s*[\w(-]", "less than"),
    ">": (r"[\w)]\s*$", r"=?\s*[\w(-]", "greater than"),
    "^": (r"[\w)]$", r"[\w(]", "to the power of"),
    "~": (r"(?:^|\s)$", r"[0-9]", "about"),
}


def normalize(text: str, reader: Reader) -> list[Spoken]:
    """The pieces of a clause, at least one if it has any character. Updates `reader`."""
    pieces: list[Spoken] = []
    before = ""  # silent source before the first words
    shouting = not any(c.islower() for c in text) and sum(c.isupper() for c in text) > 8 and " " in text.strip()
    at = 0
    while at < len(text):
        end, words, mark = _next(text, at, reader, shouting=shouting)
        assert end > at
        source = text[at:end]
        reader.line_start = source.endswith("\n") or (reader.line_start and not source.strip())
        if words:
            pieces.append(Spoken(before + source, tuple(words), mark))
            reader.previous, before = words[-1].lower(), ""
        elif pieces:
            last = pieces[-1]
            if mark == "\n":
                mark = "." if not last.mark else ""
            stronger = mark if _STRENGTH[mark] > _STRENGTH[last.mark] else last.mark
            pieces[-1] = Spoken(last.source + source, last.words, stronger)
        else:
            before += source
        at = end
    if before:
        pieces.append(Spoken(before, ()))
    return pieces


def _next(text: str, at: int, reader: Reader, *, shouting: bool) -> tuple[int, list[str], str]:
    """What stands at `at`: its end, its words, its mark ("\\n" for a line's end)."""
    if reader.fenced:
        fence = re.compile(r"```|~~~").search(text, at)
        reader.fenced = fence is None
        return (fence.end() if fence else len(text)), [], ""
    if reader.line_start and (match := _LINE.match(text, at)):
        if match["item"]:
            return match.end(), cardinal(int(match["item"])), ","
        reader.fenced = match["fence"] is not None
        reader.line_start = False
        return match.end(), [], ""
    if match := _FENCE.match(text, at):
        reader.fenced = True
        return match.end(), [], ""
    character = text[at]
    if character == "\n":
        return at + 1, [], "\n"
    if match := _SILENT.match(text, at):
        return match.end(), [], ""
    if match := _ADDRESS.match(text, at):
        written = match.group().rstrip(".,;:!?")
        if words := address(written):
            return at + len(written), words, ""
    if match := _ENTITY.match(text, at):
        return match.end(), _SYMBOLS.get(html.unescape(match.group()), "").split(), ""
    if match := _SHARP.match(text, at):
        return match.end(), [match.group()[0], "sharp"], ""
    if match := _NUMBER_SIGN.match(text, at):
        return match.end(), ["number"], ""
    for pattern, reading in FIGURES:
        if (match := pattern.match(text, at)) and (read := reading(match)):
            return match.end(), read, _final_point(text, match)
    if character.isalpha():
        return _letters(text, at, reader, shouting=shouting)
    return _symbol(text, at)


def _letters(text: str, at: int, reader: Reader, *, shouting: bool) -> tuple[int, list[str], str]:
    inside = at > 0 and (text[at - 1].isalnum() or text[at - 1] == "_")
    if not inside:
        if match := _WITH.match(text, at):
            return match.end(), ["without" if "o" in match.group() else "with"], ""
        if match := _SHORT.match(text, at):
            short = match["short"].lower()
            capital = re.compile(r"\s+[A-Z]").match(text, match.end())
            if short == "st":
                return match.end(), ["saint" if capital and reader.previous != "street" else "street"], _final_point(text, match)
            known = ABBREVIATIONS.get(short)
            if known and not (short in ("min", "max", "co", "al", "est", "gen", "rep") and not text[match.end() :].strip()):
                return match.end(), known, _final_point(text, match)
        if match := _INITIALS.match(text, at):
            return match.end(), letters(match.group()), _final_point(text, match)
        if (match := _ROMAN.match(text, at)) and (value := _roman(match["roman"])):
            if reader.previous in _COUNTED:
                return match.end(), cardinal(value), ""
            if reader.previous in _RULERS and match["roman"] != "I":
                return match.end(), ["the", *ordinal(value)], ""
    match = _WORD.match(text, at)
    if match is None:
        return at + 1, [], ""
    alone = not inside and not text[match.end() : match.end() + 1].isdigit() and not text.startswith(("-", "+", "#"), match.end())
    return match.end(), word(match.group(), reader.previous, shouting=shouting, alone=alone), ""


def _symbol(text: str, at: int) -> tuple[int, list[str], str]:
    character = text[at]
    if match := _STOPS.match(text, at):
        run = match.group()
        if match.end() < len(text) and text[match.end()].isalnum() and run == ".":
            inside = at > 0 and text[at - 1].isalnum()
            return match.end(), ["dot"] if inside else [], ""  # node.js, README.md
        return match.end(), [], "?" if set(run) & set("?？") else "!" if set(run) & set("!！") else "."
    if _SOFT.match(text, at):
        return at + 1, [], {"；": ";", "：": ":"}.get(character, character if character in ",;:" else ",")
    if character in _PLACED:
        preceding, following, name = _PLACED[character]
        if re.search(preceding, text[:at]) and re.compile(following).match(text, at + 1):
            equal = character in "<>" and text.startswith("=", at + 1)
            return at + 1 + equal, [*name.split(), *(["or", "equal", "to"] if equal else [])], ""
    if match := _DASH.match(text, at):
        return match.end(), [], ","
    if character in "()|[]{}":
        return at + 1, [], "," if character in "()|" else ""
    if character in _SYMBOLS:
        end = at + len(text[at:]) - len(text[at:].lstrip(character))
        return end, _SYMBOLS[character].split(), ""
    digit = _digit(character)
    return at + 1, cardinal(digit) if digit is not None else [], ""


def _final_point(text: str, match: re.Match[str]) -> str:
    """The point of a final abbreviation also ends the clause."""
    return "." if match.group().endswith(".") and not text[match.end() :].strip(" \"'”’)*_") else ""


def _roman(text: str) -> int | None:
    """I to XXXIX, or None when the letters are no numeral."""
    match = re.fullmatch(r"(X{0,3})(IX|IV|V?I{0,3})", text)
    if match is None or not text:
        return None
    ones = {"": 0, "I": 1, "II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9}
    return 10 * len(match[1]) + ones[match[2]]


def _digit(character: str) -> int | None:
    """A digit of another script."""
    return int(character) if character.isdecimal() else None
