"""Decoding against CosyVoice's own runs, code for code, and what holds whoever pushes, pauses or interleaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decoders.qwen import KeyValues
from decoders.ras import GREEDY, USUAL, RasConfig
from decoders.voice_lm import VoiceLM
from decoders.voice_lm_checkpoint import tiny
from decoders.voice_lm_modules import COSYVOICE2, VoiceLMConfig
from decoders.voice_lm_state import VoiceContextFull, VoiceLMState
from tests.decoders.reference_voice_lm import REFERENCE, reference_lm

TEXT = REFERENCE[0]["inputs/text"][0]
PROMPT_TEXT = REFERENCE[0]["inputs/prompt_text"][0]
PROMPT_CODES = REFERENCE[0]["inputs/prompt_speech_token"][0].tolist()
RULES = replace(COSYVOICE2, max_context_tokens=256)


@pytest.fixture(scope="module")
def upstream() -> VoiceLM:
    return reference_lm(as_upstream=True)


@pytest.fixture(scope="module")
def lm() -> VoiceLM:
    return tiny(7, text_vocabulary=60, codes=99, rules=RULES)


def joined(steps: Iterable[list[int]]) -> list[int]:
    return [code for step in steps for code in step]


def rows_of(lm: VoiceLM, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Everything that the layers are given from now on."""
    given_rows: list[Tensor] = []
    forward = lm.qwen.forward

    def spy(x: Tensor, cache: KeyValues, start: int) -> None:
        given_rows.append(x.clone())
        forward(x, cache, start)

    monkeypatch.setattr(lm.qwen, "forward", spy)
    return given_rows


def speak(lm: VoiceLM, pieces: Iterable[Tensor], state: VoiceLMState) -> Iterator[int]:
    for piece in pieces:
        yield from joined(lm.push(state, lm.embed(piece)))
    for step in lm.finish(state):
        yield from step


def first(codes: Iterator[int], n: int) -> list[int]:
    return [code for code, _ in zip(codes, range(n), strict=False)]


# The reference.


