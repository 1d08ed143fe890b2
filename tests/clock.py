"""A clock for code that measures time: only what is said to take time takes it, however busy the machine is."""

from __future__ import annotations


class Clock:
    """Stands for the module `time`: goes on by what is slept, and a little at each look."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        self.now_s += 1e-4
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
