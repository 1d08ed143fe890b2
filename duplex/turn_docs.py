"""Draws `docs/turn-taking.md` from the transition table: `python -m duplex.turn_docs > docs/turn-taking.md`."""

from __future__ import annotations

from duplex.turns import TABLE, Row

_HEAD = """# Turn-taking

Drawn from the table in `duplex/turns.py` by `python -m duplex.turn_docs`; a test keeps the two alike. For each floor and signal the
first row whose condition holds is taken; a signal without a row changes nothing.

| floor | who is heard |
|---|---|
| quiet | nobody |
| user | the user |
| pause | the user has fallen silent; the turn may go on. A response may be in preparation, unheard |
| agent | the agent (or its response is about to begin) |
| ducked | both: the agent speaks more quietly while it finds out what the user wants |
| held | the user; the agent holds its breath and its place |

| floor | signal | if | do | next floor |
|---|---|---|---|---|
"""


def turn_table_markdown() -> str:
    """The whole page."""
    return _HEAD + "".join(_line(row) for row in TABLE)


def _line(row: Row) -> str:
    actions = ", ".join(action.__name__ for action in row.actions) or "-"
    return f"| {row.floor} | {row.signal.__name__} | {row.when} | {actions} | {row.next} |\n"


if __name__ == "__main__":
    print(turn_table_markdown(), end="")
