"""What the corpus is made with, as one folder that can be carried to another machine in pieces.

    kit/qwen-blocks.safetensors    the LLM in its GGUF's own blocks, with the embedding's rows of English tokens
    kit/tokenizer.json             its vocabulary
    kit/espeak/                    the pronunciation lexicon and the model that guesses words outside of it
    kit/voice.json                 the voice's table of phonemes

Packed, it is one zip cut into parts of at most 44 MB.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from agent import weight_cache
from agent.qwen_blocks import load_blocks, read_blocks, save_blocks
from agent.vocabulary import QwenVocabulary
from agent.weight_list import load_weight_list
from apps.train_corpus_prompts import Prompts
from apps.train_corpus_questions import questions, texts
from duplex.errors import WeightsError

PART_BYTES = 44_000_000
MOST_WORDS = 34_000
"""Tokens that are words or parts of words; lower ids are more frequent ones."""

_LIKE_A_WORD = re.compile(rb" ?(?:[A-Z]?[a-z]+|[A-Z]{1,4})")
_SPACED_WORD = re.compile(rb" [A-Z]?[a-z]{2,}")
_LIKE_A_MARK = re.compile(rb"[ -@\[-`{-~]{1,3}|'[A-Za-z]{1,2}|[.:!?]?\n{1,2}")
_INSIDE = 40_000  # from this id on, of pieces without a space before them few are English


def kit_folder(work: Path) -> Path:
    """The kit of a work folder; made from the cache when it is not there. Raises WeightsError when the cache lacks a part."""
    folder = work / "kit"
    if not folder.is_dir():
        make_kit(folder)
    return folder


def make_kit(folder: Path) -> None:
    """Gather the kit from the weights in the cache and the installed packages."""
    weights = load_weight_list()
    gguf = weight_cache.artifact_path("qwen-gguf", weights.artifacts["qwen-gguf"])
    voice = weight_cache.artifact_path("vits-joe-config", weights.artifacts["vits-joe-config"])
    tokenizer = weight_cache.conversion_path("qwen-int8") / "tokenizer.json"
    spec = importlib.util.find_spec("gruut_lang_en")
    if spec is None or spec.origin is None:
        raise WeightsError("The package gruut-lang-en is missing; install duologue again.")
    for path in (gguf, voice, tokenizer):
        if not path.is_file():
            raise WeightsError(f"{path} is missing; run `duologue fetch edge` first.")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "espeak" / "g2p").mkdir(parents=True)
    for name in ("lexicon.db", "g2p/model.crf"):
        shutil.copyfile(Path(spec.origin).parent / "espeak" / name, part / "espeak" / name)
    shutil.copyfile(tokenizer, part / "tokenizer.json")
    shutil.copyfile(voice, part / "voice.json")
    save_blocks(read_blocks(gguf, chosen_tokens(QwenVocabulary(tokenizer))), part / "qwen-blocks.safetensors")
    os.replace(part, folder)


def chosen_tokens(vocabulary: QwenVocabulary) -> list[int]:
    """The tokens of English speech: frequent words and parts of words, figures, marks, specials, and all that is asked or read here."""
    words: list[int] = []
    chosen = set(vocabulary.specials.values()) | Prompts(vocabulary).tokens()
    for token in range(vocabulary.size):
        written = vocabulary.token_bytes(token)
        if (_LIKE_A_WORD if token < _INSIDE else _SPACED_WORD).fullmatch(written):
            words.append(token)
        elif token < _INSIDE and _LIKE_A_MARK.fullmatch(written):
            chosen.add(token)
    chosen.update(words[:MOST_WORDS])
    for text in [*(asked.text for asked in questions(12_000, 1)), *texts(4_000, 1), *texts(500, 1, "held out")]:
        chosen.update(vocabulary.encode(text))
    for text in "‘’“”—–…°€£é½":
        chosen.update([*vocabulary.encode(text), *vocabulary.encode(" " + text)])
    return sorted(chosen)


def pack(work: Path, folder: Path) -> list[Path]:
    """Write the kit of `work` into `folder` as part-00, part-01, ...; what lay there under such names is replaced."""
    kit = kit_folder(work)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("part-*"):
        old.unlink()
    archive = folder / "kit.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(kit.rglob("*")):
            if path.is_file():
                kind = zipfile.ZIP_STORED if path.suffix == ".safetensors" else zipfile.ZIP_DEFLATED
                file.write(path, path.relative_to(kit), kind)
    parts: list[Path] = []
    with archive.open("rb") as whole:
        while piece := whole.read(PART_BYTES):
            parts.append(folder / f"part-{len(parts):02}")
            parts[-1].write_bytes(piece)
    archive.unlink()
    return parts


def unpack(work: Path, folder: Path) -> None:
    """Put the parts in `folder` together to the kit of `work`, and write the embedding that the voice LM's training reads.

    Raises WeightsError when parts are missing or damaged.
    """
    parts = sorted(folder.glob("part-*"))
    work.mkdir(parents=True, exist_ok=True)
    archive = work / "kit.zip"
    target, scratch = work / "kit", work / "kit.part"
    with archive.open("wb") as whole:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, whole, 1 << 22)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(scratch)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise WeightsError(f"The {len(parts)} parts in {folder} do not make a whole kit ({error}); copy them again.") from error
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)
    archive.unlink()
    voice = weight_cache.artifact_path("vits-joe-config", load_weight_list().artifacts["vits-joe-config"])
    if not voice.exists():
        voice.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target / "voice.json", voice)
    write_embedding(work)


def write_embedding(work: Path) -> None:
    """W/embedding.safetensors: weight int8 [R, d], scale float32 [R], ids int32 [R], rounded as the agent's own LLM has them."""
    path = work / "embedding.safetensors"
    if path.exists():
        return
    blocks = load_blocks(kit_folder(work) / "qwen-blocks.safetensors")
    weight, scale = blocks.embedding()
    part = path.with_name(path.name + ".part")
    save_file({"weight": weight.numpy(), "scale": scale.numpy(), "ids": blocks.ids.astype(np.int32)}, part)
    os.replace(part, path)
