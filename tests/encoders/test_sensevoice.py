"""SenseVoice's network against the reference tensors, the official list of keys, and itself in other batches."""

from pathlib import Path

import pytest
import torch

from duplex.checkpoint import fill
from encoders.sensevoice import SenseVoice, SenseVoiceConfig, collapse
from tests.reference_weights import load_reference, read_keys, reference_state

REFERENCE = Path(__file__).parent / "reference"
TENSORS, INFO = load_reference(REFERENCE / "sensevoice_mini.safetensors")


@pytest.fixture(scope="module")
def network() -> SenseVoice:
    conf = {name.removeprefix("config/encoder_conf/"): value for name, value in INFO.items() if "encoder_conf" in name}
    assert conf.pop("sanm_shfit") == 0
    with torch.device("meta"):
        network = SenseVoice(SenseVoiceConfig(input_size=INFO["config/input_size"], vocab_size=INFO["config/vocab_size"], **conf))
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert [len(shapes), sum(value.numel() for value in network.state_dict().values())] == INFO["n_tensors_params"]
    fill(network, reference_state(shapes, INFO["weights_seed"]), "the rule", "SenseVoice")
    return network


def relative(found, wanted) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize(("prefix", "language", "itn"), [("auto/woitn", "auto", False), ("en/withitn", "en", True)])
def test_encoder_and_head_agree_with_the_reference(network, prefix, language, itn):
    wanted = {name.removeprefix(f"outputs/{prefix}/"): value for name, value in TENSORS.items() if prefix in name}
    lengths = TENSORS["feat_lens"]
    taps = {}
    layers = {"encoders0.0": network.encoder.encoders0[0], "encoders.0": network.encoder.encoders[0]}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: taps.__setitem__(name, out))
        for name, layer in {**layers, "after_norm": network.encoder.after_norm}.items()
    ]
    encoded = network(TENSORS["feats"], lengths, language, itn)
    for hook in hooks:
        hook.remove()
    valid = torch.arange(encoded.shape[1]) < (lengths + 4)[:, None]  # [B, L]
    assert torch.equal(wanted["olens"].long(), lengths + 4)
    if "enc_in" in wanted:
        prefixed = network.prefixed(TENSORS["feats"], language, itn)
        assert torch.equal(prefixed[valid], wanted["enc_in"][valid])
        assert sorted(f"taps/{name}" for name in (*taps, "after_pe")) == sorted(name for name in wanted if name.startswith("taps/"))
        for name, value in taps.items():
            assert relative(value[valid], wanted[f"taps/{name}"][valid]) < 1e-5
    assert relative(encoded[valid], wanted["enc_out"][valid]) < 1e-5
    logits = network.ctc(encoded)
    assert torch.equal(logits.argmax(dim=-1)[valid], wanted["ctc_argmax"][valid])
    assert relative(logits.logsumexp(dim=-1)[valid], wanted["ctc_logsumexp"][valid]) < 1e-5
    if "ctc_logits_first_cols" in wanted:
        assert relative(logits[valid], wanted["ctc_logits_first_cols"][valid]) < 1e-5


def test_full_size_has_exactly_the_official_keys():
    with torch.device("meta"):
        state = SenseVoice().state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == read_keys(REFERENCE / "sensevoice_full.txt")


@torch.inference_mode()
def test_padding_changes_nothing(network):
    feats, lengths = TENSORS["feats"], TENSORS["feat_lens"]
    together = network(feats, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = network(feats[row : row + 1, :length])[0]
        longer = network(torch.cat((feats[row : row + 1, :length], torch.full((1, 9, 560), 3.0)), dim=1), lengths[row : row + 1])[0]
        for other in (together[row, : length + 4], longer[: length + 4]):
            assert relative(other, alone) < 1e-5


@torch.inference_mode()
def test_interleaved_calls_give_the_same_bits(network):
    a, b = TENSORS["feats"][:1], TENSORS["feats"][1:, :20]
    first = network(a), network(b)
    again = [network(x) for x in (b, a, b, a)]
    assert torch.equal(again[1], first[0]) and torch.equal(again[3], first[0])
    assert torch.equal(again[0], first[1]) and torch.equal(again[2], first[1])


@torch.inference_mode()
def test_bfloat16_stays_close(network):
    low = SenseVoice(network.config)
    fill(low, network.state_dict(), "the rule", "SenseVoice", torch.bfloat16)
    x = TENSORS["feats"][:1]
    found, wanted = low(x.bfloat16()), network(x)
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(found.float(), wanted, dim=-1).min() > 0.99


def test_the_wrong_query_or_size_is_refused(network):
    with pytest.raises(ValueError, match="language must be one of auto, zh"):
        network(TENSORS["feats"], language="fr")
    for wrong in ({"attention_heads": 3}, {"kernel_size": 10}, {"num_blocks": 0}, {"input_size": 561}, {"query_rows": 15}):
        with pytest.raises(ValueError):
            SenseVoiceConfig(**wrong)


def test_repeats_and_blanks_are_dropped():
    assert collapse(torch.tensor([0, 5, 5, 0, 5, 7, 7, 0, 0])).tolist() == [5, 5, 7]
    assert collapse(torch.tensor([], dtype=torch.long)).tolist() == []
