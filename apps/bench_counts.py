"""How many conversations at once a measurement is to hold, as the command line says it."""

from __future__ import annotations

from duplex.errors import ConfigError


def conversation_counts(text: str) -> list[int]:
    """ "1,4,16" -> [1, 4, 16]. Raises ConfigError for anything but numbers from 1 on."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ConfigError(f"--conversations takes numbers such as 1,4,16; found '{text}'.")
    return counts
