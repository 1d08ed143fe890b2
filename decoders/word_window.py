"""How much of a text that is still being written can already be read aloud: the smallest beginning that no rule joins with the rest.

`normalize` reads whole pieces of text. A plain word is certain as soon as the next one begins, but "5" may become "5 km", "Dr." wants
its name, "May" its day and "NASA" the rest of a shouted line. `cut` finds the first place where what stands before it, read alone,
is read as it would be within the whole; it says that it must wait while the characters that decide are not there yet.
"""

from __future__ import annotations

import re

from decoders.clauses import ends_sentence

LONGEST_WINDOW = 240
"""Characters after which the text is cut whatever it says, so that no input can grow the window."""

_GAP = re.compile(r"\s+|(?<=[^\W\d_])[—―]+(?=[^\W\d_])")
_ALNUM = re.compile(r"[^\W_]")
_CHUNK = re.compile(r"[^\s—―]+$")
_LEAD = re.compile(r"(?:[^\w\s]|_)*")
_NEUTRAL = frozenset("\"“”‘’'*_`")
_BRACKETS = "([{|"
_BEFORE_FIGURE = frozenset("$€£¥₹#-−~.+'’(")
_STOPS = re.compile(r"(?P<end>[.!?…]+)[\"'”’»)\]}*_`]*$")
_SOFT = re.compile(r"[,;:][\"'”’»)\]}*_`]*$")
_FIGURE = re.compile(r"[0-9][)’'′\"″°%]*$")
_CAPITALS = re.compile(r"\W*[A-Z][A-Z0-9'’]+\W*$")
_WORD = re.compile(r"[^\s,;:!?)\]\"“”*_`—―]+")
_OPERATORS_TEXT = "+ * / < > = ^ × ÷ ~ & ± ≤ ≥ ≈ ≠ → $ € £ # @ w/ w/o"
_OPERATORS = frozenset(_OPERATORS_TEXT.split())
_OPEN_TAG = re.compile(r"</?[A-Za-z][^<>\n]*$")

_MONTHS_TEXT = """
    january february march april may june july august september october november december
    jan feb mar apr jun jul aug sep sept oct nov dec
"""
_MONTHS = frozenset(_MONTHS_TEXT.split())
# What may follow a figure and be read together with it: units, scales, halves of the clock; and months.
_AFTER_FIGURE_TEXT = """
    km/h kph mph m/s km km² cm mm nm m m² m³ cm³ mi ft yd kg mg g lbs lb oz ml mL l GB MB KB kB TB Mbps GHz MHz kHz Hz kWh kW MW W V
    ms sec s min mins hrs hr h dB kcal cal x k tsp tbsp sq pt thousand million billion trillion bn b t am pm a.m p.m a p
"""
_AFTER_FIGURE = frozenset(_AFTER_FIGURE_TEXT.lower().split()) | _MONTHS


def cut(text: str, *, line_start: bool) -> int | None:
    """How many characters of `text` can be read alone; None: wait for more. `line_start`: `text` begins a line.

    What remains begins with a word, a figure or their signs, or is empty after a line's end.
    """
    start = _ALNUM.search(text)
    if start is None:
        return LONGEST_WINDOW if len(text) > LONGEST_WINDOW else None
    for gap in _GAP.finditer(text, start.start()):
        line = text.rfind("\n", gap.start(), gap.end())
        if line >= 0:
            return line + 1
        if gap.end() == len(text):
            break
        place = _place(text, gap, line_start=line_start)
        if place is None:
            break
        if place:
            return place
    return _forced(text) if len(text) > LONGEST_WINDOW else None


def _forced(text: str) -> int:
    gaps = [gap.end() for gap in re.finditer(r"\s+", text[:LONGEST_WINDOW])]
    return gaps[-1] if gaps and _ALNUM.search(text[: gaps[-1]]) else LONGEST_WINDOW


def _place(text: str, gap: re.Match[str], *, line_start: bool) -> int | None:
    """Where to cut at this gap; 0: not here; None: not known yet."""
    lead = _LEAD.match(text, gap.end())
    assert lead is not None
    rest, signs = text[lead.end() :], lead.group()
    if not rest:
        return None
    if rest[0].isspace():
        return 0  # signs alone: a dash, an operator, an emoji
    place = _after_signs(gap.end(), signs, rest)
    if not place:
        return 0
    found = _CHUNK.search(text, 0, gap.start())
    before = found.group() if found else ""
    if found is None or not before:
        return place
    if before in _OPERATORS or (before in ("-", "–", "−") and re.search(r"[0-9)]\s+$", text[: found.start()])):
        return 0
    if stops := _STOPS.search(text, found.start(), gap.start()):
        verdict = ends_sentence(text, stops, line_start=line_start, final=False)
        return place if verdict else 0 if verdict is not None else None
    if _SOFT.search(before):
        return place
    following = _WORD.match(rest)
    word = following.group() if following else ""
    complete = following is None or following.end() < len(rest)
    joined = _joined(before, word, complete=complete) if not signs or signs[-1] not in _NEUTRAL else False
    if joined is None:
        return None
    if joined or _OPEN_TAG.search(text, 0, gap.start()):
        return 0
    return place


def _after_signs(at: int, signs: str, rest: str) -> int:
    """Where what comes next begins, given the signs before its first letter or digit; 0: it begins with an operator."""
    bracket = max(signs.rfind(bracket) for bracket in _BRACKETS) + 1  # its pause belongs to what was before
    signs, at = signs[bracket:], at + bracket
    if set(signs) <= _NEUTRAL:
        return at
    return at if rest[0].isdigit() and set(signs) <= _BEFORE_FIGURE | _NEUTRAL else 0


def _joined(before: str, word: str, *, complete: bool) -> bool | None:
    """Whether the chunk `before` is read together with the `word` after it; None while that word may grow and it matters."""
    plain = word.lower().rstrip(".")
    if _FIGURE.search(before):
        if not word or word[0].isdigit() or not word[0].isascii():
            return True
        if complete:
            return plain in _AFTER_FIGURE
        return None if any(unit.startswith(plain) for unit in _AFTER_FIGURE) else False
    if before.lower() == "sq":
        return True
    if before.lower() in _MONTHS and word[:1].isdigit():
        return None if not complete else len(re.match(r"[0-9]*", word)[0]) <= 2  # type: ignore[index]
    if _CAPITALS.match(before) and word[:1].isupper():
        if any(letter.islower() for letter in word):
            return False
        return None if not complete else len(word) > 1
    return False
