"""MinMo's mouth on tiny networks: grouping cannot be heard, conversations do not meet, words are whole and in their place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decoders import flow_checkpoint, hift_checkpoint, voice_lm_checkpoint
from decoders.flow_steps import SharedFlow
from decoders.output_projector import BridgeProjector
from decoders.token2wav import Token2Wav
from decoders.token_voice import TokenVoice
from decoders.voice import Speech
from decoders.voice_lm_modules import VoiceLMConfig
from decoders.voice_prompt import VoicePrompt

TEXT = "so we go on and on"


def encode(text: str) -> list[int]:
    return list(text.encode())


def decode(ids) -> str:
    return bytes(i for i in ids if i < 256).decode(errors="replace")


def prompt(seed: int, codes: int = 60, text: str = "a few words") -> VoicePrompt:
    draw = torch.Generator().manual_seed(seed)
    return VoicePrompt(
        text,
        torch.randint(0, 6561, (codes,), generator=draw),
        torch.randn(2 * codes, 80, generator=draw) - 5,
        torch.randn(192, generator=draw),
    )


def make(manner: bool = False, **rules: int) -> TokenVoice:
    torch.set_num_threads(1)
    lm = voice_lm_checkpoint.tiny(0, rules=replace(VoiceLMConfig(), **rules))
    projector = BridgeProjector.bridge(lm, 8)
    wav = Token2Wav(flow_checkpoint.tiny(0), hift_checkpoint.tiny(0))
    return TokenVoice(lm, lambda tokens, hidden: projector(tokens, None, None), wav, encode, decode, prompt(1), manner=manner)


@pytest.fixture(scope="module")
def voice() -> TokenVoice:
    return make()


def say(voice: TokenVoice, text: str, sizes=(5,), seed: int = 0, speaker=None) -> list[Speech]:
    tokens, at, turn = encode(text), 0, 0
    state = voice.open(seed, speaker)
    chunks: list[Speech] = []
    while at < len(tokens):
        size = sizes[turn % len(sizes)]
        chunks += voice.push(state, tokens[at : at + size])
        at, turn = at + size, turn + 1
    return [*chunks, *voice.finish(state)]


def sound(chunks: list[Speech]) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in chunks])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_how_tokens_are_grouped_cannot_be_heard(voice: TokenVoice, sizes: list[int]) -> None:
    whole, pieces = say(voice, TEXT, (99,)), say(voice, TEXT, tuple(sizes))
    assert np.array_equal(sound(whole), sound(pieces))
    assert "".join(w.text for c in pieces for w in c.words) == TEXT


def test_sound_begins_with_the_first_group_and_words_lie_within_their_chunks(voice: TokenVoice) -> None:
    state = voice.open()
    first = [chunk for chunk in voice.push(state, encode(TEXT)[:5]) if len(chunk.samples)]
    assert first and len(sound(first)) == 7680  # 320 ms after five tokens
    for chunk in say(voice, TEXT):
        assert all(0 <= word.end <= len(chunk.samples) for word in chunk.words)
        ends = [word.end for word in chunk.words]
        assert ends == sorted(ends)


def test_steps_are_small_and_a_dropped_response_leaves_the_next_one_alone(voice: TokenVoice) -> None:
    whole = sound(say(voice, TEXT))
    state = voice.open()
    steps = voice.push(state, encode(TEXT))
    for _ in range(4):
        assert len(next(steps).samples) <= 100 * 480
    steps.close()
    assert np.array_equal(sound(say(voice, TEXT)), whole)


def test_ten_interleaved_conversations_sound_like_each_alone(voice: TokenVoice) -> None:
    speakers = [voice.read(prompt(10 + i, 40 + 7 * i)) for i in range(3)]
    alone = [sound(say(voice, TEXT, seed=i, speaker=speakers[i % 3])) for i in range(10)]
    states = [voice.open(i, speakers[i % 3]) for i in range(10)]
    parts: list[list[Speech]] = [[] for _ in states]
    tokens = encode(TEXT)
    for at in range(0, len(tokens), 5):
        running = {i: voice.push(state, tokens[at : at + 5]) for i, state in enumerate(states)}
        while running:
            for i, steps in list(running.items()):
                chunk = next(steps, None)
                if chunk is None:
                    del running[i]
                else:
                    parts[i].append(chunk)
    for i, state in enumerate(states):
        parts[i] += voice.finish(state)
        assert np.array_equal(sound(parts[i]), alone[i])
    assert not np.array_equal(alone[0], alone[1])


def test_a_reply_longer_than_the_voice_lms_context_is_spoken_to_its_end() -> None:
    voice = make(max_context_tokens=70)  # five tokens and their codes take twenty
    text = "one two three four five six seven eight"
    chunks = say(voice, text)
    assert "".join(w.text for c in chunks for w in c.words) == text
    assert len(sound(chunks)) > 24_000 * len(text) * 2 / 25  # at least two codes for each token


def test_in_the_manner_of_the_sample_the_voice_waits_for_the_text_to_catch_up() -> None:
    voice = make(manner=True)
    state = voice.open()
    tokens = encode(TEXT)  # sixty codes of the sample stand beside twenty tokens, of which the sample has eleven
    early = [chunk for chunk in voice.push(state, tokens[:10]) if len(chunk.samples)]
    assert early == []
    assert any(len(chunk.samples) for chunk in voice.push(state, tokens[10:15]))
    assert not np.array_equal(sound(say(voice, TEXT)), sound(say(make(), TEXT)))


def test_empty_and_foreign_input(voice: TokenVoice) -> None:
    assert say(voice, "") == []
    with pytest.raises(ValueError, match="its `read`"):
        voice.open(0, "joe")  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [False, True])
def test_responses_that_take_steps_together_sound_as_alone(shared: bool) -> None:
    single, voice = make(), make()
    if shared:
        voice.lm.share(4)
        voice.token2wav.flow = SharedFlow(flow_checkpoint.tiny(0), 6, 200)
        voice.speaker = voice.read(prompt(1))
    texts = [encode(TEXT), encode("another one of them"), encode("a third that is longer than these two")]
    states = [voice.open(seed) for seed in range(len(texts))]
    sounds: list[list[np.ndarray]] = [[] for _ in texts]
    for at in range(0, max(map(len, texts)), 5):
        for made in voice.push_together(states, [text[at : at + 5] for text in texts], [None] * len(texts)):
            for index, speech in made:
                sounds[index].append(speech.samples)
    for index, state in enumerate(states):
        sounds[index] += [speech.samples for speech in voice.finish(state)]
    for seed, text in enumerate(texts):
        expected = sound(say(single, bytes(text).decode(), seed=seed))
        assert len(expected) == sum(map(len, sounds[seed]))
        assert np.abs(np.concatenate(sounds[seed]) - expected).max() < 1e-3
