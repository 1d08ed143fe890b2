"""English number words.

Everything that a reply may write in digits, said the American way: 1,234 "one thousand two hundred thirty four", 1969 "nineteen
sixty nine", 3.05 "three point zero five". All functions return lists of lower-case words.
"""

from __future__ import annotations

_ONES_TEXT = """
    zero one two three four five six seven eight nine ten
    eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
"""
_TENS_TEXT = "- - twenty thirty forty fifty sixty seventy eighty ninety"
_SCALES_TEXT = "- thousand million billion trillion quadrillion quintillion sextillion septillion octillion nonillion decillion"
_ONES, _TENS, _SCALES = _ONES_TEXT.split(), _TENS_TEXT.split(), _SCALES_TEXT.split()
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
LONGEST = 36  # digits that still have a name; longer numbers are read digit by digit


def digits(text: str) -> list[str]:
    """Each digit by itself; other characters are skipped."""
    return [_ONES[int(character)] for character in text if character in "0123456789"]


def cardinal(value: int) -> list[str]:
    """0 up to 36 digits; a longer number is read digit by digit."""
    if value < 0:
        return ["minus", *cardinal(-value)]
    if value >= 10**LONGEST:
        return digits(str(value))
    if value < 1000:
        return _below_thousand(value)
    words: list[str] = []
    for power in range(len(_SCALES) - 1, -1, -1):
        part = value // 1000**power % 1000
        if part:
            words += _below_thousand(part)
            if power:
                words.append(_SCALES[power])
    return words


def ordinal(value: int) -> list[str]:
    """1 "first", 22 "twenty second"."""
    return to_ordinal(cardinal(value))


def to_ordinal(words: list[str]) -> list[str]:
    """A cardinal's words as those of the ordinal."""
    last = words[-1]
    if last in _ORDINALS:
        last = _ORDINALS[last]
    elif last.endswith("y"):
        last = last[:-1] + "ieth"
    else:
        last += "th"
    return [*words[:-1], last]


def decimal(whole: str, fraction: str) -> list[str]:
    """ "3", "14" -> three point one four."""
    return [*(cardinal(int(whole)) if whole else []), "point", *digits(fraction)]


def year(value: int) -> list[str]:
    """1100 to 2099 as years are said."""
    century, rest = divmod(value, 100)
    if value % 1000 < 10:  # 2000, 2007
        return cardinal(value)
    if rest == 0:
        return [*cardinal(century), "hundred"]
    if rest < 10:
        return [*cardinal(century), "oh", _ONES[rest]]
    return [*cardinal(century), *cardinal(rest)]


def plural(words: list[str]) -> list[str]:
    """Decades and the like: nineteen nineties, sixes."""
    last = words[-1]
    if last.endswith("y"):
        last = last[:-1] + "ies"
    else:
        last += "es" if last.endswith(("x", "s")) else "s"
    return [*words[:-1], last]


def fraction(top: int, bottom: int) -> list[str]:
    """3/4 "three quarters", 1/2 "one half", 5/8 "five eighths", 7/100 "seven over one hundred"."""
    names = {2: ["half"], 4: ["quarter"]}
    if bottom in names or 3 <= bottom <= 20:
        name = names.get(bottom) or ordinal(bottom)
        if top != 1:
            name = ["halves"] if bottom == 2 else [name[0] + "s"]
        return [*cardinal(top), *name]
    return [*cardinal(top), "over", *cardinal(bottom)]


def _below_thousand(value: int) -> list[str]:
    words = []
    if value >= 100:
        words += [_ONES[value // 100], "hundred"]
        value %= 100
        if value == 0:
            return words
    if value < 20:
        words.append(_ONES[value])
    else:
        words.append(_TENS[value // 10])
        if value % 10:
            words.append(_ONES[value % 10])
    return words
