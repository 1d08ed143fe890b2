"""The pointer LM code by code: what training computed, however the text came, and only of phones that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from decoders import pointer_lm_data as data
from decoders import pointer_lm_layout as layout
from decoders.pointer_lm import PointerLM, PointerLMConfig
from decoders.pointer_lm_layout import Replies, Sequences
from decoders.pointer_lm_streaming import PointerDecoder, PointerDrawConfig, Written, draw

CONFIG = PointerLMConfig(width=32, layers=2, heads=2, mlp=64, head_width=16, llm_width=8, phones=20)
GREEDY = PointerDrawConfig(temperature=0.0, advance_temperature=0.0, longest_phone_s=0.3)
TOKENS = 13
PHONES = [1, *[3 + index % 15 for index in range(40)], 2]
TOKEN_OF = [min(1 + index // 3, TOKENS - 1) for index in range(len(PHONES))]


@pytest.fixture(scope="module")
def net() -> PointerLM:
    torch.manual_seed(1)
    net = PointerLM(CONFIG).train(False)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if name.endswith("norm.weight") else 0.1))
        net.chain.heads[-1].outer.bias[1] += 2.0  # so that the pointer moves
        net.projector.mean.normal_()
    return net.requires_grad_(False)


def said() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(TOKENS, 8, generator=generator), torch.randn(TOKENS, 8, generator=generator)


def speak(decoder: PointerDecoder, sizes: list[int], seed: int = 0) -> list[Written]:
    """The reply, pushed in groups of these sizes."""
    rows = decoder.project(*said())
    state, out, at = decoder.open(seed), [], 0
    for size in sizes:
        decoder.take_text(state, rows[at : at + size])
        for token in range(at, at + size):
            phones = [phone for phone, of in zip(PHONES, TOKEN_OF, strict=True) if of == token and of < TOKENS - 1]
            decoder.take_phones(state, phones, token + 1)
        at += size
        while (code := decoder.step(state)) is not None:
            out.append(code)
            assert state.pointer >= code.phone
            assert TOKEN_OF[code.phone] < state.read
    decoder.take_phones(state, [phone for phone, of in zip(PHONES, TOKEN_OF, strict=True) if of == TOKENS - 1], TOKENS + 1)
    decoder.end_text(state)
    while (code := decoder.step(state)) is not None:
        out.append(code)
    assert state.ended
    return out


def test_codes_are_those_that_training_finds_likeliest(net: PointerLM) -> None:
    codes = speak(PointerDecoder(net, GREEDY, int8=False), [TOKENS])
    digits = torch.tensor([code.digits for code in codes], dtype=torch.uint8)
    pointer = torch.tensor([code.phone for code in codes])
    embeddings, hidden = said()
    dwell = torch.tensor([index - int((pointer[: index + 1] < p).sum()) for index, p in enumerate(pointer)], dtype=torch.uint8)
    replies = Replies(
        torch.arange(TOKENS), hidden.half(), torch.tensor(PHONES, dtype=torch.uint8), torch.tensor(TOKEN_OF), digits, pointer, dwell
    )
    one = [torch.tensor([value]) for value in (0, TOKENS, 0, len(PHONES), 0, len(codes), 0)]
    whole = Sequences(*one)
    places = layout.interleaved(CONFIG, replies, whole)
    none = torch.full((1, 2), -1)
    stock = data.Stock(replies, whole, places, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), none)
    batch = data.batch(CONFIG, stock, torch.zeros(1, 1, dtype=torch.long), int(places.offsets[-1]), 1.0, 0.0)
    text = net.projector(embeddings, hidden)
    x = net.embed(batch.kinds, batch.text_at, text, batch.code_at, batch.features)
    states = net.states(x, batch.positions, batch.documents).flatten(0, 1)[batch.code_at]
    scores = net.chain(states, batch.digits)
    for index in range(len(CONFIG.levels)):
        assert torch.equal(scores[index].argmax(1), digits[:, index].long())
    wanted = scores[-1].argmax(1)
    held = (wanted == 0) & (batch.advance == 1)  # left because it lasted too long
    assert torch.equal(torch.where(held, 1, wanted)[:-1], batch.advance[:-1])
    assert wanted[-1] >= batch.advance[-1]  # the last step may go beyond the end
    assert len(set(digits.flatten().tolist())) > 3 and len(codes) > 20


@pytest.mark.parametrize("int8", [False, True])
def test_any_grouping_gives_the_same_codes(net: PointerLM, int8: bool) -> None:
    decoder = PointerDecoder(net, PointerDrawConfig(longest_phone_s=0.3), int8=int8)
    whole = speak(decoder, [TOKENS])
    assert speak(decoder, [1] * TOKENS) == whole
    assert speak(decoder, [5, 5, 3]) == whole
    assert speak(decoder, [5, 5, 3], seed=1) != whole


def test_every_phone_is_passed_in_order_and_none_lasts_too_long(net: PointerLM) -> None:
    for seed in range(5):
        config = PointerDrawConfig(temperature=1.0, advance_temperature=1.5, longest_phone_s=0.2)
        codes = speak(PointerDecoder(net, config), [5, 8], seed)
        phones = [code.phone for code in codes]
        assert phones == sorted(phones) and phones[0] == 0
        assert max(np.bincount(phones)) <= 5
        assert phones[-1] >= len(PHONES) - CONFIG.advances


def test_int8_is_near_the_floats(net: PointerLM) -> None:
    exact, rough = (PointerDecoder(net, GREEDY, int8=int8) for int8 in (False, True))
    rows = exact.project(*said())
    made = []
    for decoder in (exact, rough):
        state = decoder.open()
        decoder.take_text(state, rows[:5])
        decoder.take_phones(state, PHONES[:9], 1)
        decoder._may_write(state)
        made.append(decoder._forward(state, decoder._code_position(state)))
    assert np.linalg.norm(made[0] - made[1]) < 0.1 * np.linalg.norm(made[0])


def test_a_reply_longer_than_the_context_goes_on(net: PointerLM) -> None:
    decoder = PointerDecoder(net, PointerDrawConfig(advance_temperature=0.0, longest_phone_s=0.5, max_positions=64))
    state = decoder.open()
    decoder.take_text(state, decoder.project(*said()))
    decoder.take_phones(state, PHONES * 3, 1)
    decoder.end_text(state)
    codes = 0
    while decoder.step(state) is not None:
        codes += 1
    assert codes > 64 and state.ended


def test_without_phones_nothing_is_said(net: PointerLM) -> None:
    decoder = PointerDecoder(net)
    state = decoder.open()
    decoder.take_text(state, decoder.project(*said()))
    assert decoder.step(state) is None and not state.ended
    decoder.end_text(state)
    assert decoder.step(state) is None and state.ended


def test_drawing_follows_the_scores() -> None:
    draws = np.random.default_rng(0)
    scores = [0.0, 1.0, 2.0, -5.0]
    assert draw(scores, 0.0, 1.0, draws) == 2
    counts = np.bincount([draw(scores, 1.0, 1.0, draws) for _ in range(4000)], minlength=4) / 4000
    expected = np.exp(scores) / np.exp(scores).sum()
    assert np.abs(counts - expected).max() < 0.03
    assert {draw(scores, 1.0, 0.7, draws) for _ in range(200)} == {1, 2}
    with pytest.raises(ValueError, match="no number"):
        draw([float("nan"), 1.0], 1.0, 1.0, draws)


def test_settings_are_checked() -> None:
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"longest_phone_s": 0.0}, {"max_positions": 3}):
        with pytest.raises(ValueError):
            PointerDrawConfig(**wrong)
