"""English words that turn-taking listens for, and the small questions asked of a transcript."""

from __future__ import annotations

import re

BACKCHANNEL_WORDS = frozenset(
    """mm hm mhm mmhm mmm hmm hm mm-hm mm-hmm mhmm um-hum uh-huh uhhuh huh uh ah oh yeah yep yup yes okay ok right sure
    cool nice wow whoa i see good great really true exactly indeed fine alright absolutely definitely gotcha""".split()  # noqa: SIM905
)
"""What listeners say to show that they listen."""

_PHRASES = re.compile(r"\b(?:got it|all right|(?:that )?makes sense|of course|fair enough|no way)\b")
# what they say in several words, none of which would do alone

LISTENING_OPENERS = BACKCHANNEL_WORDS - {"i", "see", "good", "great", "true", "fine"} | {"got"}
"""Words that seldom open anything else that is as short."""

STOP_WORDS = frozenset(
    "stop wait hold no nope actually excuse sorry hey but quiet enough pause cancel".split()  # noqa: SIM905
)
"""Words that open an interruption."""

HANGING_WORDS = frozenset(
    """a an the of to in on at by for with from into about between than as if when while because that which who whose what
    where how and or but so is are was were am be been do does did can could will would should may might must have has had
    my your his her our their its this these those um uh er erm hmm well like very more most know tell me i i'd i'm you're
    let's also then not""".split()  # noqa: SIM905
)
"""Words that a sentence seldom ends on."""

_HANGING_IN_QUESTIONS = frozenset({"the", "a", "an", "um", "uh", "and"})


def words_of(text: str) -> list[str]:
    """Lower-case words, hyphens and apostrophes kept inside."""
    return re.findall(r"[a-z0-9]+(?:['\-][a-z0-9]+)*", text.lower().replace("’", "'"))


def is_backchannel(text: str) -> bool:
    """True for up to four words or phrases, each one that listeners say to show that they listen; True for no words."""
    words = _PHRASES.sub("okay", " ".join(words_of(text))).split()
    return len(words) <= 4 and all(w in BACKCHANNEL_WORDS for w in words)


def opens_interruption(text: str) -> bool:
    """True when one of the words is "stop", "wait" or the like."""
    return not STOP_WORDS.isdisjoint(words_of(text))


def seems_complete(text: str) -> bool:
    """False when the sentence plainly goes on: it hangs on a function word or a filler, or trails off."""
    stripped = text.strip()
    words = words_of(stripped)
    if not words or stripped.endswith((",", "-", "—", "…", "...", ":", ";")):
        return False
    if stripped.endswith("?") and len(words) > 2:
        return words[-1] not in _HANGING_IN_QUESTIONS
    return words[-1] not in HANGING_WORDS
