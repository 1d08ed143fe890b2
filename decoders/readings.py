"""How figures are said: money, times, dates, units, ordinals, ranges, telephone numbers.

Each rule is a pattern and a reading of its match; a reading that returns None declines, and the next rule is tried. The order
matters: the specific stands before the general.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from decoders.numbers_en import cardinal, decimal, digits, fraction, ordinal, plural, to_ordinal, year

Reading = Callable[[re.Match[str]], list[str] | None]

_MONTHS_TEXT = "january february march april may june july august september october november december"
_MONTHS = _MONTHS_TEXT.split()
_MONTH = r"(?:Jan(?:uary|\.)?|Feb(?:ruary|\.)?|Mar(?:ch|\.)?|Apr(?:il|\.)?|May|June?\.?|July?\.?|Aug(?:ust|\.)?"
_MONTH += r"|Sept?(?:ember|\.)?|Oct(?:ober|\.)?|Nov(?:ember|\.)?|Dec(?:ember|\.)?)"
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = rf"{_WHOLE}(?:\.[0-9]+)?"
_SCALE = r"(?:thousand|million|billion|trillion)"
_MONEY = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}
_SHORT_SCALE = {"k": "thousand", "K": "thousand", "M": "million", "m": "million", "B": "billion", "bn": "billion", "T": "trillion"}

# unit: (one, many)
_UNITS = {
    "%": "percent|percent", "°C": "degree Celsius|degrees Celsius", "°F": "degree Fahrenheit|degrees Fahrenheit",
    "°": "degree|degrees", "km/h": "kilometer per hour|kilometers per hour", "kph": "kilometer per hour|kilometers per hour",
    "mph": "mile per hour|miles per hour", "m/s": "meter per second|meters per second",
    "km²": "square kilometer|square kilometers", "m²": "square meter|square meters", "m³": "cubic meter|cubic meters",
    "cm³": "cubic centimeter|cubic centimeters", "km": "kilometer|kilometers", "cm": "centimeter|centimeters",
    "mm": "millimeter|millimeters", "nm": "nanometer|nanometers", "m": "meter|meters", "mi": "mile|miles", "ft": "foot|feet",
    "yd": "yard|yards", "kg": "kilogram|kilograms", "mg": "milligram|milligrams", "g": "gram|grams", "lbs": "pound|pounds",
    "lb": "pound|pounds", "oz": "ounce|ounces", "ml": "milliliter|milliliters", "mL": "milliliter|milliliters",
    "L": "liter|liters", "l": "liter|liters", "GB": "gigabyte|gigabytes", "MB": "megabyte|megabytes",
    "KB": "kilobyte|kilobytes", "kB": "kilobyte|kilobytes", "TB": "terabyte|terabytes",
    "Mbps": "megabit per second|megabits per second", "GHz": "gigahertz|gigahertz", "MHz": "megahertz|megahertz",
    "kHz": "kilohertz|kilohertz", "Hz": "hertz|hertz", "kWh": "kilowatt hour|kilowatt hours", "kW": "kilowatt|kilowatts",
    "MW": "megawatt|megawatts", "W": "watt|watts", "V": "volt|volts", "ms": "millisecond|milliseconds", "sec": "second|seconds",
    "s": "second|seconds", "min": "minute|minutes", "mins": "minute|minutes", "hrs": "hour|hours", "hr": "hour|hours",
    "h": "hour|hours", "dB": "decibel|decibels", "kcal": "kilocalorie|kilocalories", "cal": "calorie|calories",
    "x": "times|times", "k": "thousand|thousand", "tsp": "teaspoon|teaspoons", "tbsp": "tablespoon|tablespoons",
    "sq ft": "square foot|square feet", "pt": "point|points",
}  # fmt: skip
_UNIT = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))


def number(text: str, *, years: bool = False) -> list[str]:
    """Figures with optional thousands commas and decimals; `years` reads 1969 as a year."""
    if "," in text:
        text, years = text.replace(",", ""), False
    whole, _, rest = text.partition(".")
    if rest:
        return decimal(whole, rest)
    if len(whole) > 1 and whole.startswith("0"):
        return digits(whole)
    value = int(whole)
    if years and len(whole) == 4 and 1100 <= value <= 2099:
        return year(value)
    return cardinal(value)


def _money(match: re.Match[str]) -> list[str] | None:
    one, many, cent, cents = _MONEY[match["sign"]]
    scale = match["scale"]
    minus = ["minus"] if match["minus"] else []
    if scale:
        return [*minus, *number(match["amount"]), _SHORT_SCALE.get(scale, scale.lower()), many]
    whole, _, rest = match["amount"].partition(".")
    if len(rest) not in (0, 2):
        return [*minus, *number(match["amount"]), many]
    said = [*minus, *number(whole), one if whole == "1" else many]
    if rest.strip("0"):
        small = [*cardinal(int(rest)), cent if int(rest) == 1 else cents]
        return small if whole.strip("0,") == "" else [*said, "and", *small]
    return said


def _clock(match: re.Match[str]) -> list[str] | None:
    hour, minute = int(match["hour"]), int(match["minute"] or 0)
    if hour > 24 or minute > 59:
        return None
    half = [match["half"].upper(), "M"] if match["half"] else []
    if minute:
        return [*cardinal(hour), *(["oh"] if minute < 10 else []), *cardinal(minute), *half]
    if half:
        return [*cardinal(hour), *half]
    return [*cardinal(hour), "o'clock"] if 1 <= hour <= 12 else [*cardinal(hour), "hundred"]


def _date(year_text: str, month: int, day: int) -> list[str] | None:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    value = int(year_text)
    said = year(value) if 1100 <= value <= 2099 else number(year_text)
    return [_MONTHS[month - 1], *ordinal(day), *said]


def _month_day(match: re.Match[str]) -> list[str] | None:
    day = int(match["day"])
    return [_month_name(match["month"]), *ordinal(day)] if 1 <= day <= 31 else None


def _day_month(match: re.Match[str]) -> list[str] | None:
    day = int(match["day"])
    return ["the", *ordinal(day), "of", _month_name(match["month"])] if 1 <= day <= 31 else None


def _month_name(written: str) -> str:
    return next(month for month in _MONTHS if month.startswith(written[:3].lower()))


def _unit(match: re.Match[str]) -> list[str] | None:
    one, many = _UNITS[match["unit"]].lower().split("|")
    said = [*(["minus"] if match["minus"] else []), *number(match["number"])]
    return [*said, *(one if match["number"] == "1" else many).split()]


def _range(match: re.Match[str]) -> list[str] | None:
    return [*number(match["low"], years=True), "to", *number(match["high"], years=True)]


def _mixed(match: re.Match[str]) -> list[str] | None:
    top, bottom = int(match["top"]), int(match["bottom"])
    if match["whole"]:
        part = fraction(top, bottom)
        return [*number(match["whole"]), "and", *(["a", *part[1:]] if top == 1 else part)]
    if (top, bottom) == (24, 7):
        return ["twenty", "four", "seven"]
    return fraction(top, bottom)


def _vulgar(match: re.Match[str]) -> list[str] | None:
    top, _, bottom = unicodedata.normalize("NFKD", match["vulgar"]).partition("\u2044")
    if not (top.isdigit() and bottom.isdigit()):
        return None
    part = fraction(int(top), int(bottom))
    return [*number(match["whole"]), "and", *(["a", *part[1:]] if top == "1" else part)] if match["whole"] else part


def _ordinal(match: re.Match[str]) -> list[str] | None:
    return to_ordinal(number(match["number"])) if len(match["number"]) <= 12 else None


def _decade(match: re.Match[str]) -> list[str] | None:
    return plural(number(match["number"], years=True))


_MINUS = r"(?P<minus>(?<![\w.)])[-−])?"
_END = r"(?![\w])"
RULES: tuple[tuple[re.Pattern[str], Reading], ...] = tuple(
    (re.compile(pattern), reading)
    for pattern, reading in (
        (
            rf"{_MINUS}(?:US)?(?P<sign>[$€£¥₹])\s?(?P<amount>{_NUMBER})(?:\s?(?P<scale>{_SCALE}|bn|[kKMBmT])(?!\w))?",
            _money,
        ),
        (
            r"(?:\+?1[-. ])?\(?[0-9]{3}\)?[-. ][0-9]{3}[-. ][0-9]{4}(?![\w-])"
            r"|\+[0-9][0-9 -]{6,16}[0-9](?!\w)|[0-9]{3}-[0-9]{4}(?![\w-])",
            lambda m: [*(["plus"] if m[0].startswith("+") else []), *digits(m[0])],
        ),
        (r"(?P<y>[0-9]{4})-(?P<m>[0-9]{2})-(?P<d>[0-9]{2})(?!\w)", lambda m: _date(m["y"], int(m["m"]), int(m["d"]))),
        (r"(?P<m>[0-9]{1,2})/(?P<d>[0-9]{1,2})/(?P<y>[0-9]{4})(?!\w)", lambda m: _date(m["y"], int(m["m"]), int(m["d"]))),
        (rf"(?P<month>{_MONTH})\s+(?P<day>[0-9]{{1,2}})(?:st|nd|rd|th)?(?![\w:%])", _month_day),
        (rf"(?P<day>[0-9]{{1,2}})(?:st|nd|rd|th)?\s+(?P<month>{_MONTH})(?!\w)", _day_month),
        (
            r"(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?!:?[0-9])(?:\s*(?P<half>[aApP])(?:\.\s?[mM]\.|[mM](?!\w)))?",
            _clock,
        ),
        (r"(?P<hour>[0-9]{1,2})(?P<minute>)\s*(?P<half>[aApP])(?:\.\s?[mM]\.|[mM](?!\w))", _clock),
        (r"(?P<feet>[0-9]{1,2})['′](?P<inches>[0-9]{1,2})[\"″]", lambda m: [*number(m["feet"]), "foot", *number(m["inches"])]),
        (r"(?P<low>[0-9]+):(?P<high>[0-9]+)(?![:\w])", lambda m: [*number(m["low"]), "to", *number(m["high"])]),
        (rf"(?P<low>{_NUMBER})\s?[-–−]\s?(?P<high>{_NUMBER})(?=%)", _range),
        (r"['’]?(?P<number>[0-9]{1,3}0)['’]?s(?!\w)", _decade),
        (rf"{_MINUS}(?P<number>{_NUMBER})\s?(?P<unit>{_UNIT}){_END}", _unit),
        (r"(?P<number>[0-9][0-9,]*)(?:st|nd|rd|th)(?!\w)", lambda m: _ordinal(m) if m["number"][-1] != "," else None),
        (r"(?:(?P<whole>[0-9]+)\s?)?(?P<vulgar>[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", _vulgar),
        (r"(?:(?P<whole>[0-9]+)\s)?(?P<top>[0-9]{1,3})/(?P<bottom>0*[1-9][0-9]{0,2})(?![\w/])", _mixed),
        (
            r"[0-9]+(?:\.[0-9]+){2,}(?!\w)",
            lambda m: [w for i, p in enumerate(m[0].split(".")) for w in (["point"] * (i > 0) + number(p))],
        ),
        (rf"(?P<low>{_NUMBER})[-–](?P<high>{_NUMBER})(?![\w-])", _range),
        (rf"(?<![\w.)])[-−](?P<number>{_NUMBER})", lambda m: ["minus", *number(m["number"])]),
        (rf"(?P<number>{_NUMBER})", lambda m: number(m["number"], years=True)),
        (r"\.(?P<rest>[0-9]+)", lambda m: ["point", *digits(m["rest"])]),
    )
)
