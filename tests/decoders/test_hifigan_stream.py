"""HiFi-GAN in pieces: exactly the sound of one run of torch's own form, for any pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoders.hifigan_stream import StreamingGan, least_frames, lookahead
from decoders.vits_net import VitsNetConfig
from decoders.vits_sound import Generator
from duplex.errors import WeightsError

CHANNELS = 6


def small() -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Generator(VitsNetConfig(channels=CHANNELS, generator=16))
        for weight in net.parameters():
            weight.data *= 2.5  # so that biases and far neighbours can be heard
    return net.requires_grad_(False)


NET = small()
GAN = StreamingGan({f"dec.{name}": value.numpy() for name, value in NET.state_dict().items()})


def latents(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((CHANNELS, frames)).astype(np.float32)


def whole(given: np.ndarray) -> np.ndarray:
    return NET(torch.from_numpy(given)[None])[0].numpy()


@settings(max_examples=25, deadline=None)
@given(pieces=st.lists(st.integers(0, 23), min_size=1, max_size=6).filter(any))
def test_pieces_are_the_whole(pieces: list[int]) -> None:
    given = latents(sum(pieces))
    state, parts, at = GAN.open(), [], 0
    for index, size in enumerate(pieces):
        parts.append(GAN.step(state, given[:, at : at + size], final=index == len(pieces) - 1))
        at += size
        known = max(0, 256 * at - lookahead()) if at >= least_frames() else 0
        assert sum(map(len, parts)) == (256 * at if index == len(pieces) - 1 else known)
    wanted = whole(given)
    assert np.abs(wanted).max() > 0.05
    assert np.allclose(np.concatenate(parts), wanted, atol=2e-6)


def test_the_lookahead_is_what_is_looked_at_and_no_more() -> None:
    one, other = latents(60), latents(60)
    other[:, 40:] += 1.0
    changed = np.flatnonzero(np.abs(whole(one) - whole(other)) > 1e-7)
    assert 40 * 256 - lookahead() <= changed[0] < 40 * 256 - lookahead() + 256


def test_replies_do_not_hear_each_other() -> None:
    states = [GAN.open() for _ in range(3)]
    heard: list[list[np.ndarray]] = [[], [], []]
    for at in range(0, 40, 8):
        for index, state in enumerate(states):
            heard[index].append(GAN.step(state, latents(40, index)[:, at : at + 8], final=at == 32))
    for index in range(3):
        assert np.allclose(np.concatenate(heard[index]), whole(latents(40, index)), atol=2e-6)


def test_nothing_gives_nothing_and_an_ended_reply_takes_no_more() -> None:
    state = GAN.open()
    assert len(GAN.step(state, latents(0), final=True)) == 0
    with pytest.raises(ValueError, match="has ended"):
        GAN.step(state, latents(1))


def test_what_is_no_voice_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="missing or damaged"):
        StreamingGan.load(tmp_path / "decoder.onnx")
    with pytest.raises(WeightsError, match=r"lacks 'dec\.conv_pre\.weight'"):
        StreamingGan({})


@pytest.mark.weights
def test_the_real_voice_in_pieces_is_the_whole(edge_weights: dict[str, Path]) -> None:
    from decoders.vits import Vits

    split = edge_weights["vits-joe-split"]
    gan, given = StreamingGan.load(split / "decoder.onnx"), np.random.default_rng(0).standard_normal((192, 60)).astype(np.float32)
    state = gan.open()
    parts = [gan.step(state, given[:, at : at + 20], final=at == 40) for at in (0, 20, 40)]
    assert len(parts[0]) == 20 * 256 - lookahead()
    assert np.allclose(np.concatenate(parts), Vits.load(split).render(given, 0, 60), atol=5e-6)
