"""How single written words are said: plain words, letter names, acronyms, camel case, abbreviations, addresses.

A spoken word is lower-case ASCII letters with apostrophes ("don't"), or one capital letter, said by its name, with an optional "'s"
("B", "C's"). Letters of other scripts have no word here: they are silent, never an error.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST_WORD = 40  # letters; what is longer is noise, not a word, and is cut

_SAID_TEXT = """
    NASA NATO UNESCO UNICEF OPEC AIDS RAM ROM SIM PIN GIF LASER RADAR SCUBA SONAR COVID FIFA SWAT ZIP JSON YAML ASCII GUI WASP
    NAFTA ASEAN YOLO NIMBY TED IKEA LEGO VISA BASIC COBOL FORTRAN LISP BERT CAPTCHA
"""
# Short words that are often written in capitals for emphasis; other capitals of up to five letters are spelled.
_EMPHATIC_TEXT = """
    THE AND NOT YES NO ALL ANY BUT FOR YOU ARE IS TO IN OF ON OR IF AN AS AT BE BY DO GO HE ME MY SO UP WE ONE TWO TEN NEW NOW
    MUST STOP NEVER EVER EVERY ONLY VERY THIS THAT THESE THEM THEY WITH FROM WILL CAN WHAT WHEN WHERE WHO WHY HOW DON HAS HAVE
    HAD WAS WERE HER HIS SHE OUR YOUR OUT OFF TOO MORE MOST LESS BOTH EACH SOME NONE HELP NOTE TRUE FALSE NULL READ WRITE OPEN
    CLOSE START END RUN SET GET LIST HELLO HI HEY OH WOW GOOD GREAT BEST BIG SMALL LARGE LONG HIGH LOW FIRST LAST NEXT BACK
    FREE HOT COLD RED BLUE GREEN BLACK WHITE HAPPY LOVE LIKE WANT NEED KNOW THINK LOOK SEE SAY MAKE TAKE GIVE KEEP FIND TELL
    ASK TRY USE WORK CALL PLAY MOVE LIVE FOOD WATER FIRE DOG CAT DAY NIGHT YEAR TIME WORLD HOME LIFE MAN WOMAN KING QUEEN SALE
    EXIT ENTER PUSH PULL CAKE TEA TEST
