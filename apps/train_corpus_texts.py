"""`duologue train corpus --texts-only`: shards of questions and texts as they are, read into phones, without an LLM.

Notable: tokenizer and flow learn how phones sound, whoever wrote them, so this is enough for both and takes minutes on a CPU. The voice LM
needs the LLM's tokens and hidden states, which such shards do not hold: they have the tokens of the text and hidden states of width 0.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np

from apps.train_corpus_kit import kit_folder
from apps.train_corpus_questions import questions, texts
from apps.train_corpus_reading import ItemReader
from apps.train_corpus_shards import Entry, Shards
from duplex.errors import ConfigError, OutputError

DRAWN = 1000  # of each kind, for one seed
TELL_S = 10.0
MEGABYTES_AN_HOUR = 1.0


def write_texts(args: argparse.Namespace, work: Path) -> int:
    """Entry point; returns the exit code. Raises ConfigError, OutputError."""
    if args.hours <= 0 or args.shard < 1:
        raise ConfigError("Ask for more than 0 hours, and shards of 1 text or more.")
    print(
        f"{args.hours:g} h of speech: some minutes of reading on one core, {args.hours * MEGABYTES_AN_HOUR:,.0f} MB in "
        f"{work / 'replies'}. It may be stopped and run again.",
        flush=True,
    )
    if args.dry_run:
        return 0
    try:
        read = ItemReader(kit_folder(work))
        shards = Shards(work, args.shard, args.seed)
        began = told = time.monotonic()
        for text in drawn(args.seed * 100_000 + shards.count * 100):  # one that goes on draws others
            now = time.monotonic()
            if shards.hours >= args.hours or (args.minutes is not None and now - began > args.minutes * 60):
                break
            tokens = np.asarray(read.vocabulary.encode(text), np.int32)
            item = read(tokens.tolist(), reply=False)
            if item is not None:
                shards.add(Entry(item, "", tokens, np.zeros((len(tokens), 0), np.float16)))
            if now - told > TELL_S:
                told = now
                print(f"{shards.hours:.1f} of {args.hours:g} h, {shards.items:,} texts in {shards.count} shards", flush=True)
        shards.finish()
    except OSError as error:
        raise OutputError(f"The texts could not be written to {work}: {error}.") from error
    print(f"{shards.hours:.1f} h, {shards.items:,} texts in {shards.count} shards, done")
    return 0


def drawn(seed: int) -> Iterator[str]:
    """Questions and texts in turn, without end: none of them belongs to the held-out set."""
    for number in count(seed):
        pairs = zip(questions(DRAWN, number), texts(DRAWN, number), strict=True)
        yield from (text for asked, said in pairs for text in (asked.text, said))
