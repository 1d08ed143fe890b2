"""Codes to sound: when it begins, in what steps it comes, and that nothing of one response reaches another."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decoders.flow_checkpoint import tiny as tiny_flow
from decoders.hift_checkpoint import tiny as tiny_hift
from decoders.token2wav import Sound, Token2Wav, Token2WavConfig, Token2WavState

CODE = 960  # samples


@dataclass(frozen=True)
class Lookahead:
    lookahead: int = 3


@dataclass(frozen=True)
class Sizes:
    vocabulary: int = 50
    chunk: int = 25
    ratio: int = 2
    encoder: Lookahead = field(default_factory=Lookahead)


@dataclass
class GridState:
    codes: list[int]
    prompt: int
    done: int

    def fork(self) -> GridState:
        return copy.deepcopy(self)


class GridFlow:
    """The flow's contract and nothing else: a code's two frames depend on the codes of its chunk and the three after it."""

    config = Sizes()

    def __init__(self) -> None:
        self.table = torch.randn(50, 80, generator=torch.Generator().manual_seed(0))
        self.steps: list[tuple[int, int, bool]] = []
        """Codes given and frames returned by each step, and whether it was final."""

    def open(self, prompt_codes: Tensor, prompt_mel: Tensor, speaker: Tensor | None) -> GridState:
        assert len(prompt_mel) == 2 * len(prompt_codes)
        return GridState(prompt_codes.tolist(), len(prompt_codes), len(prompt_codes))

    def step(self, state: GridState, codes: Tensor, final: bool) -> Tensor:
        state.codes += codes.tolist()
        total = len(state.codes)
        ready = total if final else max(total - 3, 0) // 25 * 25
        frames = [self._frame(state.codes, index) for index in range(state.done, ready)]
        state.done = max(ready, state.done)
        mel = torch.stack(frames, 1).repeat_interleave(2, 1) if frames else torch.zeros(80, 0)
        self.steps.append((len(codes), mel.shape[1], final))
        return mel

    def _frame(self, codes: Sequence[int], index: int) -> Tensor:
        chunk = index // 25 * 25
        return self.table[codes[index]] + self.table[codes[chunk : chunk + 28]].mean(0)


class CountingHiFT:
    """A vocoder that remembers the frames of each step."""

    def __init__(self) -> None:
        self.inner = HIFT
        self.config = HIFT.config
        self.steps: list[int] = []

    def open(self, seed: int | None) -> Any:
        return self.inner.open(seed)

    def step(self, state: Any, mel: Tensor, final: bool) -> Tensor:
        self.steps.append(mel.shape[1])
        return self.inner.step(state, mel, final)


HIFT = tiny_hift(1)


@dataclass(frozen=True)
class Sample:
    codes: Any
    mel: Any
    speaker: Any


def prompt(length: int, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    mel = rng.standard_normal((2 * length, 80)).astype(np.float32)
    return Sample(rng.integers(0, 50, length), mel, rng.standard_normal(192).astype(np.float32))


def speech(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 50, length).tolist()


def machine(**changes: Any) -> Token2Wav:
    return Token2Wav(GridFlow(), CountingHiFT(), Token2WavConfig(**changes))


def run(made: Token2Wav, state: Token2WavState, pieces: Iterable[Sequence[int]]) -> list[Sound]:
    sounds = [sound for piece in pieces for sound in made.push(state, piece)]
    return sounds + list(made.finish(state))


def samples(sounds: Iterable[Sound]) -> np.ndarray[Any, Any]:
    return np.concatenate([np.zeros(0, np.float32), *(sound.samples for sound in sounds)])


def codes_before_sound(made: Token2Wav, length: int) -> tuple[int, int]:
    """Codes pushed one by one until there is sound, and its samples."""
    state = made.open(prompt(length))
    for count, code in enumerate(speech(60), 1):
        heard = samples(made.push(state, [code]))
        if len(heard):
            return count, len(heard)
    raise AssertionError("no sound after 60 codes")


@pytest.mark.parametrize("length", [50, 61, 75, 99, 120])
def test_first_sound_comes_with_the_first_group_of_codes(length: int) -> None:
    assert codes_before_sound(machine(), length) == (15, round(0.320 * 24_000))


@pytest.mark.parametrize("length", range(50, 75, 3))
def test_a_prompt_kept_whole_is_first_heard_at_the_first_useful_chunk(length: int) -> None:
    needed, heard = codes_before_sound(machine(align_prompt=False, first_audio_ms=200), length)
    first = needed - 3
    assert (length + first) % 25 == 0
    assert heard == first * CODE - 8 * 480 >= 0.2 * 24_000
    assert (first - 25) * CODE - 8 * 480 < 0.2 * 24_000  # the end of chunk before would not have been enough


def test_without_a_prompt() -> None:
    assert codes_before_sound(machine(), 0) == (28, 25 * CODE - 8 * 480)


def test_a_short_prompt_is_not_cut_away() -> None:
    made = machine()
    assert made.prepare(prompt(30)).codes == 30
    assert made.prepare(prompt(63)).codes == 63
    assert made.prepare(prompt(70)).codes == 63


def test_hops_grow_while_playback_is_ahead_and_belong_to_the_response() -> None:
    made = machine()
    for seed in range(2):  # the second response starts afresh
        made.flow.steps.clear()  # type: ignore[attr-defined]
        run(made, made.open(prompt(63), seed), [speech(400)])
        frames = [frames // 2 for _, frames, _ in made.flow.steps]  # type: ignore[attr-defined]
        assert frames == [12, 25, 50, 100, 100, 100, 13]
        assert [final for *_, final in made.flow.steps] == [False] * 6 + [True]  # type: ignore[attr-defined]


def test_hops_stay_small_while_playback_is_not_ahead() -> None:
    made = machine()
    state = made.open(prompt(63))
    state.ahead_s = 0.3
    run(made, state, [speech(120)])
    assert [frames // 2 for _, frames, _ in made.flow.steps] == [12, 25, 25, 25, 25, 8]  # type: ignore[attr-defined]
    state = made.open(prompt(63))
    made.flow.steps.clear()  # type: ignore[attr-defined]
    state.ahead_s = 2.5  # seconds: enough to wait for 50 codes, not for 100
    run(made, state, [speech(250)])
    assert max(frames // 2 for _, frames, _ in made.flow.steps) == 50  # type: ignore[attr-defined]


def test_each_next_is_one_bounded_step() -> None:
    made = machine(vocoder_frames=60)
    state = made.open(prompt(63))
    flow, vocoder = made.flow.steps, made.vocoder.steps  # type: ignore[attr-defined]
    made.push(state, speech(300))
    work = made.finish(state)
    for done, sound in enumerate(work, 1):
        assert len(flow) + len(vocoder) == done
        assert len(sound.samples) <= (60 + 8) * 480
    assert max(given for given, *_ in flow) <= 103
    assert max(vocoder) <= 60


def test_codes_until_says_how_far_the_sound_has_come() -> None:
    made = machine()
    sounds = run(made, made.open(prompt(63)), [speech(173)])
    heard = 0
    for sound in sounds:
        heard += len(sound.samples)
        assert sound.codes_until * CODE == heard
    assert sounds[-1].codes_until == 173


def splits(length: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, length), max_size=12).map(sorted)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(0, 110), cuts=splits(110), start=st.integers(50, 74))
def test_any_split_of_the_codes_gives_the_same_sound(length: int, cuts: list[int], start: int) -> None:
    codes = speech(length)
    edges = [0, *(cut for cut in cuts if cut <= length), length]
    made = machine()
    whole = samples(run(made, made.open(prompt(start)), [codes]))
    pieces = samples(run(made, made.open(prompt(start)), [codes[a:b] for a, b in itertools.pairwise(edges)]))
    assert len(whole) == length * CODE
    assert np.array_equal(whole, pieces)


def test_an_iterator_dropped_midway_leaves_its_work_to_the_next() -> None:
    made = machine()
    whole = samples(run(made, made.open(prompt(63)), [speech(200)]))
    state = made.open(prompt(63))
    heard = []
    for piece in (speech(200)[:90], speech(200)[90:]):
        work = made.push(state, piece)
        heard += [next(work), next(work)]
        del work
    assert np.array_equal(samples([*heard, *made.finish(state)]), whole)


@pytest.mark.parametrize("steps", range(6))
def test_a_cancelled_response_leaves_no_trace(steps: int) -> None:
    made = machine()
    voice = made.prepare(prompt(63))
    alone = samples(run(made, made.open(voice, 1), [speech(80)]))
    list(itertools.islice(made.push(made.open(voice, 9), speech(150, 9)), steps))
    assert np.array_equal(samples(run(made, made.open(voice, 1), [speech(80)])), alone)


def real(seed: int = 0) -> Token2Wav:
    return Token2Wav(tiny_flow(seed), HIFT)


def fitting(made: Token2Wav, length: int) -> Sample:
    """A prompt for the tiny flow, whose sizes are its own."""
    sizes: Any = made.flow.config
    sample = prompt(length)
    rng = np.random.default_rng(1)
    speaker = rng.standard_normal(sizes.speaker).astype(np.float32) if sizes.speaker else None
    return replace(sample, mel=sample.mel[:, : sizes.mel], speaker=speaker)


def test_the_tiny_flow_and_vocoder_together() -> None:
    made = real()
    sample = fitting(made, 70)
    codes = speech(90)
    whole = samples(run(made, made.open(sample), [codes]))
    assert len(whole) == 90 * CODE and float(np.abs(whole).max()) > 1e-3
    state, needed = made.open(sample), None
    heard = []
    for count, begin in enumerate(range(0, 90, 15), 1):
        heard += list(made.push(state, codes[begin : begin + 15]))
        if needed is None and len(samples(heard)):
            needed = count
    assert needed == 1
    assert np.array_equal(samples([*heard, *made.finish(state)]), whole)


def test_ten_interleaved_responses_are_bit_identical_to_each_alone() -> None:
    made = real()
    voices = [made.prepare(fitting(made, 50 + index)) for index in range(10)]
    codes = [speech(16 + 5 * index, index) for index in range(10)]
    alone = [samples(run(made, made.open(voice, index), [codes[index]])) for index, voice in enumerate(voices)]
    states = [made.open(voice, index) for index, voice in enumerate(voices)]
    heard: list[list[Sound]] = [[] for _ in voices]
    work = [made.push(state, codes[index]) for index, state in enumerate(states)]
    running = set(range(10))
    ended: set[int] = set()
    while running:
        for index in sorted(running):
            sound = next(work[index], None)
            if sound is not None:
                heard[index].append(sound)
            elif index in ended:
                running.discard(index)
            else:
                ended.add(index)
                work[index] = made.finish(states[index])
    assert all(np.array_equal(samples(parts), whole) for parts, whole in zip(heard, alone, strict=True))


def test_nothing_said_is_nothing_heard() -> None:
    made = machine()
    assert run(made, made.open(prompt(63)), []) == []
    assert run(made, made.open(prompt(63)), [[]]) == []


def test_misuse_is_told() -> None:
    made = machine()
    state = made.open(prompt(63))
    with pytest.raises(ValueError, match="50 is no speech code"):
        made.push(state, [3, 50])
    assert state.received == 0
    list(made.finish(state))
    assert list(made.finish(state)) == []
    with pytest.raises(ValueError, match="has ended"):
        made.push(state, [3])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"first_audio_ms": 0}, "first_audio_ms"),
        ({"hop_codes": 30}, "multiples of the flow's chunk"),
        ({"hop_codes": 50, "max_hop_codes": 25}, "hop_codes"),
        ({"growth": 0}, "growth"),
        ({"vocoder_frames": 0}, "vocoder_frames"),
    ],
)
def test_wrong_settings_say_what_to_change(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        machine(**changes)
