"""Text as it is written, cut into clauses to be spoken.

The first clause of a reply is short, so that sound starts early; later ones grow, because there is sound to cover the wait and a
whole sentence has a better melody. A cut is decided only when the text that decides it is there, so any grouping of the text into
pieces gives the same clauses, and the clauses joined are the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Written with a point that ends no sentence.
_WITH_POINT = """
    mr mrs ms dr prof st mt ft rev gen col sgt capt lt gov sen rep hon jr sr vs etc eg ie e.g i.e cf approx dept est fig no nos vol
    pp inc ltd co corp bros ave blvd rd jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri
    a.m p.m u.s u.k e.u u.n d.c ph.d b.c a.d ca al
"""
# Of these, the ones that often do end a sentence: they do when a capital follows.
_MAY_END_TEXT = "etc jr sr inc ltd co corp a.m p.m ph.d b.c a.d al"
# "no." is a number only before a digit, otherwise it is the answer; months likewise end sentences ("in Dec. It").
_BEFORE_DIGIT_TEXT = "no nos fig vol pp ca approx jan feb mar apr jun jul aug sep sept oct nov dec"
_JOINTS_TEXT = """
    and or but so because although though while when where which who that if unless until since as than then before after
    with without for from to in on at by of about into through during between under over against like
"""
_ABBREVIATIONS = frozenset(_WITH_POINT.split())
_MAY_END = frozenset(_MAY_END_TEXT.split())
_BEFORE_DIGIT = frozenset(_BEFORE_DIGIT_TEXT.split())
_JOINTS = frozenset(_JOINTS_TEXT.split())

LEAST_COVERED = 6
"""However short the clause before was, a clause may have so many words: fewer would tear phrases apart."""

_CLOSERS = "\"'”’»)]}*_`"
_CANDIDATE = re.compile(
    rf"(?P<end>[.!?…]+)(?P<end_closers>[{re.escape(_CLOSERS)}]*)"
    rf"|(?P<soft>[,;:])(?P<soft_closers>[{re.escape(_CLOSERS)}]*)"
    r"|(?P<dash>[—–]+|(?<=\s)-(?=\s))"
    r"|(?P<wide>[。！？；：，、])"
    r"|(?P<line>\n)"
    r"|(?P<space>[^\S\n]+)"
)
_LAST_WORD = re.compile(r"[^\s\"'“‘(\[*_]*$")
_WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class ClauseConfig:
    """Lengths in words, for the first clause, the second, and all later ones."""

    soft_words: tuple[int, int, int] = (2, 5, 8)
    """From so many words on, a comma, semicolon, colon or dash ends a clause."""
    joint_words: tuple[int, int, int] = (8, 14, 18)
    """From so many words on, a clause without punctuation is cut before a conjunction or preposition."""
    most_words: tuple[int, int, int] = (12, 18, 24)
    """At so many words it is cut anyway."""
    cover: int = 3
    """A clause has at most so many words for each word of the one before, whose sound must last until its own is made."""
    most_characters: int = 300
    """At so many characters it is cut even inside a word, so that no input can grow the buffer."""

    def __post_init__(self) -> None:
        for soft, joint, most in zip(self.soft_words, self.joint_words, self.most_words, strict=True):
            if not 1 <= soft <= joint <= most:
                raise ValueError(
                    f"clause lengths must rise from soft_words ({soft}) over joint_words ({joint}) to most_words ({most})"
                )
        if self.cover < 1:
            raise ValueError(f"cover must be at least 1, not {self.cover}")
        if self.most_characters < 32:
            raise ValueError(f"most_characters must be at least 32, not {self.most_characters}")


@dataclass(slots=True)
class ClauseState:
    """What one response has written since its last cut."""

    text: str = ""
    count: int = 0
    """Clauses cut so far."""
    words: int = 0
    """Words in the clause that was cut last."""
    line_start: bool = field(default=True)
    """Whether `text` begins at the start of a line."""


class ClauseSplitter:
    """Cuts a stream of text; the state is the caller's."""

    def __init__(self, config: ClauseConfig | None = None) -> None:
        self.config = config or ClauseConfig()

    def push(self, state: ClauseState, text: str) -> list[str]:
        """Take text, return the clauses that became complete."""
        state.text += text
        return self._drain(state, final=False)

    def finish(self, state: ClauseState) -> list[str]:
        """The text has ended: return what is left, in clauses."""
        clauses = self._drain(state, final=True)
        if state.text:
            clauses.append(state.text)
            state.text = ""
        return clauses

    def _drain(self, state: ClauseState, *, final: bool) -> list[str]:
        clauses = []
        while state.text:
            cut = self._find(state, final=final)
            if cut is None:
                break
            clause, state.text = state.text[:cut], state.text[cut:]
            state.count += 1
            state.words = sum(1 for word in clause.split() if _WORD.search(word))
            state.line_start = clause.endswith("\n")
            clauses.append(clause)
        return clauses

    def _find(self, state: ClauseState, *, final: bool) -> int | None:
        """Where the buffer's first clause ends, or None while that is not certain. Reads left to right, never past doubt."""
        text, config = state.text, self.config
        stage = min(state.count, 2)
        soft_words, joint_words, most_words = config.soft_words[stage], config.joint_words[stage], config.most_words[stage]
        if stage:
            most_words = min(most_words, max(LEAST_COVERED, config.cover * state.words))
            soft_words, joint_words = min(soft_words, most_words // 2), min(joint_words, most_words * 2 // 3)
        limit = config.most_characters
        words = 0
        at = 0
        for match in _CANDIDATE.finditer(text[: limit + 1]):
            if _WORD.search(text, at, match.start()):
                words += 1
            at, kind, stop = match.end(), match.lastgroup, match.end()
            if stop > limit:
                return limit
            kind = (kind or "").removesuffix("_closers")
            if kind == "space":
                if words < joint_words:
                    continue
                follows = re.compile(r"(\w+)(?!\w)").match(text, stop)
                if words >= most_words:
                    if stop == len(text) and not final:
                        return None
                    return match.start() if text[stop : stop + 1] != "\n" and text[stop:].strip() else None
                if (follows is None or follows.end() == len(text)) and _word_pending(text, stop) and not final:
                    return None
                if follows is not None and follows.group().lower() in _JOINTS:
                    return match.start()
                continue
            if kind == "line":
                if words:
                    return match.start()
                continue
            if words == 0:
                continue
            if kind == "wide":
                return stop
            if kind == "dash":
                if match.group() == "-" or words >= soft_words:
                    if stop == len(text) and not final:
                        return None
                    if words >= soft_words and not text[stop : stop + 1].isdigit():
                        return stop
                continue
            if stop == len(text) and not final:
                return None  # more of the run, a closer, a digit or a space may follow
            if stop < len(text) and not text[stop].isspace():
                continue  # 3.14, 1,000, 3:30, example.com
            if kind == "soft":
                if words >= soft_words:
                    return stop
                continue
            verdict = ends_sentence(text, match, line_start=state.line_start, final=final)
            if verdict is None:
                return None
            if verdict:
                return stop
        return limit if len(text) > limit else None


def ends_sentence(text: str, match: re.Match[str], *, line_start: bool, final: bool) -> bool | None:
    """Whether a run of stops (the group "end" of `match`) ends a sentence; None while the text after it is needed and not there.

    `line_start`: `text` begins a line. `final`: no text will follow.
    """
    if match.group("end") != ".":
        return True
    before = _LAST_WORD.search(text, 0, match.start())
    word = before.group().lower() if before else ""
    head = text[: match.start() - len(word)]
    if word.isdigit() and len(word) <= 3 and not head.strip() and (line_start or "\n" in head):
        return False  # "1. First of all"
    initial = len(word) == 1 and word.isalpha() and word != "i"
    if not (initial or word in _ABBREVIATIONS):
        return True
    rest = text[match.end() :]
    following = rest.lstrip()
    if "\n" in rest[: len(rest) - len(following)]:
        return True
    if not following:
        return True if final else None
    if word in _BEFORE_DIGIT:
        return not following[0].isdigit()
    return word in _MAY_END and following[0].isupper()


def _word_pending(text: str, start: int) -> bool:
    """Whether the word at `start` may still grow."""
    return re.compile(r"\w*$").match(text, start) is not None
