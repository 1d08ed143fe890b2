"""MinMo's whole path at tiny sizes: the same classes as `minmo-7b`, through a session, with interruption and change of voice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.build import build_parts, build_session
from agent.minmo import TokenVoiceConfig
from agent.part_loading import Loader, RuntimeConfig
from agent.profiles import load_profile
from agent.scripted_user import Say, ScriptedUser
from agent.thinker import ThinkerConfig
from agent.thinker_checkpoint import random_model
from agent.virtual_time import run_virtual
from agent.voice_sample import VoiceSample, kept_sample, read_sample, shipped_sample
from agent.worker import VirtualWorker
from apps.bench_clips import clips
from apps.bench_talks import talk
from decoders.campplus import CamPlus
from decoders.s3_tokenizer import S3Tokenizer
from decoders.token_voice import TokenVoice
from duplex.errors import ConfigError, InputError, WeightsError
from duplex.events import ResponseEnded, ResponseStarted, SpeechLabelled, Trouble, UserTranscript
from encoders.sensevoice_ears import SenseVoiceEars

COSTS_S = {"listen": 0.05, "think": 0.02, "speak": 0.02}


@pytest.fixture(scope="module")
def parts():
    return build_parts(load_profile("tiny"))


def test_the_tiny_profile_is_made_of_minmos_classes(parts) -> None:
    assert isinstance(parts.ears, SenseVoiceEars) and isinstance(parts.voice, TokenVoice)
    big = load_profile("minmo-7b")
    small = load_profile("tiny")
    assert (big.encoder, big.decoder) == (small.encoder, small.decoder) == ("sensevoice", "cosyvoice2")


def test_a_conversation_with_labels_an_interruption_in_the_sound_and_a_new_voice(parts) -> None:
    question, cut = clips("questions")[0].samples(), clips("interruptions")[0].samples()
    script = [Say(question), Say(cut, "speaking", 1.2), Say(question, "silence", 1.5)]
    profile = load_profile("tiny", ["session.response.group_tokens=5"])
    draw = np.random.default_rng(3).standard_normal((2 * 24_000, 2)).astype(np.float32)
    other = read_sample(VoiceSample(0.1 * draw, 24_000, "a hiss in stereo"), S3Tokenizer.tiny(), CamPlus.tiny())

    async def main():
        user = ScriptedUser(script, patience_s=4.0)
        session = build_session(profile, parts, user, VirtualWorker(cost_s=COSTS_S.__getitem__), echo="none")
        events, kept = session.events(), []

        async def watch() -> None:
            async for event in events:
                kept.append(event)
                if isinstance(event, ResponseEnded) and event.reason == "interrupted":
                    session.change_voice(parts.voice.read(other))

        watching = asyncio.create_task(watch())
        async with session:
            await session.wait()
        await watching
        return user, kept

    user, events = run_virtual(main())
    ended = [e for e in events if isinstance(e, ResponseEnded)]
    assert ended[0].reason == "interrupted" and len(ended) >= 2
    assert ended[0].text.startswith(ended[0].heard) and len(ended[0].heard) < len(ended[0].text)
    assert [e for e in events if isinstance(e, Trouble)] == []
    labels = [e for e in events if isinstance(e, SpeechLabelled)]
    assert labels and labels[0].language in ("zh", "en", "yue", "ja", "ko")
    assert any(isinstance(e, UserTranscript) and e.final for e in events)
    started = [e for e in events if isinstance(e, ResponseStarted)]
    assert all(e.latency_s is not None and e.latency_s < 3.0 for e in started)
    assert len(user.tracks()[1]) > 24_000


def test_the_output_projector_carries_hidden_states_to_the_voice(parts) -> None:
    projected = build_parts(load_profile("tiny", ["output=projector"]))
    hidden = np.ones((5, projected.thinker.thinker.hidden_size), np.float32)
    tokens = list(b"hello")
    sounds = []
    for scale in (0.0, 1.0):
        state = projected.voice.open()
        made = [*projected.voice.push(state, tokens, scale * hidden), *projected.voice.finish(state)]
        sounds.append(np.concatenate([chunk.samples for chunk in made]))
    assert len(sounds[0]) != len(sounds[1]) or not np.allclose(sounds[0], sounds[1])
    with pytest.raises(ValueError, match="hidden states"):
        list(projected.voice.push(projected.voice.open(), tokens, None))


def test_a_users_own_voice_is_read_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOLOGUE_HOME", str(tmp_path))
    files = (tmp_path / "tokenizer.onnx", tmp_path / "speaker.onnx")
    loads = []

    def load(*paths: Path) -> tuple[S3Tokenizer, CamPlus]:
        loads.append(paths)
        return S3Tokenizer.tiny(), CamPlus.tiny()

    first, second = (kept_sample(shipped_sample(), files, load) for _ in range(2))
    assert len(loads) == 1 and torch.equal(first.codes, second.codes) and torch.equal(first.mel, second.mel)
    files[0].write_bytes(b"other weights")
    kept_sample(shipped_sample(), files, load)
    assert len(loads) == 2


def test_the_shipped_voice_holds_its_words() -> None:
    sample = shipped_sample()
    assert sample.samples.ndim == 1 and 3 < len(sample.samples) / sample.rate_hz < 30
    assert len(sample.text.split()) > 10


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (np.zeros(48_000, np.float32), "silen"),
        (0.1 * np.random.default_rng(0).standard_normal(4_800).astype(np.float32), "short"),
        (0.1 * np.random.default_rng(0).standard_normal(24_000 * 600).astype(np.float32), "long"),
    ],
)
def test_what_is_no_voice_sample_is_one_sentence(sample: np.ndarray, told: str) -> None:
    with pytest.raises(InputError) as caught:
        build_parts(load_profile("tiny"), voice=VoiceSample(sample, 24_000, "hello there"))
    assert told in str(caught.value).lower() and "\n" not in str(caught.value)


def test_a_voice_for_a_profile_that_has_its_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be cloned"):
        build_parts(load_profile("edge"), voice=shipped_sample())


def test_a_gpu_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU"):
        RuntimeConfig(device="cuda").torch_device()
    assert RuntimeConfig().torch_device().type == "cpu"


def test_full_size_is_for_minmos_parts_alone() -> None:
    with pytest.raises(ConfigError, match="other parts"):
        build_parts(load_profile("edge"), random_weights=True)


def test_weights_that_are_not_there_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOLOGUE_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="duologue fetch minmo-7b"):
        build_parts(load_profile("minmo-7b"))


def test_a_profile_whose_parts_lack_weights_says_which() -> None:
    loader = Loader(load_profile("minmo-7b"))
    with pytest.raises(ConfigError, match="cosyvoice2"):
        loader.voice({}, loader.tiny().thinker)  # type: ignore[arg-type]


def test_the_voices_settings_reach_its_parts() -> None:
    profile = load_profile(
        "tiny", ["voice.steps=1", "voice.guidance=0", "voice.flow_cached=false", "voice.token2wav.first_audio_ms=200"]
    )
    voice = build_parts(profile).voice
    assert isinstance(voice, TokenVoice)
    assert voice.token2wav.config.first_audio_ms == 200  # type: ignore[union-attr]
    assert voice.open().wav.flow.memory is None and voice.open().wav.flow.steps == 1
    with pytest.raises(ConfigError, match="voice"):
        build_parts(load_profile("tiny", ["voice.stepps=1"]))
    assert TokenVoiceConfig().steps == 10


def test_a_random_model_has_the_asked_shape_and_finite_states() -> None:
    from transformers import Qwen2Config

    from agent.thinker import Thinker
    from agent.vocabulary import ByteVocabulary

    shape = Qwen2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    thinker = Thinker(random_model(shape, torch.bfloat16, "cpu"), ByteVocabulary(), ThinkerConfig(max_context_tokens=64))
    context = thinker.open()
    thinker.sync(context, thinker.encode("hello"))
    assert torch.isfinite(thinker.logits(context)).all()


def test_the_tiny_profile_answers_to_the_end(parts) -> None:
    done = talk(load_profile("tiny"), parts, [Say(clips("questions")[0].samples())], paced=False, patience_s=2.0)
    (ended,) = done.of(ResponseEnded)
    assert ended.reason == "completed" and ended.heard == ended.text
