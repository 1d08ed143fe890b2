"""The corpus on disk: replies in shards, each complete from the moment it is seen.

replies/NNN.safetensors    tokens int32, hidden float16 [sum n, d], phones uint8, phone_token int16; flat, with <name>_offsets int64 [N+1]
replies/NNN.jsonl          {"text", "question"} of each item, in the same order
replies/DONE               no more will come
"""

from __future__ import annotations

import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from apps.train_corpus_questions import plain
from apps.train_corpus_reading import PHONES_A_SECOND, Item

_SAME_OPENING = 150
"""Most items that begin with the same five words."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept reply."""

    item: Item
    question: str
    tokens: NDArray[np.int32]
    hidden: NDArray[np.float16]
    """[n, d]"""


class Shards:
    """The folder `replies` of a work folder; goes on after what is there."""

    def __init__(self, work: Path, size: int, seed: int) -> None:
        self.folder, self.size = work / "replies", size
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "DONE").unlink(missing_ok=True)
        self._random = Random(seed)
        self._known: set[str] = set()
        self._openings: dict[str, int] = {}
        self.entries: list[Entry] = []
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self.count, self.items, self.phones = 0, 0, 0
        while (path := self._path(self.count)).exists():
            for line in path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines():
                self._new(json.loads(line)["text"])
                self.items += 1
            self.phones += _flat_length(path, "phones")
            self.count += 1

    @property
    def hours(self) -> float:
        """Speech so far, about."""
        return self.phones / PHONES_A_SECOND / 3600

    @property
    def wanted(self) -> int:
        """Items of the shard being filled: the first two are small, so that whoever waits for them can begin."""
        return min(self.size, 2500) if self.count < 2 else self.size

    def add(self, entry: Entry) -> None:
        """Keep an item, unless the same was kept before; the shard is written when it is full."""
        if not self._new(entry.item.text):
            return
        self.entries.append(entry)
        self.items += 1
        self.phones += len(entry.item.phones)
        if len(self.entries) >= self.wanted:
            self.flush()

    def flush(self) -> None:
        """Begin to write what there is as a shard, beside whatever goes on. OSError when the one before could not be written."""
        if not self.entries:
            return
        self._wait()
        entries, self.entries = self.entries, []
        self._random.shuffle(entries)
        self._writing = self._writer.submit(_write, entries, self._path(self.count))
        self.count += 1

    def finish(self) -> None:
        """Write the last shard and say that no more will come. OSError when a shard could not be written."""
        self.flush()
        self._wait()
        self._writer.shutdown()
        (self.folder / "DONE").touch()

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:03}.safetensors"

    def _new(self, text: str) -> bool:
        key = plain(text)
        if key in self._known:
            return False
        words = key.split()
        opening = " ".join(words[:5])
        if len(words) > 5 and self._openings.get(opening, 0) >= _SAME_OPENING:
            return False
        self._openings[opening] = self._openings.get(opening, 0) + 1
        self._known.add(key)
        return True


def _write(entries: list[Entry], path: Path) -> None:
    """The text first: a shard is there when its safetensors file is."""
    lines = [json.dumps({"text": entry.item.text, "question": entry.question}) for entry in entries]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    part = path.with_suffix(".part")
    save_file(
        {
            **_flat("tokens", [entry.tokens for entry in entries]),
            **_flat("phones", [entry.item.phones for entry in entries]),
            "phone_token": np.concatenate([entry.item.phone_token for entry in entries]),
            "hidden": np.concatenate([entry.hidden for entry in entries]),
        },
        part,
    )
    os.replace(part, path)


def _flat(name: str, arrays: list[NDArray[np.int32]] | list[NDArray[np.uint8]]) -> dict[str, NDArray[np.generic]]:
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int64)
    return {name: np.concatenate(arrays), f"{name}_offsets": offsets}


def _flat_length(path: Path, name: str) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return int(file.get_slice(name).get_shape()[0])
