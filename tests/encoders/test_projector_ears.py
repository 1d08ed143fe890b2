"""Ears made of the projector: any chunking, any moment of asking, nothing heard twice, bounded memory."""

import numpy as np
import pytest
import torch

from encoders.mel import POWER_FLOOR, log_mel
from encoders.projector_ears import ProjectorEars, ProjectorEarsConfig, Taken
from encoders.word_lexicon import Lexicon
from tests.encoders.babble import babble, hear
from tests.encoders.real_speech import recorded, wrong_words


def embed(ids):
    return 0.02 * torch.randn(256, 24, generator=torch.Generator().manual_seed(7))[list(ids)]


def encode(text):
    return list(text.encode())


def tiny(seed=3, config=None, coarse=False):
    """coarse: words of two letters are one token."""
    return ProjectorEars.tiny((lambda text: [ord(text.strip()[0])]) if coarse else encode, embed, seed, config)


@pytest.fixture(scope="module")
def ears():
    return tiny()


def listened(ears, audio, every, chunk=320):
    """Asked every so many samples, as a session asks."""
    state, asked = ears.open(), 0
    ears.begin_turn(state, 0)
    for at in range(0, len(audio), chunk):
        ears.feed(state, audio[at : at + chunk])
        if at - asked >= every:
            asked = at
            window = ears.window(state)
            ears.settle(state, window, ears.transcribe(window))
    return state


@pytest.mark.parametrize("chunk", [97, 1000, 48_000])
def test_any_chunking_gives_the_same_words(ears, chunk):
    audio = babble(3)
    one, other = (ears.transcribe(ears.window(hear(ears, audio, size))) for size in (len(audio), chunk))
    assert one.text == other.text != ""
    assert np.allclose(one.speech.vectors, other.speech.vectors, atol=1e-4)


@pytest.mark.parametrize("every", [3200, 9600, 20_000])
def test_it_does_not_matter_when_the_words_are_asked_for(ears, every):
    audio = babble(18, 5)
    at_once = ears.transcribe(ears.window(hear(ears, audio, 320)))
    now_and_then = ears.transcribe(ears.window(listened(ears, audio, every)))
    assert now_and_then.text == at_once.text
    assert np.allclose(now_and_then.speech.vectors, at_once.speech.vectors, atol=1e-4)


def test_what_is_final_keeps_its_keys_and_is_not_heard_again(ears):
    audio = babble(6, 2)
    state = listened(ears, audio[:64_000], 9600)
    first = ears.transcribe(ears.window(state))
    ears.settle(state, ears.window(state), first)
    ears.feed(state, audio[64_000:])
    window = ears.window(state)
    second = ears.transcribe(window)
    same = sum(1 for a, b in zip(first.speech.keys, second.speech.keys, strict=False) if a == b)
    assert same >= len(first.speech.keys) // 2 > 3
    assert len(window.frames) < 100 * 2 + 33
    assert len(set(second.speech.keys)) == len(second.speech.keys) and max(second.speech.keys) < 0


def test_how_likely_the_first_word_shows_listening_comes_with_the_first_word(ears):
    audio = babble(4)
    assert ears.transcribe(ears.window(hear(ears, audio, 320))).listening is None  # no letter is such a word
    for openers in (0, 1):
        listens = ProjectorEars(ears.net, _named(ears.search.lexicon, openers), ears.search.ngrams, encode, embed)
        heard = listens.transcribe(listens.window(hear(listens, audio, 320)))
        opener = heard.text.split()[0] == "Yeah"
        assert 0 <= heard.listening <= 1 and (heard.listening > 0.5) == opener == (openers == ord(letter(ears, audio)) % 2)
        assert listens.transcribe(listens.window(listened(listens, audio, 9600))).listening == pytest.approx(
            heard.listening, abs=1e-3
        )


def letter(ears, audio):
    return ears.transcribe(ears.window(hear(ears, audio, 320))).text[0].lower()


def _named(lexicon, openers):
    """Every second letter is "yeah", the others "no"."""
    names = ("yeah" if ord(word) % 2 == openers else "no" for word in lexicon.words[2:])
    return Lexicon(("", "", *names), lexicon.word, lexicon.phones, lexicon.odds)


