"""Waiting for what a test waits for, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    """Waits until it holds; fails after `within_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "what the test waited for did not come"
        time.sleep(0.02)
