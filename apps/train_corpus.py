"""`duologue train corpus`: what the edge voice learns from: the LLM's own replies, with the states behind each token and the phones to say.

    questions -> the LLM, thousands at once -> kept or not, read into phones (processes beside it) -> shards

A tenth are texts that the voice must be able to say and that no LLM writes often: names, figures, hard words; the LLM is asked to say
them, and its states are read along. The corpus goes on where it was stopped, shard by shard.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from agent import weight_cache
from agent.batch_replies import BatchWriter, Written
from agent.qwen_blocks import load_blocks
from agent.sampling import SamplingConfig
from agent.vocabulary import QwenVocabulary
from apps import train_corpus_reading
from apps.train_corpus_kit import kit_folder, pack, unpack, write_embedding
from apps.train_corpus_prompts import SAY, Prompts
from apps.train_corpus_questions import Asked, questions, texts
from apps.train_corpus_reading import MOST_TOKENS, Item, ItemReader
from apps.train_corpus_shards import Entry, Shards
from apps.train_corpus_texts import write_texts
from duplex.errors import ConfigError, OutputError, WeightsError

SAMPLING = SamplingConfig(temperature=0.8, top_k=50, top_p=0.9)
BLOCK = {"cuda": 16_384, "cpu": 256}  # questions drawn together
SHARE_OF_TEXTS = 0.1
MEGABYTES_AN_HOUR = 19.0
TOKENS_AN_HOUR = 10_000
TOKENS_A_SECOND = {"cuda": 60_000.0, "cpu": 15.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this part."""
    parser.add_argument("--work", type=Path, default=None, help="folder of the corpus")
    parser.add_argument("--hours", type=float, default=200.0, help="speech to write, about (default: 200)")
    parser.add_argument("--minutes", type=float, default=None, help="stop after so many minutes, whatever there is")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the LLM runs")
    parser.add_argument("--slots", type=int, default=None, help="replies written at once (default: 2048 on a GPU, 8 on a CPU)")
    parser.add_argument("--shard", type=int, default=10_000, help="replies of a shard (default: 10000; the first two have 2500)")
    parser.add_argument("--workers", type=int, default=None, help="processes that read replies into phones")
    parser.add_argument("--seed", type=int, default=0, help="of questions and replies (default: 0)")
    parser.add_argument("--held-out", type=int, default=300, help="replies to held-out questions, kept for `bench voice`")
    parser.add_argument("--pack", type=Path, default=None, metavar="DIR", help="only write what another machine needs, in parts")
    parser.add_argument("--unpack", type=Path, default=None, metavar="DIR", help="only put such parts together again")
    parser.add_argument(
        "--texts-only",
        action="store_true",
        help="no replies of the LLM, only questions and texts as they are: minutes on a CPU, enough for the tokenizer and the flow",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what it will cost")


def run_training(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    began = time.monotonic()
    work = args.work or weight_cache.home() / "train-voice"
    if args.pack or args.unpack:
        return _carry(args, work)
    if args.texts_only:
        return write_texts(args, work)
    if args.hours <= 0 or args.shard < 1 or (args.minutes is not None and args.minutes <= 0):
        raise ConfigError("Ask for more than 0 hours and minutes, and shards of 1 reply or more.")
    device = "cuda" if args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available()) else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda, but PyTorch finds no GPU here.")
    seconds = args.hours * TOKENS_AN_HOUR * 1.5 / TOKENS_A_SECOND[device]  # a third of what is written is not kept
    print(
        f"{args.hours:g} h of speech: about {seconds / 60:.0f} min of writing on {device}, {args.hours * MEGABYTES_AN_HOUR:,.0f} MB in "
        f"{work / 'replies'}. It may be stopped and run again.",
        flush=True,
    )
    if args.dry_run:
        return 0
    until = began + args.minutes * 60 if args.minutes else float("inf")
    if device == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # its masked attention is the one that differs most between versions
    try:
        kit = kit_folder(work)
        write_embedding(work)
        Corpus(args, work, kit, device, until).run()
    except OSError as error:
        raise OutputError(f"The corpus could not be written to {work}: {error}.") from error
    return 0


def _carry(args: argparse.Namespace, work: Path) -> int:
    try:
        if args.pack:
            parts = pack(work, args.pack)
            print(f"wrote {len(parts)} parts, {sum(part.stat().st_size for part in parts) / 1e6:.0f} MB, into {args.pack}")
        if args.unpack:
            unpack(work, args.unpack)
            print(f"unpacked into {work}")
    except OSError as error:
        raise OutputError(f"The parts could not be written: {error}.") from error
    return 0


@dataclass(slots=True)
class Pending:
    """Items on their way through a reading process."""

    questions: list[str]
    written: list[Written]
    items: Future[list[Item | None]]


class Corpus:
    """One run of the command."""

    def __init__(self, args: argparse.Namespace, work: Path, kit: Path, device: str, until: float) -> None:
        self.args, self.work, self.kit, self.device, self.until = args, work, kit, device, until
        self.block = BLOCK[device]
        self.shards = Shards(work, args.shard, args.seed)
        self.prompts = Prompts(QwenVocabulary(kit / "tokenizer.json"))
        cores = multiprocessing.cpu_count()
        workers = args.workers or max(min(cores - 4, 12), 1)
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.pool = ProcessPoolExecutor(workers, context, train_corpus_reading.begin, (str(kit),))
        self.pending: deque[Pending] = deque()
        self.tried, self.tokens, self.told, self.began = 0, 0, time.monotonic(), time.monotonic()

    def run(self) -> None:
        """Write until there is enough, or no time is left."""
        if self.shards.hours >= self.args.hours and (self.work / "heldout.jsonl").exists():
            self.shards.finish()
            print("the corpus is there already")
            self.pool.shutdown()
            return
        seeds = [
            self.args.seed * 100_000 + self.shards.count * 100 + number for number in range(100)
        ]  # one that goes on asks others
        first = self.pool.submit(questions, self.block, seeds[0])
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        began = time.monotonic()
        writer = BatchWriter(
            load_blocks(self.kit / "qwen-blocks.safetensors"),
            self.prompts.beginnings,
            self.prompts.ends,
            sampling=SAMPLING,
            banned=self.prompts.banned,
            slots=self.args.slots or (2048 if self.device == "cuda" else 8),
            most_new=MOST_TOKENS + 4,
            device=self.device,
            dtype=dtype,
        )
        print(f"the LLM is loaded ({time.monotonic() - began:.1f} s)", flush=True)
        try:
            self._held_out(writer)
            self._write(writer, seeds, first)
        finally:
            self.pool.shutdown(cancel_futures=True)
        self.shards.finish()
        self._tell(final=True)

    def _enough(self) -> bool:
        return self.shards.hours >= self.args.hours or time.monotonic() > self.until

    def _write(self, writer: BatchWriter, seeds: list[int], coming: Future[list[Asked]]) -> None:
        for seed, following in pairwise(seeds):
            if self._enough():
                break
            asked = coming.result()
            coming = self.pool.submit(questions, self.block, following)
            self._say(writer, seed)
            prompts = [self.prompts.ask(one.text, number) for number, one in enumerate(asked)]
            waiting: list[Written] = []
            for written in writer.write(prompts, seed, self._enough):
                waiting.append(written)
                if len(waiting) >= min(128, self.block // 16):
                    self._read([asked[one.prompt].text for one in waiting], waiting, reply=True)
                    waiting = []
                if self._enough():
                    break
            self._read([asked[one.prompt].text for one in waiting], waiting, reply=True)
            self._collect(wait=True)
            if not self.tried and not self._enough():
                raise WeightsError("The kit lacks tokens of these prompts; make it again (--pack) with this version.")
        self._collect(wait=True)

    def _say(self, writer: BatchWriter, seed: int) -> None:
        """Texts that are said as they are: the LLM is asked to say them, and its states are read along."""
        count = round(self.block * 0.6 * SHARE_OF_TEXTS)
        drawn = texts(count, seed)
        pairs = [(self.prompts.ask(SAY + text), self.prompts.vocabulary.encode(text)) for text in drawn]
        waiting: list[Written] = []
        for written in writer.read(pairs):
            waiting.append(written)
            if len(waiting) >= 128:
                self._read([SAY + drawn[one.prompt] for one in waiting], waiting, reply=False)
                waiting = []
            if time.monotonic() > self.until:
                break
        self._read([SAY + drawn[one.prompt] for one in waiting], waiting, reply=False)

    def _read(self, asked: list[str], written: list[Written], *, reply: bool) -> None:
        jobs = [(one.tokens, one.ended, reply) for one in written]
        self.pending.append(Pending(asked, written, self.pool.submit(train_corpus_reading.read_all, jobs)))
        self._collect(wait=False)

    def _collect(self, *, wait: bool) -> None:
        while self.pending and (wait or self.pending[0].items.done() or len(self.pending) > 400):
            batch = self.pending.popleft()
            for question, written, item in zip(batch.questions, batch.written, batch.items.result(), strict=True):
                self.tried += 1
                self.tokens += len(written.tokens)
                if item is not None:
                    self.shards.add(Entry(item, question, written.tokens, written.hidden))
        if time.monotonic() - self.told > 5:
            self._tell()

    def _tell(self, *, final: bool = False) -> None:
        self.told = time.monotonic()
        spent = self.told - self.began
        shards = self.shards
        share = min(shards.hours / self.args.hours, 1.0)
        bar = "#" * round(share * 20)
        print(
            f"[{bar:<20}] {shards.hours:.1f} of {self.args.hours:g} h, {shards.items:,} replies in {shards.count} shards, "
            f"{self.tokens / max(spent, 1e-3):,.0f} tokens/s, {self.tried:,} read{', done' if final else ''}",
            flush=True,
        )

    def _held_out(self, writer: BatchWriter) -> None:
        """Replies to held-out questions, and hard texts, for `bench voice`; written once."""
        path = self.work / "heldout.jsonl"
        if path.exists() or not self.args.held_out:
            return
        reader = ItemReader(self.kit)
        lines: list[str] = []
        for line in self._held_out_replies(writer, reader):
            lines.append(line)
            if len(lines) >= self.args.held_out:
                break
        if len(lines) < self.args.held_out:
            print(f"only {len(lines)} held-out replies were written in time; a later run tries again", flush=True)
            return
        for text in texts(max(self.args.held_out // 3, 1), self.args.seed, "held out"):
            lines.append(json.dumps({"kind": "hard", "question": "", "text": text}))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"wrote {path}: {len(lines)} held-out texts", flush=True)

    def _held_out_replies(self, writer: BatchWriter, reader: ItemReader) -> Iterator[str]:
        asked = questions(self.args.held_out * 3, self.args.seed, "held out")
        prompts = [self.prompts.ask(one.text) for one in asked]
        for written in writer.write(prompts, self.args.seed, lambda: time.monotonic() > self.until):
            item = reader(written.tokens.tolist(), ended=written.ended)
            if item is not None:
                yield json.dumps({"kind": "reply", "question": asked[written.prompt].text, "text": item.text.strip()})