def test_the_pieces_are_the_words(ears):
    heard = ears.transcribe(ears.window(hear(ears, babble(4), 320)))
    assert "".join(heard.speech.pieces) == heard.text and heard.text[-1] in ".?"
    assert heard.speech.vectors.shape == (len(heard.speech.keys), 24) and len(heard.speech.pieces) == len(heard.text)
    words = heard.speech.without_end(".?")
    assert len(words.keys) == len(heard.text.rstrip(".?"))
    trimmed = heard.speech.without_end(heard.text)
    assert trimmed.keys == () and trimmed.vectors.shape == (0, 24)


def test_a_new_turn_forgets_the_old_one_and_an_old_window_settles_nothing(ears):
    audio = babble(4, 9)
    state = hear(ears, audio, 320)
    window = ears.window(state)
    old = ears.transcribe(window)
    ears.begin_turn(state, len(audio))
    ears.settle(state, window, old)
    assert state.taken is None
    empty = ears.transcribe(ears.window(state))
    assert (empty.text, empty.no_speech, empty.speech) == ("", 1.0, None)


def test_long_turns_go_on_and_memory_is_bounded(ears):
    audio = np.tile(babble(5, 1), 9)
    at_first, later = (listened(ears, some, 9600) for some in (audio[:100_000], audio))

    def kept(state):
        stream = state.taken.stream
        return [x.numel() for pair in stream.past for x in pair] + [x.numel() for x in (*stream.tails, stream.near, stream.stem)]

    assert kept(at_first) == kept(later) and later.taken.stream.chunks > 130
    assert len(ears.window(later).frames) < 150


def test_what_may_have_been_said_instead_is_in_the_vectors():
    mixed, plain = (tiny(config=ProjectorEarsConfig(snap=snap), coarse=True) for snap in (0.0, 1.0))
    one, other = (ears.transcribe(ears.window(hear(ears, babble(3), 320))) for ears in (mixed, plain))
    assert one.text == other.text
    expected = embed([ord(piece.strip()) for piece in other.speech.pieces]).numpy()
    assert np.allclose(other.speech.vectors, expected, atol=1e-6)
    apart = np.abs(one.speech.vectors - expected).max(1)
    words = [word for word in mixed.search.best(listened_state(mixed)).words()]
    doubtful = [bool(word.others) for word in words]
    assert any(doubtful) and [bool(far > 1e-6) for far in apart[: len(doubtful)]] == doubtful


def listened_state(ears):
    state = hear(ears, babble(3), 320)
    window = ears.window(state)
    quiet = 32 + -(len(window.frames) + 32) % 16
    padded = np.concatenate([window.frames, np.full((quiet, 80), np.log10(POWER_FLOOR), np.float32)])
    return ears._take(Taken(0, ears.net.open(), ears.search.open(), ears._nothing), padded, 0)[1].search


@pytest.mark.parametrize("wrong", [{"keep_s": 40}, {"end_silence_s": 3}, {"end_silence_s": 0.2}, {"snap": 2}])
def test_wrong_settings_say_what_to_change(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ProjectorEarsConfig(**wrong)


def test_in_bfloat16_it_hears_nearly_the_same():
    exact, light = tiny(), tiny()
    light.compute_in_bfloat16()
    assert light.net.phone.weight.dtype == torch.bfloat16
    odds = []
    for ears in (exact, light):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=ears is light):
            frames = torch.from_numpy(log_mel(babble(2.56, 4)))[None, :240]
            odds.append(ears.net(frames, ears.net.open())[0].float())
    assert 0 < (odds[0] - odds[1]).abs().max() < 0.1 * odds[0].abs().max()
    assert light.transcribe(light.window(listened(light, babble(4, 4), 9600))).text


@pytest.fixture(scope="module")
def real(edge_weights):
    return ProjectorEars.load(edge_weights["whisper-tiny-en"], encode, embed)


@pytest.mark.weights
@pytest.mark.parametrize(("name", "errors"), [("jfk", 8), ("capital_slt", 1), ("brazil_rms", 3)])
def test_real_speech_is_understood(real, name, errors):
    assert wrong_words(name, real.transcribe(real.window(listened(real, recorded(name), 5120))).text) <= errors


@pytest.mark.weights
def test_noise_and_silence_say_nothing(real):
    rng = np.random.default_rng(0)
    for audio in (np.zeros(16_000), rng.standard_normal(32_000) * 0.03, rng.standard_normal(16_000) * 0.003):
        transcript = real.transcribe(real.window(hear(real, audio.astype(np.float32), 320)))
        assert transcript.text == "" and transcript.no_speech > 0.5
