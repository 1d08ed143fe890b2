"""The words of "Flight of the Amazon Queen": what is written in the dialogues of its archive, by the names of the recordings.

A dialogue (`.DOG`) begins with its number and tells where the strings of others begin; before these stand the hero's. A string is an id, a
length and as many letters, filled up to whole groups of four bytes; codes such as `*02` between its parts move the figures. The layout is
that which ScummVM's source describes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable

BEGIN, NUMBER, OTHERS = 20, 4, 22
"""Bytes before a dialogue, and where in it its number stands and the place of the strings of others."""
SHORTEST = 3


def dialogues(files: Iterable[bytes]) -> dict[str, str]:
    """Names of lines (`020006J`: dialogue 2, string 6, the hero's; P: another's) -> what is said. What is no dialogue holds none."""
    found = dict[str, str]()
    for file in files:
        found |= _dialogue(file[BEGIN:])
    return found


def _dialogue(data: bytes) -> dict[str, str]:
    if len(data) < OTHERS + 2:
        return {}
    (number,), (others,) = struct.unpack_from(">H", data, NUMBER), struct.unpack_from(">H", data, OTHERS)
    found, at = dict[str, str](), 0
    while at + 5 + SHORTEST <= len(data):
        stop = at + 5 + data[at + 4]
        text = data[at + 5 : stop]
        whole = -(-stop // 4) * 4
        if data[at : at + 2] == b"\0\0" and len(text) >= SHORTEST and _is_text(text) and not data[stop:whole].strip(b"\0"):
            (string,) = struct.unpack_from(">H", data, at + 2)
            said = _said(text.decode("ascii"))
            if said:
                found[f"{number:02d}{string:04X}{'P' if at >= others else 'J'}"] = said
            at = whole
        else:
            at += 4
    return found


def _is_text(letters: bytes) -> bool:
    return all(32 <= letter < 127 for letter in letters)


def _said(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\*[A-Z0-9]{2}", " ", text)).strip()