"""
_SPECIAL = {
    "ok": ["okay"], "sql": ["sequel"], "jpeg": ["jay", "peg"], "jpg": ["jay", "peg"], "wifi": ["why", "fye"], "wi": ["why"],
    "ios": ["I", "O", "S"], "macos": ["mac", "O", "S"], "latex": ["lay", "tech"], "vs": ["versus"], "ve": ["V", "E"],
    "hmm": ["hum"], "hm": ["hum"], "mm": ["hum"], "mmm": ["hum"], "pc": ["P", "C"], "tv": ["T", "V"], "pm": ["P", "M"],
    "am": ["am"], "id": ["I", "D"], "dna": ["D", "N", "A"], "html": ["H", "T", "M", "L"], "css": ["C", "S", "S"],
    "api": ["A", "P", "I"], "url": ["U", "R", "L"], "http": ["H", "T", "T", "P"], "https": ["H", "T", "T", "P", "S"],
    "pdf": ["P", "D", "F"], "cpu": ["C", "P", "U"], "gpu": ["G", "P", "U"], "usb": ["U", "S", "B"], "xml": ["X", "M", "L"],
    "ui": ["U", "I"], "www": ["W", "W", "W"], "tsp": ["teaspoon"], "tbsp": ["tablespoon"],
}  # fmt: skip
_NO_PLAIN_FORM = {
    "ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "th", "þ": "th", "ı": "i", "ŋ": "ng", "’": "'",
    "ʼ": "'",
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta", "ι": "iota",
    "κ": "kappa", "λ": "lambda", "μ": "mu", "µ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau",
    "υ": "upsilon", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
}  # fmt: skip
_SAID = frozenset(_SAID_TEXT.split())
_EMPHATIC = frozenset(_EMPHATIC_TEXT.split())
_CAMEL = re.compile(r"(?<!^Mc)(?<!^Mac)(?<=[a-z])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z]+$)")
_LETTER_AFTER_TEXT = (
    "vitamin plan option grade letter team section type point hepatitis class group appendix exhibit influenza answer"
)
_LETTER_AFTER = frozenset(_LETTER_AFTER_TEXT.split())

ABBREVIATIONS = {
    "mr": ["mister"], "mrs": ["missus"], "ms": ["miz"], "dr": ["doctor"], "prof": ["professor"], "rev": ["reverend"],
    "gen": ["general"], "col": ["colonel"], "sgt": ["sergeant"], "capt": ["captain"], "lt": ["lieutenant"], "gov": ["governor"],
    "sen": ["senator"], "rep": ["representative"], "hon": ["honorable"], "jr": ["junior"], "sr": ["senior"], "vs": ["versus"],
    "etc": ["et", "cetera"], "approx": ["approximately"], "dept": ["department"], "est": ["established"],
    "inc": ["incorporated"], "ltd": ["limited"], "co": ["company"], "corp": ["corporation"], "bros": ["brothers"],
    "ave": ["avenue"], "blvd": ["boulevard"], "rd": ["road"], "mt": ["mount"], "cf": ["compare"], "e.g": ["for", "example"],
    "i.e": ["that", "is"], "eg": ["for", "example"], "ie": ["that", "is"], "al": ["al"], "ph.d": ["P", "H", "D"],
    "dist": ["distance"], "min": ["minimum"], "max": ["maximum"], "avg": ["average"], "govt": ["government"],
}  # fmt: skip


def plain(text: str) -> str:
    """Lower-case ASCII letters and apostrophes of a written word; accents are dropped, other scripts vanish."""
    text = "".join(_NO_PLAIN_FORM.get(character, character) for character in text.lower())
    text = unicodedata.normalize("NFKD", text).lower()
    return "".join(character for character in text if "a" <= character <= "z" or character == "'")


def letters(text: str) -> list[str]:
    """The names of the letters of `text`."""
    return [character.upper() for character in plain(text) if character != "'"]


def word(written: str, previous: str = "", *, shouting: bool = False, alone: bool = True) -> list[str]:
    """The spoken words of a run of letters with inner apostrophes.

    `previous` is the spoken word before; `shouting` says that the whole clause is in capitals; `alone` that spaces surround it.
    """
    if len(written) == 1 and written.lower() in _GREEK:
        return [_GREEK[written.lower()]]
    simple = plain(written)
    bare = simple.strip("'")
    if not bare:
        return []
    if len(bare) == 1:
        if bare == "i" or (bare == "a" and alone and previous not in _LETTER_AFTER):
            return [bare]
        return [bare.upper()]
    head, apostrophe, tail = written.replace("’", "'").partition("'")
    if bare in _SPECIAL:
        return _SPECIAL[bare]
    plural = head.endswith("s") and head[:-1].isupper() and len(head) > 2
    core = head[:-1] if plural else head
    if core.isupper() and core.isascii() and (not apostrophe or tail.lower() == "s") and not shouting and _spelled(core):
        names = letters(core)
        return [*names[:-1], names[-1] + "'s"] if plural or apostrophe else names
    if len(core) > 1 and core.isupper() and not _vowels(core) and core.isascii() and not apostrophe:
        return letters(core)
    parts = _CAMEL.split(written) if not written.isupper() else [written]
    if len(parts) > 1:
        return [spoken for part in parts for spoken in word(part, alone=False)]
    if not _vowels(bare) and "'" not in bare and len(bare) <= 4 and bare not in ("shh", "psst", "nth"):
        return letters(bare)
    return [simple.lstrip("'")[:LONGEST_WORD]]


def address(written: str) -> list[str]:
    """A URL or e-mail address: example dot com slash help; the scheme, "www" and a query are not read."""
    written = re.sub(r"^[a-z]+://", "", written, flags=re.IGNORECASE)
    written = re.sub(r"^www\.", "", written, flags=re.IGNORECASE)
    written = re.split(r"[?#]", written, maxsplit=1)[0].rstrip("/")
    names = {".": "dot", "/": "slash", "@": "at", "-": "dash", "_": "underscore", "+": "plus", ":": "colon"}
    said: list[str] = []
    for part in re.findall(r"[^\W\d_]+|[0-9]|[./@_+:-]", written):
        if part in names:
            said.append(names[part])
        elif part.isdigit():
            said.append("zero one two three four five six seven eight nine".split()[int(part)])  # noqa: SIM905
        else:
            said += word(part, alone=False)
    return said


def _spelled(core: str) -> bool:
    return len(core) <= 5 and core not in _SAID and core not in _EMPHATIC


def _vowels(text: str) -> bool:
    return any(character in "aeiouyAEIOUY" for character in text)
