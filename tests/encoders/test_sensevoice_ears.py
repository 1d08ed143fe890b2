"""The ears' promises: any chunking, no look into the future, bounded memory, long turns frozen piece by piece, conversations apart."""

import numpy as np
import pytest
import torch

from duplex.fbank import fbank
from encoders.ears import Transcript
from encoders.sensevoice import QUERIES
from encoders.sensevoice_ears import SenseVoiceEars, SenseVoiceEarsConfig
from encoders.sensevoice_frontend import FBANK, features
from encoders.sensevoice_labels import RichLabels
from tests.encoders.babble import babble, hear


@pytest.fixture(scope="module")
def ears() -> SenseVoiceEars:
    return SenseVoiceEars.tiny(2)


@pytest.mark.parametrize("chunk", [97, 320, 1000, 48_000])
def test_any_chunking_gives_the_same_transcript(ears, chunk):
    audio = babble(3)
    whole, pieces = (ears.window(hear(ears, audio, size)) for size in (len(audio), chunk))
    assert np.array_equal(whole.frames, pieces.frames)
    assert ears.transcribe(pieces) == ears.transcribe(whole)
    assert ears.transcribe(whole).text != "" and pieces.end == len(audio)


def test_a_window_is_encoded_as_its_audio_alone_would_be(ears):
    audio = babble(4)
    window = ears.window(hear(ears, audio, 320, turn_at=32_000, begin=16_000))
    parts = ears.parts
    offline = torch.from_numpy(features(audio[16_000:], parts.cmvn))
    with torch.inference_mode():
        encoded = parts.network(offline[None])[0]
    assert torch.equal(ears.states(window), encoded[QUERIES:])
    assert ears.states(window).shape == (len(offline), parts.network.config.output_size)


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
    assert window.start == 32_000
    assert np.array_equal(window.frames, fbank(audio, FBANK)[200:])
    assert ears.transcribe(window).text != ears.transcribe(ears.window(hear(ears, audio, 320))).text


def test_a_turn_may_begin_in_the_future_and_a_window_may_be_empty(ears):
    state = ears.open()
    empty = ears.transcribe(ears.window(state))
    assert (empty.text, empty.end, empty.no_speech, empty.labels) == ("", 0, 1.0, RichLabels())
    assert len(ears.states(ears.window(state))) == 0
    ears.feed(state, babble(1))
    ears.begin_turn(state, 32_000)
    assert ears.transcribe(ears.window(state)).text == ""
    ears.feed(state, babble(2))
    assert len(ears.window(state).frames) == 98


def test_a_long_turn_is_frozen_piece_by_piece():
    ears = SenseVoiceEars.tiny(2, SenseVoiceEarsConfig(freeze_after_s=3.0, freeze_at_least_s=1.0, keep_s=8.0))
    audio = babble(10)
    state = ears.open()
    ears.begin_turn(state, 0)
    frozen = ""
    for at in range(0, len(audio), 16_000):
        ears.feed(state, audio[at : at + 16_000])
        window = ears.window(state)
        assert len(window.frames) <= 400
        transcript = ears.transcribe(window)
        assert transcript.text.startswith(transcript.frozen_text) and transcript.frozen_text.startswith(frozen)
        ears.settle(state, window, transcript)
        frozen = state.text
        assert transcript.end - state.start <= 3 * 16_000
    assert frozen and state.start > 6 * 16_000 and state.labels is not None
    quiet = (np.arange(len(audio)) % 6400) >= 4800
    assert quiet[state.start + 200], "cut in a gap"
    ears.begin_turn(state, len(audio))
    assert (state.text, state.labels, ears.transcribe(ears.window(state)).text) == ("", None, "")


def test_what_was_never_settled_is_lost_beyond_the_limit_and_memory_stays(ears):
    state = ears.open()
    ears.begin_turn(state, 0)
    for seed in range(8):
        ears.feed(state, babble(5, seed))
    window = ears.window(state)
    assert len(window.frames) == 2400 and window.end == 40 * 16_000
    assert np.array_equal(window.frames, fbank(np.concatenate([babble(5, seed) for seed in range(8)]), FBANK)[-2400:])
    assert state.recent.buffer.nbytes < 1_000_000
    assert ears.transcribe(window).frozen_until > window.start


def test_a_window_that_was_overtaken_settles_nothing():
    ears = SenseVoiceEars.tiny(2, SenseVoiceEarsConfig(freeze_after_s=2.0, freeze_at_least_s=1.0))
    state = hear(ears, babble(3), 320)
    old = ears.window(state)
    ears.feed(state, babble(1))
    new = ears.window(state)
    ears.settle(state, new, ears.transcribe(new))
    kept = (state.text, state.start, state.settled)
    ears.settle(state, old, ears.transcribe(old))
    ears.settle(state, new, Transcript("something else", new.end))
    assert (state.text, state.start, state.settled) == kept and kept[0] and kept[2] == 64_000
    ears.begin_turn(state, 50_000)
    ears.settle(state, new, ears.transcribe(new))
    assert (state.text, state.start) == ("", 50_000)


def test_interleaved_conversations_hear_what_each_alone_hears(ears):
    audio = [babble(2, seed) for seed in range(10)]
    alone = [ears.transcribe(ears.window(hear(ears, sound, 320))) for sound in audio]
    states = [ears.open() for _ in audio]
    for at in range(0, 32_000, 320):
        for state, sound in zip(states, audio, strict=True):
            ears.feed(state, sound[at : at + 320])
            if at % 6400 == 0:
                ears.transcribe(ears.window(state))
    assert [ears.transcribe(ears.window(state)) for state in states] == alone
    assert len({transcript.text for transcript in alone}) > 1


def test_rubbish_samples_are_taken_as_silence_or_full_scale(ears):
    state = ears.open()
    sound = babble(1)
    sound[1000:1200], sound[2000], sound[3000] = np.nan, np.inf, -9.0
    ears.feed(state, sound)
    transcript = ears.transcribe(ears.window(state))
    assert np.isfinite(ears.window(state).frames).all() and 0 <= transcript.no_speech <= 1


def test_labels_come_with_the_words_and_no_speech_from_the_model(ears):
    transcript = ears.transcribe(ears.window(hear(ears, babble(2), 320)))
    assert isinstance(transcript, Transcript) and isinstance(transcript.labels, RichLabels)
    loud = SenseVoiceEars(ears.parts, SenseVoiceEarsConfig(language="zh", itn=False))
    other = loud.transcribe(loud.window(hear(loud, babble(2), 320)))
    assert other.no_speech != transcript.no_speech
    assert "<" not in transcript.text and "|" not in transcript.text and "▁" not in transcript.text


def test_settings_that_cannot_be_met_are_refused():
    for wrong in ({"language": "fr"}, {"keep_s": 29.5}, {"freeze_after_s": 4.0}, {"freeze_at_least_s": 0.0}):
        with pytest.raises(ValueError):
            SenseVoiceEarsConfig(**wrong)
