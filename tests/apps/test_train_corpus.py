"""The corpus: questions that never repeat, replies worth saying, shards as others read them, a kit that travels in parts."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from agent import weight_cache
from agent.qwen_blocks import EMBEDDING, Blocks, Shape, save_blocks
from agent.vocabulary import END_OF_TEXT, IM_END, IM_START, QwenVocabulary, byte_letters
from apps import train_corpus, train_corpus_kit, train_corpus_questions
from apps.bench_clips import clips
from apps.train_corpus_questions import plain, questions, templates, texts, words
from apps.train_corpus_reading import Item, ItemReader, speakable
from apps.train_corpus_shards import Entry, Shards
from decoders.teacher import read_phones
from duplex.errors import ConfigError, WeightsError


def test_questions_are_many_different_and_repeatable() -> None:
    first = [asked.text for asked in questions(3000, 7)]
    assert len({plain(text) for text in first}) == 3000
    assert first == [asked.text for asked in questions(3000, 7)]
    assert first != [asked.text for asked in questions(3000, 8)]
    assert not any("{" in text for text in [*first, *texts(300, 7), *texts(100, 7, "held out")])


def test_held_out_questions_share_no_template_and_hard_words_are_kept_apart() -> None:
    for file in ("questions.txt", "texts.txt"):
        assert not set(templates(file, "trained")) & set(templates(file, "held out"))
    trained, held = words(), words("held out")
    for name in ("first", "last", "rareplace", "rareword"):
        assert held[name] and not set(trained[name]) & set(held[name])


def test_what_the_benches_say_is_never_asked() -> None:
    asked = {plain(one.text) for one in questions(20_000, 0)} | {plain(text) for text in texts(2000, 0)}
    assert not asked & {plain(clip.text) for clip in clips("questions")}
    assert "thank you very much" not in asked


def test_more_texts_than_the_templates_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_corpus_questions, "templates", lambda file, part: ("Alpha.", "Beta."))
    assert sorted(texts(2, 0)) == ["Alpha.", "Beta."]
    with pytest.raises(ValueError, match="only 2 different"):
        texts(3, 0)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Paris is the capital of France.", True),
        ('It costs $5, which is 20% less; "fine", he said.', True),
        ("Is it? Yes!", True),
        ("The answer is", False),
        ("1. Eggs\n2. Milk.", False),
        ("**Paris** is nice.", False),
        ("Use `print` for it.", False),
        ("你好, I am fine.", False),
        ("See https://example.com for more.", False),
        ("I know that I know that I know that I know it.", False),
        ("Call foo() first.", False),
        ("Items:", False),
    ],
)
def test_only_spoken_english_is_kept(text: str, kept: bool) -> None:
    assert speakable(text) == kept


def entry(text: str, count: int = 3) -> Entry:
    phones = np.arange(count * 2, dtype=np.uint8)
    item = Item(text, phones, np.repeat(np.arange(count), 2).astype(np.int16))
    return Entry(item, "why?", np.arange(count, dtype=np.int32), np.full((count, 4), count, np.float16))


def test_a_shard_is_as_others_read_it_and_the_next_run_goes_on(tmp_path: Path) -> None:
    shards = Shards(tmp_path, 2, 0)
    for number in range(3):
        shards.add(entry(f"text number {number}", number + 1))
    shards.add(entry("Text, number 1!", 2))  # the same words as before
    shards.finish()
    assert (shards.count, shards.items) == (2, 3)
    stored = load_file(tmp_path / "replies" / "000.safetensors")
    lines = [json.loads(line) for line in (tmp_path / "replies" / "000.jsonl").read_text().splitlines()]
    assert {name: str(array.dtype) for name, array in stored.items()} == {
        "tokens": "int32", "tokens_offsets": "int64", "hidden": "float16", "phones": "uint8", "phones_offsets": "int64",
        "phone_token": "int16",
    }  # fmt: skip
    for index, line in enumerate(lines):
        count = int(line["text"].split()[-1]) + 1
        at, end = stored["tokens_offsets"][index : index + 2]
        assert stored["tokens"][at:end].tolist() == list(range(count))
        assert (stored["hidden"][at:end] == count).all()
        at, end = stored["phones_offsets"][index : index + 2]
        assert stored["phones"][at:end].tolist() == list(range(2 * count))
        assert len(stored["phone_token"][at:end]) == 2 * count
    again = Shards(tmp_path, 2, 0)
    assert (again.count, again.items, again.phones) == (2, 3, shards.phones)
    assert not (tmp_path / "replies" / "DONE").exists()
    again.add(entry("text number 2"))
    assert again.items == 3


# -- the whole command, with a model of random weights over bytes


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    folder = tmp_path / "work" / "kit"
    (folder / "espeak" / "g2p").mkdir(parents=True)
    spec = importlib.util.find_spec("gruut_lang_en")
    assert spec is not None and spec.origin is not None
    for name in ("lexicon.db", "g2p/model.crf"):
        (folder / "espeak" / name).symlink_to(Path(spec.origin).parent / "espeak" / name)
    symbols = [*"_^$ !'(),-.:;?abcdefhijklmnopstuvwzæðŋɑɐɔəɚɛɜɡɪɹɾʃʊʌʒˈˌːθᵻ"]
    table = {symbol: [index] for index, symbol in enumerate(symbols)}
    (folder / "voice.json").write_text(json.dumps({"phoneme_id_map": table}))
    tokenizer = Tokenizer(BPE(vocab={letter: byte for byte, letter in byte_letters().items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(special, special=True) for special in (END_OF_TEXT, IM_START, IM_END)])
    tokenizer.save(str(folder / "tokenizer.json"))
    save_blocks(random_blocks(259), folder / "qwen-blocks.safetensors")
    return folder


def random_blocks(rows: int, hidden: int = 32) -> Blocks:
    generator = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (rows, hidden), "output_norm.weight": (hidden,)}
    per_layer = {
        "attn_q.weight": (hidden, hidden), "attn_k.weight": (16, hidden), "attn_v.weight": (16, hidden), "attn_q.bias": (hidden,),
        "attn_k.bias": (16,), "attn_v.bias": (16,), "attn_output.weight": (hidden, hidden), "attn_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,), "ffn_gate.weight": (48, hidden), "ffn_up.weight": (48, hidden), "ffn_down.weight": (hidden, 48),
    }  # fmt: skip
    shapes |= {f"blk.0.{name}": shape for name, shape in per_layer.items()}
    tensors = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    shape = Shape(hidden, 1, 4, 2, rope_base=1e4, epsilon=1e-6)
    return Blocks(shape, dict.fromkeys(tensors, "F32"), tensors, np.arange(rows, dtype=np.int32))


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train_corpus.add_arguments(parser)
    return parser.parse_args(given)


def test_the_command_writes_items_whose_parts_agree(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = kit.parent
    args = arguments(
        *("--work", str(work), "--hours", "0.001", "--shard", "4", "--held-out", "0", "--workers", "1", "--device", "cpu"),
        *("--slots", "4"),
    )
    assert train_corpus.run_training(args) == 0
    assert "MB in" in capsys.readouterr().out
    assert (work / "replies" / "DONE").exists()
    stored = load_file(work / "replies" / "000.safetensors")
    vocabulary, reader = QwenVocabulary(kit / "tokenizer.json"), ItemReader(kit)
    lines = [json.loads(line) for line in (work / "replies" / "000.jsonl").read_text().splitlines()]
    assert len(lines) == len(stored["tokens_offsets"]) - 1 >= 1
    assert stored["hidden"].shape == (len(stored["tokens"]), 32)
    assert np.isfinite(stored["hidden"]).all() and np.abs(stored["hidden"]).max() > 0
    for index, line in enumerate(lines):
        tokens = stored["tokens"][slice(*stored["tokens_offsets"][index : index + 2])]
        assert vocabulary.decode(tokens.tolist()) == line["text"]
        assert line["question"] == f"Please say: {line['text']}"  # random weights write nothing worth keeping
        item = reader(tokens.tolist(), reply=False)
        assert item is not None
        where = slice(*stored["phones_offsets"][index : index + 2])
        assert stored["phones"][where].tolist() == item.phones.tolist()
        assert stored["phone_token"][where].tolist() == item.phone_token.tolist()
        assert stored["phone_token"][where].max() < len(tokens)
    embedding = load_file(work / "embedding.safetensors")
    assert embedding["weight"].shape == (259, 32) and embedding["ids"].tolist() == list(range(259))


def test_texts_alone_are_written_without_an_llm_and_go_on(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their phones are all that the tokenizer and the flow need."""
    (kit / "qwen-blocks.safetensors").unlink()
    work = kit.parent
    given = "--work", str(work), "--texts-only", "--shard", "5"
    assert train_corpus.run_training(arguments(*given, "--hours", "0.02", "--dry-run")) == 0
    assert not (work / "replies").exists()
    assert train_corpus.run_training(arguments(*given, "--hours", "0.02")) == 0
    assert "0.02 h of speech" in capsys.readouterr().out and (work / "replies" / "DONE").exists()
    count = len(list((work / "replies").glob("*.safetensors")))
    lines = [json.loads(line) for line in (work / "replies" / "000.jsonl").read_text().splitlines()]
    phones, starts = read_phones(work / "replies" / "000.safetensors")
    stored, reader = load_file(work / "replies" / "000.safetensors"), ItemReader(kit)
    assert stored["hidden"].shape == (len(stored["tokens"]), 0) and len(lines) == len(starts) - 1 == 5
    for index, line in enumerate(lines):
        item = reader(reader.vocabulary.encode(line["text"]), reply=False)
        assert item is not None and phones[starts[index] : starts[index + 1]].tolist() == item.phones.tolist()
    assert train_corpus.run_training(arguments(*given, "--hours", "0.04")) == 0
    everything = [json.loads(line)["text"] for file in (work / "replies").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(list((work / "replies").glob("*.safetensors"))) > count and len(set(everything)) == len(everything)
    with pytest.raises(ConfigError, match="more than 0 hours"):
        train_corpus.run_training(arguments(*given, "--hours", "0"))


def test_it_ends_by_the_clock_and_says_what_is_missing(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments(
        "--work", str(kit.parent), "--minutes", "0.001", "--held-out", "2", "--workers", "1", "--device", "cpu", "--slots", "2"
    )
    assert train_corpus.run_training(args) == 0
    assert "a later run tries again" in capsys.readouterr().out
    assert (kit.parent / "replies" / "DONE").exists()
    assert not (kit.parent / "heldout.jsonl").exists()


def test_a_kit_travels_in_parts(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUOLOGUE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(train_corpus_kit, "PART_BYTES", 2_000_000)
    for path in (kit / "espeak").rglob("*.*"):  # small ones will do
        path.unlink()
        path.write_bytes(np.random.default_rng(0).bytes(3_000_000))
    parts, there = tmp_path / "parts", tmp_path / "there"
    assert train_corpus.run_training(arguments("--work", str(kit.parent), "--pack", str(parts))) == 0
    assert len(list(parts.glob("part-*"))) > 1
    assert train_corpus.run_training(arguments("--work", str(there), "--unpack", str(parts))) == 0
    for name in ("espeak/lexicon.db", "voice.json", "tokenizer.json", "qwen-blocks.safetensors"):
        assert (there / "kit" / name).read_bytes() == (kit / name).read_bytes()
    assert (there / "embedding.safetensors").exists()
    assert (weight_cache.home() / "weights" / "vits-joe-config").is_dir()
    next(parts.glob("part-01")).unlink()
    with pytest.raises(WeightsError, match="copy them again"):
        train_corpus.run_training(arguments("--work", str(tmp_path / "broken"), "--unpack", str(parts)))


def test_nonsense_is_refused_and_the_cost_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="more than 0"):
        train_corpus.run_training(arguments("--work", str(tmp_path), "--hours", "0"))
    assert train_corpus.run_training(arguments("--work", str(tmp_path), "--dry-run", "--device", "cpu")) == 0
    assert "200 h of speech" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            train_corpus.run_training(arguments("--work", str(tmp_path), "--device", "cuda"))
