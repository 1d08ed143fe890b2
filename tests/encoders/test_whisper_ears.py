"""The ears' promises: any chunking, no look into the future, bounded memory, long turns frozen piece by piece."""

import jiwer
import numpy as np
import pytest

from encoders.ears import Transcript
from encoders.mel import log_mel
from encoders.whisper_ears import EarsConfig, WhisperEars
from tests.encoders.babble import babble, hear
from tests.encoders.real_speech import plain, recorded, wrong_words


@pytest.fixture(scope="module")
def ears() -> WhisperEars:
    return WhisperEars.tiny(2)


@pytest.mark.parametrize("chunk", [97, 320, 1000, 48_000])
def test_any_chunking_gives_the_same_transcript(ears, chunk):
    audio = babble(3)
    whole, pieces = (ears.window(hear(ears, audio, size)) for size in (len(audio), chunk))
    assert np.abs(whole.frames - pieces.frames).max() < 1e-5
    assert ears.transcribe(pieces).text == ears.transcribe(whole).text != ""
    assert pieces.end == len(audio)


def test_later_input_changes_neither_window_nor_transcript(ears):
    audio = babble(4)
    state = hear(ears, audio[:32_000], 320)
    window = ears.window(state)
    before, frames = ears.transcribe(window), window.frames.copy()
    ears.feed(state, audio[32_000:])
    ears.begin_turn(state, 40_000)
    assert np.array_equal(window.frames, frames)
    assert ears.transcribe(window) == before


def test_a_turn_reaches_back_and_forgets_what_was_before(ears):
    audio = babble(5)
    state = hear(ears, audio, 320, turn_at=48_000, begin=32_000)  # announced a second late
    window = ears.window(state)
    assert window.start == 32_000 and len(window.frames) == 300
    assert np.abs(window.frames[3:] - log_mel(audio)[203:]).max() < 1e-5
    assert ears.transcribe(window).text != ears.transcribe(ears.window(hear(ears, audio, 320))).text


def test_a_turn_may_begin_in_the_future_and_a_window_may_be_empty(ears):
    state = ears.open()
    empty = ears.transcribe(ears.window(state))
    assert (empty.text, empty.end, empty.no_speech) == ("", 0, 1.0)
    ears.feed(state, babble(1))
    ears.begin_turn(state, 32_000)
    assert ears.transcribe(ears.window(state)).text == ""
    ears.feed(state, babble(2))
    assert len(ears.window(state).frames) == 100


def test_settling_makes_the_next_transcript_start_from_a_draft(ears):
    audio = babble(3)
    state = hear(ears, audio, 320)
    window = ears.window(state)
    transcript = ears.transcribe(window)
    ears.settle(state, window, transcript)
    again = ears.window(state)
    assert again.draft == transcript.draft != ()
    assert ears.transcribe(again).text == transcript.text


def test_a_stale_window_settles_nothing(ears):
    state = hear(ears, babble(2), 320)
    old = ears.window(state)
    stale = ears.transcribe(old)
    ears.feed(state, babble(1))
    new = ears.window(state)
    ears.settle(state, new, ears.transcribe(new))
    draft = state.draft
    ears.settle(state, old, stale)
    assert state.draft == draft and state.settled == new.end
    ears.begin_turn(state, 40_000)
    ears.settle(state, new, ears.transcribe(new))
    assert state.draft == () and state.start == 40_000
    ears.settle(state, ears.window(state), Transcript("from elsewhere", 1))
    assert state.text == "" and state.draft == ()


def test_long_turns_freeze_their_oldest_text_and_windows_stay_short(ears):
    audio = babble(60)
    state = ears.open()
    ears.begin_turn(state, 0)
    frozen = ""
    for at in range(0, len(audio), 16_000):
        ears.feed(state, audio[at : at + 16_000])
        window = ears.window(state)
        assert len(window.frames) <= 1300
        transcript = ears.transcribe(window)
        ears.settle(state, window, transcript)
        assert state.text.startswith(frozen) and transcript.text.startswith(state.text.strip())
        frozen = state.text
    assert frozen and state.start > 45 * 16_000


def test_memory_is_bounded_over_hours(ears):
    state = ears.open()
    ears.begin_turn(state, 0)
    block = babble(60)
    for _ in range(10):
        ears.feed(state, block)
    assert state.recent.buffer.shape == (3000, 80) and len(state.mel.rest) < 400
    window = ears.window(state)
    assert 2400 <= len(window.frames) <= 2402 and window.end == 600 * 16_000
    assert np.abs(window.frames - log_mel(block)[-len(window.frames) :]).max() < 1e-5


def test_rubbish_samples_do_no_harm(ears):
    audio = babble(1)
    audio[::50], audio[1::50], audio[2::50] = np.nan, np.inf, -np.inf
    state = hear(ears, audio, 320)
    assert np.isfinite(ears.window(state).frames).all()


def test_same_seed_same_ears():
    audio = babble(2)
    texts = [
        ears.transcribe(ears.window(hear(ears, audio, 320))).text
        for ears in (WhisperEars.tiny(2), WhisperEars.tiny(2), WhisperEars.tiny(1))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_most_that_may_be_kept_is_kept():
    ears = WhisperEars.tiny(2, EarsConfig(keep_s=29))
    state = ears.open()
    for _ in range(4):
        ears.feed(state, np.zeros(16_000 * 12, np.float32))
    assert len(ears.window(state).frames) >= 2900


def test_wrong_configuration_is_refused():
    for wrong in ({"freeze_after_s": 3}, {"keep_s": 29.5}, {"end_silence_s": -1}):
        with pytest.raises(ValueError):
            EarsConfig(**wrong)


@pytest.fixture(scope="module")
def real(edge_weights) -> WhisperEars:
    return WhisperEars.load(edge_weights["whisper-tiny-en"], edge_weights["whisper-vocab"])


@pytest.mark.weights
@pytest.mark.parametrize(("name", "errors"), [("jfk", 2), ("capital_slt", 1), ("brazil_rms", 3)])
def test_real_speech_is_understood(real, name, errors):
    transcript = real.transcribe(real.window(hear(real, recorded(name), 320)))
    assert wrong_words(name, transcript.text) <= errors
    assert transcript.no_speech < 0.3


@pytest.mark.weights
def test_noise_and_silence_say_nothing(real):
    rng = np.random.default_rng(0)
    for audio in (np.zeros(16_000), rng.standard_normal(32_000) * 0.03, rng.standard_normal(16_000) * 0.003):
        state = hear(real, audio.astype(np.float32), 320)
        transcript = real.transcribe(real.window(state))
        assert transcript.text == "" and transcript.no_speech > 0.5


@pytest.mark.weights
def test_interim_transcripts_grow_into_the_final_one(real):
    audio = recorded("jfk")
    state = real.open()
    real.begin_turn(state, 0)
    for at in range(0, len(audio), 8000):
        real.feed(state, audio[at : at + 8000])
        window = real.window(state)
        transcript = real.transcribe(window)
        real.settle(state, window, transcript)
    alone = real.transcribe(real.window(hear(real, audio, 320)))
    assert jiwer.wer(plain(alone.text), plain(transcript.text)) <= 0.1
