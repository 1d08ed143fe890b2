"""The LLM in batches says what it says alone: the same tokens, the same states, whatever shares the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from agent.batch_replies import BatchWriter, Prompt, Written
from agent.chat_template import Message, render_chat
from agent.qwen_blocks import EMBEDDING, Blocks, Shape, read_blocks
from agent.sampling import SamplingConfig
from agent.thinker import Thinker, ThinkerConfig

ROWS, HIDDEN, LAYERS = 40, 32, 2
END = 39
GREEDY = SamplingConfig(temperature=0.0, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=ROWS,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Qwen2ForCausalLM(config)
        for parameter in model.parameters():  # biases and norms begin as zeros and ones
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.requires_grad_(False).train(False)


@pytest.fixture(scope="module")
def blocks(model: Qwen2ForCausalLM) -> Blocks:
    state = model.state_dict()
    names = {"output_norm.weight": "model.norm.weight", EMBEDDING: "model.embed_tokens.weight"}
    for layer in range(LAYERS):
        ours, theirs = f"blk.{layer}.", f"model.layers.{layer}."
        for part in "qkv":
            for kind in ("weight", "bias"):
                names[f"{ours}attn_{part}.{kind}"] = f"{theirs}self_attn.{part}_proj.{kind}"
        names[ours + "attn_output.weight"] = theirs + "self_attn.o_proj.weight"
        names[ours + "attn_norm.weight"] = theirs + "input_layernorm.weight"
        names[ours + "ffn_norm.weight"] = theirs + "post_attention_layernorm.weight"
        for part in ("gate", "up", "down"):
            names[f"{ours}ffn_{part}.weight"] = f"{theirs}mlp.{part}_proj.weight"
    tensors = {ours: state[theirs].numpy() for ours, theirs in names.items()}
    theta = model.config.rope_parameters["rope_theta"]
    shape = Shape(HIDDEN, LAYERS, 4, 2, rope_base=theta, epsilon=model.config.rms_norm_eps)
    return Blocks(shape, dict.fromkeys(tensors, "F32"), tensors, np.arange(ROWS, dtype=np.int32))


def prompts(count: int) -> list[Prompt]:
    random = np.random.default_rng(1)
    return [Prompt(int(random.integers(2)), tuple(random.integers(0, END, random.integers(1, 9)).tolist())) for _ in range(count)]


BEGINNINGS = ([5, 6, 7], [8, 9])


def write(blocks: Blocks, asked: list[Prompt], slots: int, sampling: SamplingConfig = GREEDY) -> dict[int, Written]:
    writer = BatchWriter(blocks, BEGINNINGS, [END], sampling=sampling, slots=slots, most_prompt=8, most_new=12)
    return {reply.prompt: reply for reply in writer.write(asked)}


@torch.inference_mode()
def alone(model: Qwen2ForCausalLM, prompt: Prompt) -> tuple[list[int], np.ndarray]:
    ids, tokens, states = [*BEGINNINGS[prompt.kind], *prompt.ids], [], []
    while len(tokens) < 12:
        out = model(torch.tensor([ids]), output_hidden_states=True)
        token = int(out.logits[0, -1].argmax())
        if token == END:
            break
        states.append(out.hidden_states[-1][0, -1].numpy())
        tokens.append(token)
        ids.append(token)
    return tokens, np.array(states).reshape(len(states), HIDDEN)


def test_a_batch_writes_what_the_model_writes_alone(model: Qwen2ForCausalLM, blocks: Blocks) -> None:
    asked = prompts(12)
    written = write(blocks, asked, slots=5)  # slots are used more than once
    assert sorted(written) == list(range(12))
    lengths = set()
    for number, prompt in enumerate(asked):
        tokens, states = alone(model, prompt)
        assert written[number].tokens.tolist() == tokens
        assert written[number].ended == (len(tokens) < 12)
        np.testing.assert_allclose(written[number].hidden, states, atol=4e-3, rtol=4e-3)
        lengths.add(len(tokens))
    assert len(lengths) > 1


def test_drawn_replies_differ_from_the_likeliest_and_repeat_with_their_seed(blocks: Blocks) -> None:
    asked = prompts(6)
    drawn = SamplingConfig(temperature=1.5, top_k=20, top_p=0.95)
    first, again = write(blocks, asked, 6, drawn), write(blocks, asked, 6, drawn)
    assert all(first[n].tokens.tolist() == again[n].tokens.tolist() for n in first)
    likeliest = write(blocks, asked, 6)
    assert any(first[n].tokens.tolist() != likeliest[n].tokens.tolist() for n in first)


def test_a_strong_penalty_forbids_repeats_and_banned_tokens_are_not_written(blocks: Blocks) -> None:
    asked = prompts(6)
    strong = SamplingConfig(temperature=0.0, repetition_penalty=1e6)
    for reply in write(blocks, asked, 3, strong).values():
        assert len(set(reply.tokens.tolist())) == len(reply.tokens)
    favourite = {int(token) for reply in write(blocks, asked, 3).values() for token in reply.tokens}
    writer = BatchWriter(blocks, BEGINNINGS, [END], banned=sorted(favourite), sampling=GREEDY, slots=3, most_prompt=8, most_new=12)
    assert not favourite & {int(token) for reply in writer.write(asked) for token in reply.tokens}


def test_reading_a_reply_gives_the_states_of_writing_it(blocks: Blocks) -> None:
    asked = prompts(7)
    written = write(blocks, asked, slots=7)
    writer = BatchWriter(blocks, BEGINNINGS, [END], sampling=GREEDY, slots=2, most_prompt=8, most_new=12)
    pairs = [(prompt, written[number].tokens.tolist()) for number, prompt in enumerate(asked)]
    read = {reply.prompt: reply for reply in writer.read(pairs)}
    assert set(read) == {number for number, reply in written.items() if len(reply.tokens)}
    assert read
    for number, reply in read.items():
        assert reply.tokens.tolist() == written[number].tokens.tolist()
        np.testing.assert_allclose(reply.hidden, written[number].hidden, atol=4e-3, rtol=4e-3)


def test_prompts_too_long_or_with_unknown_tokens_are_passed_over(blocks: Blocks) -> None:
    asked = [Prompt(0, tuple(range(9))), Prompt(0, (1, 999)), Prompt(0, (1, 2)), Prompt(0, ())]
    assert list(write(blocks, asked, slots=2)) == [2]


def test_it_stops_when_told(blocks: Blocks) -> None:
    writer = BatchWriter(blocks, BEGINNINGS, [END], sampling=GREEDY, slots=2, most_prompt=8, most_new=12)
    assert list(writer.write(prompts(6), stop=lambda: True)) == []


@pytest.mark.weights
def test_the_real_model_answers_as_the_thinker_does(edge_weights: dict[str, Path]) -> None:
    """Weights of five bits as they are, against the same rounded to int8 rows and activations: nearly the same states."""
    gguf = next((edge_weights["qwen-int8"].parents[1] / "weights" / "qwen-gguf").glob("*.gguf"), None)
    if gguf is None:
        pytest.skip("the GGUF was removed after its conversion")
    thinker = Thinker.from_folder(edge_weights["qwen-int8"], ThinkerConfig(max_context_tokens=256))
    whole = render_chat(thinker.vocabulary, "Answer in one short sentence.", [Message("user", "What is the capital of France?")])
    before = whole.index(thinker.start_of_turn, 1)
    blocks = read_blocks(gguf, [*range(60_000), *whole, *thinker.eos_ids])
    writer = BatchWriter(blocks, [whole[:before]], sorted(thinker.eos_ids), sampling=GREEDY, slots=2, most_new=12)
    reply = next(iter(writer.write([Prompt(0, tuple(whole[before:]))])))
    context, said = thinker.open(), list(whole)
    close_calls = 0
    for token, ours in zip(reply.tokens.tolist(), reply.hidden.astype(np.float32), strict=True):
        thinker.sync(context, said)
        logits, theirs = thinker.logits(context), thinker.state(context).float().numpy()
        behind = float(logits.max() - logits[token])
        assert behind < 1.0  # how int8 sums are rounded differs from CPU to CPU, and may turn a close call
        close_calls += behind > 0
        said.append(token)
        likeness = float(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
        assert likeness > 0.97
    assert close_calls <= 1 and len(reply.tokens) > 3