def test_one_step_is_the_references(upstream: VoiceLM) -> None:
    tensors = REFERENCE[0]
    cache = upstream.qwen.buffers()
    rows = tensors["one_step/lm_input"][0]
    upstream.qwen.forward(rows, cache, 0)
    hidden, expected = cache.hidden[: len(rows)], tensors["one_step/hidden"][0]
    assert float((hidden - expected).abs().max() / expected.abs().max()) < 1e-5
    logits = upstream.modules.llm_decoder(hidden[-1])
    assert float((logits - tensors["one_step/last_logits"][0]).abs().max() / tensors["one_step/last_logits"].abs().max()) < 1e-5
    assert float((upstream.qwen.states(rows[None])[0] - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize(("run", "sampling", "seed"), [("unistream_greedy", GREEDY, 0), ("unistream_ras_seed1234", USUAL, 1234)])
def test_unistream_is_the_references(
    upstream: VoiceLM, run: str, sampling: RasConfig, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, info = REFERENCE
    seen = rows_of(upstream, monkeypatch)
    steps = upstream.unistream(upstream.embed(TEXT), PROMPT_TEXT, PROMPT_CODES, seed=seed, sampling=sampling)
    assert joined(steps) == info[f"{run}/tokens"]
    assert torch.equal(seen[0], tensors["one_step/lm_input"][0])


@pytest.mark.parametrize(
    ("run", "sampling", "seed", "eos_bias"),
    [
        ("bistream_greedy_prompt", GREEDY, 0, 0.0),
        ("bistream_greedy_noprompt", GREEDY, 0, 0.0),
        ("bistream_ras_noprompt_seed7", USUAL, 7, 0.0),
        ("bistream_eosbias_noprompt", GREEDY, 0, 12.0),
    ],
)
def test_bistream_is_the_references(
    run: str, sampling: RasConfig, seed: int, eos_bias: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codes, and the rows that the layers read, in their order: a difference in either is one in the layout."""
    tensors, info = REFERENCE
    lm = reference_lm(eos_bias, as_upstream=True)
    seen = rows_of(lm, monkeypatch)
    with_prompt = run.endswith("_prompt")
    state = (
        lm.open(PROMPT_TEXT, PROMPT_CODES[:17], seed=seed, sampling=sampling)
        if with_prompt
        else lm.open(seed=seed, sampling=sampling)
    )
    pieces = [tensors[f"bistream_pieces/{index}"].flatten() for index in range(5)]
    assert torch.equal(torch.cat(pieces), TEXT)
    expected = info[f"{run}/tokens"]
    assert first(speak(lm, pieces, state), len(expected)) == expected
    if run == "bistream_eosbias_noprompt":
        assert joined(lm.finish(state)) == []
    given_rows, wanted = torch.cat(seen), tensors[f"{run}/lm_inputs"]
    length = min(len(given_rows), len(wanted))
    assert length >= len(wanted) - 1
    assert torch.equal(given_rows[:length], wanted[:length])


def test_the_last_code_is_read_once_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = REFERENCE[0]
    lm = reference_lm(12.0)
    seen = rows_of(lm, monkeypatch)
    state = lm.open(sampling=GREEDY)
    assert len(list(speak(lm, [TEXT], state))) >= 2 * len(TEXT)
    quirk = tensors["bistream_eosbias_noprompt/lm_inputs"]  # start, 5 text, 15 codes, 5 text, 15 codes, the last one again, …
    ours = torch.cat(seen)
    assert torch.equal(quirk[40], quirk[41])
    assert torch.equal(ours[:41], quirk[:41]) and torch.equal(ours[41:46], quirk[42:47])


def test_outputs_that_stand_for_nothing_are_masked_or_told() -> None:
    strange = reference_lm()
    strange.modules.llm_decoder.bias.data[strange.config.eos + 1] = 50.0
    assert max(list(speak(strange, [TEXT], strange.open()))) < strange.config.codes
    assert len(joined(strange.unistream(strange.embed(TEXT)))) >= 2 * len(TEXT)
    strange = reference_lm(as_upstream=True)
    strange.modules.llm_decoder.bias.data[strange.config.eos + 1] = 50.0
    with pytest.raises(RuntimeError, match="wrote output 6562"):
        list(speak(strange, [TEXT], strange.open(sampling=GREEDY)))
    assert joined(strange.unistream(strange.embed(TEXT), sampling=GREEDY)) == []


# Standing rules.


def spoken(lm: VoiceLM, cuts: list[int], ids: list[int], seed: int, **prompt: Any) -> list[int]:
    state = lm.open(seed=seed, **prompt)
    edges = [0, *sorted(cuts), len(ids)]
    return list(speak(lm, [torch.tensor(ids[a:b], dtype=torch.long) for a, b in pairwise(edges)], state))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_how_the_text_is_pushed_makes_no_difference(lm: VoiceLM, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 59), min_size=1, max_size=17))
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=6))
    length = data.draw(st.integers(0, 35))
    prompt = {"text": torch.arange(data.draw(st.integers(0, 14))), "codes": range(length)}
    one_by_one = list(range(1, len(ids)))
    assert spoken(lm, cuts, ids, 5, **prompt) == spoken(lm, one_by_one, ids, 5, **prompt) == spoken(lm, [], ids, 5, **prompt)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_dropped_iterators_lose_nothing(lm: VoiceLM, drops: list[bool]) -> None:
    ids = list(range(14))
    state = lm.open(seed=3)
    codes: list[int] = []
    for index, token in enumerate(ids):
        steps = lm.push(state, lm.embed([token]))
        if not drops[index % len(drops)]:
            codes += joined(steps)
        elif (step := next(steps, None)) is not None:
            codes += step
    while step := next(lm.finish(state), None):
        codes += step
    assert codes == spoken(lm, [], ids, 3)


def test_interleaved_replies_are_those_of_each_alone(lm: VoiceLM) -> None:
    replies = [list(range(n, n + 6 + n)) for n in range(10)]
    alone = [spoken(lm, [], ids, seed) for seed, ids in enumerate(replies)]
    states = [lm.open(seed=seed) for seed in range(10)]
    together = [speak(lm, [torch.tensor(ids)], state) for ids, state in zip(replies, states, strict=True)]
    codes: list[list[int]] = [[] for _ in replies]
    running = set(range(10))
    while running:
        for index in sorted(running):
            code = next(together[index], None)
            if code is None:
                running.remove(index)
            else:
                codes[index].append(code)
    assert codes == alone


def test_a_fork_speaks_like_a_fresh_state_and_leaves_the_first_alone(lm: VoiceLM) -> None:
    prompt = {"text": torch.arange(12), "codes": list(range(40))}
    voice = lm.open(**prompt)
    assert voice.length > 0
    for seed in (4, 5, 4):
        codes = list(speak(lm, [torch.arange(11)], lm.fork(voice, seed)))
        assert codes == spoken(lm, [], list(range(11)), seed, **prompt)
    assert voice.outputs == [] and voice.text_positions == 0


def test_each_step_is_small_and_holds_only_codes(lm: VoiceLM) -> None:
    state = lm.open(seed=1)
    steps = [*lm.push(state, lm.embed(range(23))), *lm.finish(state)]
    assert all(1 <= len(step) <= lm.config.codes_per_step for step in steps)
    assert all(0 <= code < lm.config.codes for step in steps for code in step)
    assert state.outputs.count(lm.config.fill) >= 4


def test_text_that_comes_later_changes_no_code_before_it(lm: VoiceLM) -> None:
    first_codes = {}
    for last in (1, 2):
        state = lm.open(seed=8)
        first_codes[last] = joined(lm.push(state, lm.embed([5, 6, 7, 8, 9])))
        joined(lm.push(state, lm.embed([last] * 5)))
    assert first_codes[1] == first_codes[2] and len(first_codes[1]) == 15


def test_length_is_kept_in_bounds() -> None:
    lm = tiny(2, text_vocabulary=60, codes=99, rules=RULES)
    lm.modules.llm_decoder.bias.data[lm.config.eos] = -50.0
    assert len(spoken(lm, [], [1, 2, 3], 0)) == 60
    assert len(spoken(lm, [], list(range(6)), 0)) == 120
    assert len(joined(lm.unistream(lm.embed([1, 2, 3])))) == 60
    lm.modules.llm_decoder.bias.data[lm.config.eos] = 50.0
    assert len(spoken(lm, [], [1, 2, 3], 0)) == 6
    assert spoken(lm, [], [], 0) == []
    assert joined(lm.unistream(lm.embed([]))) == []


def test_a_prompt_without_a_reply_is_silent(lm: VoiceLM) -> None:
    state = lm.open(torch.arange(12), range(17))
    assert joined(lm.push(state, lm.embed([]))) == [] and joined(lm.finish(state)) == []


def test_prompt_codes_that_the_text_does_not_reach_follow_the_task_id(lm: VoiceLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = rows_of(lm, monkeypatch)
    state = lm.open(torch.arange(4), range(33), sampling=GREEDY)
    joined(lm.push(state, lm.embed([50, 51])))
    next(lm.finish(state))
    text = lm.embed([0, 1, 2, 3, 50, 51])
    start, task = lm.modules.llm_embedding.weight
    spoken_rows = lm.modules.speech_embedding.weight[:33]
    expected = torch.cat((start[None], text[:5], spoken_rows[:15], text[5:], task[None], spoken_rows[15:]))
    assert torch.equal(torch.cat(seen)[: len(expected)], expected)


def test_a_prompt_of_whole_groups_waits_for_text(lm: VoiceLM) -> None:
    state = lm.open(torch.arange(10), range(30), seed=2)
    assert joined(lm.push(state, lm.embed([1, 2, 3, 4]))) == []
    assert len(joined(lm.push(state, lm.embed([5])))) in range(1, 16)


def test_query_embeddings_stand_behind_the_start(lm: VoiceLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = rows_of(lm, monkeypatch)
    query = torch.randn(7, lm.hidden_size, generator=torch.Generator().manual_seed(0))
    state = lm.open(query=query)
    joined(lm.push(state, lm.embed(range(5))))
    expected = torch.cat((lm.modules.llm_embedding.weight[:1], query, lm.embed(range(5))))
    assert torch.equal(torch.cat(seen)[:13], expected)
    assert spoken(lm, [], [1, 2], 0, query=query) != spoken(lm, [], [1, 2], 0)
    whole = joined(lm.unistream(lm.embed([1, 2]), query=query, sampling=GREEDY))
    assert whole != joined(lm.unistream(lm.embed([1, 2]), sampling=GREEDY))


def test_a_full_context_is_told_and_the_rest_still_fits() -> None:
    lm = tiny(0, text_vocabulary=60, codes=99, rules=replace(RULES, max_context_tokens=64))
    lm.modules.llm_decoder.bias.data[lm.config.eos :] = -50.0
    state = lm.open()
    with pytest.raises(VoiceContextFull, match="64 positions"):
        joined(lm.push(state, lm.embed([1] * 30)))
    assert len(state.outputs) == 32
    fitting = lm.open()
    codes = joined(lm.push(fitting, lm.embed([1] * 14))) + joined(lm.finish(fitting))
    assert len(codes) > 30 and fitting.length + fitting.unread.shape[0] <= 65
    with pytest.raises(VoiceContextFull, match="no room"):
        lm.unistream(lm.embed([1] * 64))
    with pytest.raises(ValueError, match="use a shorter sample"):
        lm.open(codes=range(50))


def test_what_cannot_be_read_is_told(lm: VoiceLM) -> None:
    state = lm.open()
    with pytest.raises(ValueError, match=r"\[n, 64\]"):
        lm.push(state, torch.zeros(5, 63))
    with pytest.raises(ValueError, match="0 to 59; got 3 to 60"):
        lm.embed([3, 60])
    with pytest.raises(ValueError, match="prompt codes go from 0 to 98"):
        lm.open(codes=[99])
    joined(lm.push(state, lm.embed([1])))
    joined(lm.finish(state))
    with pytest.raises(ValueError, match="fresh state"):
        lm.push(state, lm.embed([1]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": 0},
        {"hidden_size": 897},
        {"kv_heads": 3},
        {"codes_per_step": 0},
        {"min_codes_per_text": 21},
        {"max_context_tokens": 10},
    ],
)
def test_settings_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VoiceLMConfig(**wrong)
