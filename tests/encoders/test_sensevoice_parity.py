"""Live parity with the public package: its SenseVoice class and front-end at full size, the same random weights, three seconds of speech.

The package is read here and nowhere else. Both networks share one set of tensors, about 0.9 GB.
"""

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from duplex.checkpoint import fill
from encoders.input_projector import InputProjector, InputProjectorConfig
from encoders.sensevoice import SenseVoice
from encoders.sensevoice_frontend import Cmvn, features, read_cmvn
from tests.conftest import in_ci
from tests.encoders.sensevoice_folder import am_mvn
from tests.reference_weights import read_keys, reference_state

SPEECH = Path(__file__).parent / "speech" / "jfk.flac"
REFERENCE = Path(__file__).parent / "reference"
OURS = {"input_size": 560, "vocab_size": 25055}


@pytest.fixture(scope="module")
def funasr():
    """The package, or a reason why it is not here."""
    handlers = list(logging.root.handlers)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package reads all its models when it is imported
            import funasr
            from funasr.frontends import wav_frontend  # noqa: F401  the parts register themselves
            from funasr.models.sense_voice import model  # noqa: F401
    except ImportError as error:
        if in_ci():
            pytest.fail(f"funasr cannot be imported ({error}); install the extra `dev`")
        pytest.skip(f"funasr cannot be imported ({error})")
    finally:
        logging.root.handlers[:] = handlers  # it sets up logging for all
    return funasr


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    sound, rate = soundfile.read(SPEECH, dtype="float32")
    assert rate == 16_000
    return sound[:48_000]


@pytest.fixture(scope="module")
def cmvn() -> Cmvn:
    draw = np.random.default_rng(3)
    shift = -8 + draw.standard_normal(560).astype(np.float32)
    return Cmvn(shift, (0.2 + 0.1 * draw.random(560)).astype(np.float32))


@pytest.mark.parametrize("samples", [48_000, 16_001, 4000, 400, 399, 300, 257])
def test_the_front_end_is_the_packages(funasr, tmp_path, speech, cmvn, samples):
    from funasr.frontends.wav_frontend import WavFrontend

    (tmp_path / "am.mvn").write_text(am_mvn(cmvn))
    theirs = WavFrontend(str(tmp_path / "am.mvn"), lfr_m=7, lfr_n=6, dither=0.0)
    audio = speech[10_000 : 10_000 + samples] if samples < 38_000 else speech
    wanted, lengths = theirs(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
    found = features(audio, read_cmvn(tmp_path / "am.mvn"))
    assert found.shape == tuple(wanted[0].shape) and len(found) == int(lengths[0])
    assert np.abs(found - wanted[0].numpy()).max() <= 1e-4


def test_the_network_is_the_packages(funasr, speech, cmvn):
    from funasr.models.sense_voice.model import SenseVoiceSmall

    shapes = read_keys(REFERENCE / "sensevoice_full.txt")
    state = reference_state(shapes, 7)
    with torch.device("meta"):
        ours = SenseVoice()
        theirs = SenseVoiceSmall(
            encoder="SenseVoiceEncoderSmall",
            encoder_conf={"output_size": 512, "attention_heads": 4, "linear_units": 2048, "num_blocks": 50, "tp_blocks": 20,
                          "input_layer": "pe", "kernel_size": 11, "sanm_shfit": 0},
            **OURS,
        )  # fmt: skip
    fill(ours, state, "the rule", "SenseVoice")
    theirs.load_state_dict(state, strict=True, assign=True)
    theirs.eval()
    x = torch.from_numpy(features(speech, cmvn))[None]
    x = torch.cat((x, x.flip(1)))
    lengths = torch.tensor([x.shape[1], x.shape[1] - 13])
    with torch.inference_mode():
        wanted, counts = theirs.encoder(ours.prefixed(x, "en", True), lengths + 4)
        found = ours(x, lengths, "en", True)
        logits, head = ours.ctc(found), theirs.ctc.ctc_lo(wanted)
    valid = torch.arange(found.shape[1]) < counts[:, None]
    assert torch.equal(counts.long(), lengths + 4)
    assert (found - wanted)[valid].abs().max() <= 1e-4
    assert (logits - head)[valid].abs().max() <= 1e-4
    assert torch.equal(logits.argmax(-1)[valid], head.argmax(-1)[valid])


def test_the_package_hears_the_same_ids(funasr, speech, cmvn):
    """Through the package's own `inference`: query prefix, greedy reading and all, at a small size."""
    from funasr.models.sense_voice.model import SenseVoiceSmall

    from encoders.sensevoice import SenseVoiceConfig, collapse

    sizes = {"output_size": 32, "attention_heads": 2, "linear_units": 48, "num_blocks": 3, "tp_blocks": 2, "kernel_size": 11}
    ours = SenseVoice(SenseVoiceConfig(vocab_size=300, **sizes))
    theirs = SenseVoiceSmall(
        encoder="SenseVoiceEncoderSmall", encoder_conf={**sizes, "input_layer": "pe"}, input_size=560, vocab_size=300
    )
    state = reference_state({name: tuple(value.shape) for name, value in ours.state_dict().items()}, 9)
    fill(ours, state, "the rule", "SenseVoice")
    theirs.load_state_dict(state)
    theirs.eval()

    class Ids:
        """A tokenizer that only passes the ids on."""

        def decode(self, ids):
            return ids

    x = torch.from_numpy(features(speech, cmvn))[None]
    for language, itn in (("auto", False), ("ko", True)):
        with torch.inference_mode():
            results, _ = theirs.inference(
                x.clone(),
                torch.tensor([x.shape[1]]),
                tokenizer=Ids(),
                data_type="fbank",
                device="cpu",
                language=language,
                use_itn=itn,
            )
            logits = ours.ctc(ours(x, None, language, itn))[0]
        assert collapse(logits.argmax(-1)).tolist() == results[0]["text"] != []


def test_the_projector_is_the_packages(funasr):
    from funasr.models.llm_asr import adaptor

    config = InputProjectorConfig(encoder_dim=64, llm_dim=96, ffn_dim=80)
    theirs = adaptor.Transformer(downsample_rate=2, encoder_dim=64, llm_dim=96, ffn_dim=80, n_layer=2, attention_heads=8).eval()
    ours = InputProjector(config)
    fill(
        ours,
        reference_state({name: tuple(value.shape) for name, value in theirs.state_dict().items()}, 4),
        "the rule",
        "the projector",
    )
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 21, 64, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([21, 14])
    with torch.inference_mode():
        (wanted, counts), (found, made) = theirs(x, lengths), ours(x, lengths)
    assert torch.equal(made, counts)
    for row, count in enumerate(made.tolist()):
        assert (found - wanted)[row, :count].abs().max() <= 1e-5
