"""Who speaks: the teacher reads as the own voice does, and codes are given to one network after the other."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agent.build import build_parts
from agent.chat_template import Message
from agent.parts import Parts
from agent.profiles import load_profile
from apps.bench_voice_own import code_rows, teacher_codes, thoughts, voice_row
from apps.bench_voice_rows import Teacher
from apps.bench_voice_texts import HeldOut
from decoders import flow_voice
from decoders.flow import Flow
from decoders.phonemes import BEGIN, END, PAD, PhonemeTable
from decoders.speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig
from decoders.tiny_voice import tiny_graphs, tiny_phonemes, tiny_table
from decoders.vits import Vits
from duplex.audio import Samples

TEXT = HeldOut("replies", "How are you?", "Good day. It is fine, thanks!")


@pytest.fixture(scope="module")
def parts() -> Parts:
    return build_parts(load_profile("tiny"))


def test_the_teacher_speaks_sentence_by_sentence(parts: Parts) -> None:
    table = tiny_table()
    teacher = Teacher(Vits(tiny_graphs()), PhonemeTable(table), tiny_phonemes, parts.thinker)
    phones = teacher.phones(TEXT.text)
    begin, end, pad = table[BEGIN][0], table[END][0], table[PAD][0]
    assert [(one[0], one[-1]) for one in phones] == [(begin, end)] * 2
    ids = teacher.padded(phones[0])
    assert ids[::2] == phones[0]
    assert ids[1::2] == [pad] * (len(phones[0]) - 1)
    sentences = teacher.sentences(TEXT.text, 5)
    for (latents, durations), spoken in zip(sentences, phones, strict=True):
        assert latents.shape[1] == durations.sum()
        assert len(durations) == len(spoken)
    whole = teacher.latents(TEXT.text, 5)
    np.testing.assert_array_equal(whole, np.concatenate([latents for latents, _ in sentences], axis=1))
    assert teacher.latents(TEXT.text, 6).shape != whole.shape or not np.array_equal(teacher.latents(TEXT.text, 6), whole)
    assert len(teacher.render(whole)) == whole.shape[1] * 256
    assert len(teacher.render(teacher.latents("...", 0))) == 0


class Humming(Teacher):
    """A teacher of two sentences of 13 and 8 frames, whose sound is the mean of its latents."""

    def __init__(self) -> None:
        pass

    def sentences(self, text: str, seed: int) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        rng = np.random.default_rng(seed)
        return [(rng.standard_normal((192, count)).astype(np.float32), np.array([count])) for count in (13, 8)]

    def render(self, latents: NDArray[np.float32]) -> Samples:
        assert latents.shape[0] == 192
        return np.repeat(latents.mean(axis=0), 256)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small networks that have learnt nothing."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    SpeechTokenizer(SpeechTokenizerConfig(width=16, inner=16, blocks=1, frame_blocks=1)).save(folder / "tokenizer.safetensors")
    small = replace(
        flow_voice.VOICE,
        encoder=replace(flow_voice.VOICE.encoder, width=24, feed_forward=24, blocks=1),
        estimator=replace(flow_voice.VOICE.estimator, channels=16, mid_stages=1, heads=2, head_width=8),
    )
    flow_voice.save(flow_voice.VoiceFlow(Flow(small), torch.zeros(192), torch.ones(192)), folder / "flow.safetensors")
    return folder


def test_every_sentence_is_a_whole_number_of_codes(trained: Path) -> None:
    tokenizer = SpeechTokenizer.load(trained / "tokenizer.safetensors")
    assert teacher_codes(Humming(), tokenizer, TEXT, 1).shape == (4 + 2, 5)


def test_each_network_has_its_row(trained: Path) -> None:
    rows, notes = code_rows(Humming(), trained)
    assert [row.name for row in rows] == ["codes, resynthesis", "codes, flow 1 step", "codes, flow 2 steps", "codes, flow 4 steps"]
    assert notes == []
    sounds = [row.speak(TEXT, 0) for row in rows]
    assert all(len(sound) == 6 * 4 * 256 for sound in sounds)
    for one, two in pairwise(sounds):
        assert not np.allclose(one, two)
    np.testing.assert_array_equal(sounds[2], rows[2].speak(TEXT, 0))
    assert len({row.fingerprint for row in rows}) == len(rows)


def test_what_is_not_trained_is_left_out_and_told(trained: Path, tmp_path: Path) -> None:
    rows, notes = code_rows(Humming(), tmp_path)
    assert rows == []
    assert "tokenizer" in notes[0]
    (tmp_path / "tokenizer.safetensors").write_bytes((trained / "tokenizer.safetensors").read_bytes())
    rows, notes = code_rows(Humming(), tmp_path)
    assert [row.name for row in rows] == ["codes, resynthesis"]
    assert "flow" in notes[0]


def test_the_states_are_those_that_the_tokens_are_drawn_from(parts: Parts) -> None:
    """As the session's own steps give them: fed one by one, forced to the same tokens."""
    tokens, hidden = thoughts(parts, "Talk.", TEXT)
    assert parts.thinker.decode(tokens) == TEXT.text
    assert len(hidden) == len(tokens)
    thinker = parts.thinker
    context = thinker.open()
    keys = thinker.render("Talk.", [Message("user", TEXT.question)], open_assistant=True)
    for place in (0, 3):
        for _ in thinker.sync_steps(context, [*keys, *tokens[:place]]):
            pass
        np.testing.assert_allclose(thinker.step(context, thinker.sampler(0)).hidden, hidden[place], atol=1e-4)


def test_a_streaming_voice_is_a_row(parts: Parts) -> None:
    row = voice_row("tiny", parts.voice, parts, "Talk.", hidden=False, print_of="1")
    sound = row.speak(TEXT, 0)
    assert len(sound) > 1000
    np.testing.assert_array_equal(sound, row.speak(TEXT, 0))
    assert len(voice_row("tiny", parts.voice, parts, "Talk.", hidden=True, print_of="1").speak(TEXT, 0)) == len(sound)
