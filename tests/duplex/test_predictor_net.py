"""The trained predictor's parts: streaming equals offline, the future never changes the past, and a tick is cheap."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from duplex.audio import TICK
from duplex.errors import ConfigError, WeightsError
from duplex.predictor import RulePredictor, TickInput, in_between
from duplex.predictor_choice import PredictorConfig, choose_predictor
from duplex.predictor_features import STATE, WORDS, FeatureState, Heard, sound_features, state_features
from duplex.predictor_net import FloorNet, NetConfig
from duplex.predictor_trained import TrainedConfig, TrainedPredictor

TICKS = 150


def noise(ticks: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(ticks * TICK)).astype(np.float32)


def heard(**changes: object) -> Heard:
    return replace(Heard(noise(1), 0.1, False, 0.3, False), **changes)  # type: ignore[arg-type]


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(2, TICKS, 8, 40), torch.randn(2, TICKS, STATE)


@pytest.fixture(scope="module")
def net() -> FloorNet:
    torch.manual_seed(1)
    return FloorNet(NetConfig(window=20)).eval()


@pytest.mark.parametrize("step", [1, 3, 50])
def test_features_streamed_are_those_of_the_whole(step: int) -> None:
    sound, state = noise(TICKS), FeatureState()
    mel, more = sound_features(FeatureState(), sound)
    parts = [sound_features(state, sound[i * TICK : (i + step) * TICK]) for i in range(0, TICKS, step)]
    assert np.abs(np.concatenate([p[0] for p in parts]) - mel).max() < 1e-5
    assert np.abs(np.concatenate([p[1] for p in parts]) - more).max() < 1e-5


def test_later_sound_changes_no_earlier_feature() -> None:
    sound = noise(40)
    other = sound.copy()
    other[20 * TICK :] = 0.5
    for a, b in zip(sound_features(FeatureState(), sound), sound_features(FeatureState(), other), strict=True):
        assert np.array_equal(a[:20], b[:20])


def test_pitch_is_found_and_told_against_the_speakers_mean() -> None:
    t = np.arange(20 * TICK) / 16000
    state = FeatureState()
    for hz in (120.0, 240.0):
        tone = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 8)) * 0.1
        _, more = sound_features(state, tone.astype(np.float32))
        assert more[-1, 4:8].min() > 0.8
        first = float(more[1, 0])
    assert 0.5 < first <= 1.5  # an octave above the mean so far
    assert np.exp2(state.pitch) == pytest.approx(190, abs=60)


@pytest.mark.parametrize("sound", [np.zeros(TICK, np.float32), np.full(TICK, np.nan, np.float32), np.full(TICK, 5.0, np.float32)])
def test_any_sound_gives_numbers(sound: np.ndarray) -> None:
    state = FeatureState()
    for _ in range(3):
        mel, more = sound_features(state, sound)
        assert np.isfinite(mel).all() and np.isfinite(more).all()


def test_words_count_only_where_they_are_known() -> None:
    told = {
        name: state_features(FeatureState(), heard(**changes))[-WORDS:]
        for name, changes in {
            "none": {},
            "stale": {"transcript": "Is it?", "sentence_ends": 0.5},
            "fresh": {"transcript": "Is it?", "fresh": True, "sentence_ends": 0.5},
            "endless": {"transcript": "Is it?", "fresh": True},
            "over": {"transcript": "stop", "agent_speaking": True},
        }.items()
    }
    assert not told["none"].any() and not told["stale"].any()
    assert told["fresh"][:4].tolist() == [1, 1, 1, 1] and told["endless"][3:5].tolist() == [0, 0]
    assert told["over"][5:8].tolist() == [1, 0, 1] and not told["over"][:5].any()


@pytest.mark.parametrize("step", [1, 7, 40])
def test_streaming_equals_offline(net: FloorNet, step: int) -> None:
    mel, beside = inputs()
    with torch.no_grad():
        whole = net(net.open(2), mel, beside)
        state = net.open(2)
        parts = torch.cat([net(state, mel[:, i : i + step], beside[:, i : i + step]) for i in range(0, TICKS, step)], 1)
    assert (whole - parts).abs().max() < 1e-4


def test_the_future_changes_nothing(net: FloorNet) -> None:
    mel, beside = inputs()
    later, beside2 = mel.clone(), beside.clone()
    later[:, 80:], beside2[:, 80:] = 9.0, -9.0
    with torch.no_grad():
        a, b = net(net.open(2), mel, beside), net(net.open(2), later, beside2)
    assert torch.allclose(a[:, :80], b[:, :80], atol=1e-5) and not torch.allclose(a[:, 80:], b[:, 80:], atol=0.1)


def test_memory_does_not_grow(net: FloorNet) -> None:
    mel, beside = inputs()
    state = net.open(2)
    with torch.no_grad():
        for i in range(100):
            net(state, mel[:, i : i + 1], beside[:, i : i + 1])
    assert state.keys.shape[2] == net.config.window - 1 and state.frames.shape[2] == 3


def test_conversations_in_one_batch_do_not_mix(net: FloorNet) -> None:
    mel, beside = inputs()
    with torch.no_grad():
        both, one = net(net.open(2), mel, beside), net(net.open(1), mel[1:], beside[1:])
    assert torch.allclose(both[1:], one, atol=1e-5)


def test_a_shape_that_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match="multiple of heads"):
        NetConfig(width=130)


def known(**changes: object) -> TickInput:
    base = dict(at=0, voiced=False, voiced_s=1.0, silence_s=0.3, agent_speaking=False, transcript="", transcript_fresh=False)
    return TickInput(**{**base, **changes})  # type: ignore[arg-type]


def sure(respond: float, taken: float) -> FloorNet:
    """A network that always says the same."""
    fixed = FloorNet(NetConfig(window=8))
    with torch.no_grad():
        fixed.head.weight.zero_()
        p = torch.tensor([max(1 - respond, 1e-4), max(respond, 1e-4), 0.001 * taken, 0.001 * (1 - taken)])
        fixed.head.bias.copy_(p.log())
    return fixed


def ready_after_s(predictor: TrainedPredictor, **words: object) -> float:
    state = predictor.open()
    predictor.hear(state, heard())
    return next(s / 100 for s in range(500) if predictor.tick(state, known(silence_s=s / 100, **words)).respond >= 0.8)


def test_a_sure_end_is_answered_soon_and_a_sure_pause_late() -> None:
    config = TrainedConfig()
    assert ready_after_s(TrainedPredictor(sure(0.99, 0.5), config=config)) == pytest.approx(config.complete_s, abs=0.02)
    assert ready_after_s(TrainedPredictor(sure(0.01, 0.5), config=config)) == pytest.approx(config.incomplete_s, abs=0.02)
    assert config.complete_s < ready_after_s(TrainedPredictor(sure(0.4, 0.5), config=config)) < config.incomplete_s


@pytest.mark.parametrize(
    ("sounds", "reads", "whole"), [(0.99, 0.99, 1.0), (0.99, 0.5, 0.0), (0.5, 0.99, 0.0), (0.7, 0.7, 0.0), (0.99, None, 0.5)]
)
def test_network_and_heads_may_have_to_agree(sounds: float, reads: float | None, whole: float) -> None:
    config = TrainedConfig(agree="both", unread=0.5, surely=4.0, hardly=1.0)
    words = {"transcript": "How old are you?", "transcript_fresh": True, "sentence_ends": reads}
    predictor = TrainedPredictor(sure(sounds, 0.5), config=config)
    expected = in_between(whole, config.complete_s, config.incomplete_s)
    assert ready_after_s(predictor, **words) == pytest.approx(expected, abs=0.02)
    alone = TrainedPredictor(sure(sounds, 0.5))
    assert ready_after_s(alone, **words) == ready_after_s(alone)


def test_the_surer_the_sooner() -> None:
    waits = [in_between(whole, 0.25, 2.0) for whole in np.linspace(0, 1, 4)]
    assert waits == pytest.approx([2.0, 1.0, 0.5, 0.25])


@pytest.mark.parametrize("wrong", [{"surely": 1.0, "hardly": 1.0}, {"newest": 0}, {"complete_s": 3.0}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainedConfig(**wrong)  # type: ignore[arg-type]


def test_before_anything_was_heard_it_waits_and_never_answers_a_voice() -> None:
    predictor = TrainedPredictor(sure(0.99, 0.5))
    state = predictor.open()
    assert predictor.tick(state, known(silence_s=0.5)).respond < 0.8
    predictor.hear(state, heard())
    assert predictor.tick(state, known(voiced=True, silence_s=0.0)).respond == 0


@pytest.mark.parametrize(("taken", "yields"), [(0.95, True), (0.05, False)])
def test_over_the_agent_it_yields_or_talks_on(taken: float, yields: bool) -> None:
    predictor = TrainedPredictor(sure(0.0, taken), config=TrainedConfig(overlaps="net"))
    state = predictor.open()
    predictor.hear(state, heard(agent_speaking=True, voiced=True, silence_s=0.0))
    going = predictor.tick(state, known(agent_speaking=True, voiced=True, silence_s=0.0, voiced_s=0.4))
    over = predictor.tick(state, known(agent_speaking=True, silence_s=0.3, voiced_s=0.4))
    assert (going.yield_ >= 0.8) is yields and (over.yield_ >= 0.8) is yields and (over.backchannel >= 0.8) is not yields
    assert predictor.tick(state, known(agent_speaking=True, voiced=True, voiced_s=0.05)).yield_ < 0.8


def test_overlaps_may_be_left_to_the_rules() -> None:
    predictor = TrainedPredictor(sure(0.0, 0.01))
    over = known(agent_speaking=True, voiced=True, voiced_s=0.7, transcript="what about", silence_s=0.0)
    assert predictor.tick(predictor.open(), over) == RulePredictor().tick(None, over)


def test_a_profile_chooses(tmp_path: Path, net: FloorNet) -> None:
    assert isinstance(choose_predictor(PredictorConfig()), RulePredictor)
    TrainedPredictor(net).save(tmp_path / "p.safetensors")
    chosen = choose_predictor(PredictorConfig(kind="trained", weights=str(tmp_path / "p.safetensors"), takeover_s=0.5))
    assert isinstance(chosen, TrainedPredictor) and chosen.rules.config.takeover_s == 0.5
    with pytest.raises(WeightsError, match="missing"):
        choose_predictor(PredictorConfig(kind="trained", weights=str(tmp_path / "none.safetensors")))


def test_weights_travel_through_a_file(tmp_path: Path, net: FloorNet) -> None:
    TrainedPredictor(net, 3.0, -1.5).save(tmp_path / "w" / "p.safetensors")
    loaded = TrainedPredictor.load(tmp_path / "w" / "p.safetensors")
    assert (loaded.surely, loaded.hardly, loaded.net.config) == (3.0, -1.5, net.config)
    mel, beside = inputs()
    with torch.no_grad():
        a, b = net(net.open(2), mel, beside), loaded.net(loaded.net.open(2), mel, beside)
    assert (a - b).abs().max() < 0.05


def test_files_that_are_no_predictor_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="missing"):
        TrainedPredictor.load(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="train it again"):
        TrainedPredictor.load(tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "odd.safetensors", {"predictor": '{"net": {}, "surely": 1, "hardly": 0}'})
    with pytest.raises(WeightsError, match="does not fit"):
        TrainedPredictor.load(tmp_path / "odd.safetensors")
