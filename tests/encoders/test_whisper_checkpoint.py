"""The checkpoint fits strictly, or one error says everything that is wrong."""

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from duplex.errors import WeightsError
from encoders import vocabulary, whisper_checkpoint

DIMS = {"n_mels": 80, "n_vocab": 260, "n_audio_ctx": 1500, "n_audio_state": 32, "n_audio_head": 2, "n_audio_layer": 1}
DIMS |= {"n_text_ctx": 448, "n_text_state": 32, "n_text_head": 2, "n_text_layer": 1}


def openai_layout() -> dict[str, torch.Tensor]:
    """A checkpoint of random tensors under OpenAI's names, written out by hand from its model.py."""
    out = {
        "encoder.conv1.weight": (32, 80, 3),
        "encoder.conv1.bias": (32,),
        "encoder.conv2.weight": (32, 32, 3),
        "encoder.conv2.bias": (32,),
    }
    out |= {
        "encoder.positional_embedding": (1500, 32),
        "decoder.positional_embedding": (448, 32),
        "decoder.token_embedding.weight": (260, 32),
    }
    for side, norm in (("encoder", "ln_post"), ("decoder", "ln")):
        out |= {f"{side}.{norm}.weight": (32,), f"{side}.{norm}.bias": (32,)}
        block = f"{side}.blocks.0"
        for attention in ("attn",) if side == "encoder" else ("attn", "cross_attn"):
            for name in ("query", "key", "value", "out"):
                out[f"{block}.{attention}.{name}.weight"] = (32, 32)
                if name != "key":
                    out[f"{block}.{attention}.{name}.bias"] = (32,)
            out |= {f"{block}.{attention}_ln.weight": (32,), f"{block}.{attention}_ln.bias": (32,)}
        out |= {
            f"{block}.mlp.0.weight": (128, 32),
            f"{block}.mlp.0.bias": (128,),
            f"{block}.mlp.2.weight": (32, 128),
            f"{block}.mlp.2.bias": (32,),
        }
        out |= {f"{block}.mlp_ln.weight": (32,), f"{block}.mlp_ln.bias": (32,)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).half() for name, shape in out.items()}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Write a checkpoint and load it with the vocabulary of bytes."""
    monkeypatch.setattr(vocabulary, "english", lambda path: vocabulary.bytewise())

    def write_and_load(tensors, int8=False, dims=DIMS):
        path = tmp_path / "model.pt"
        torch.save({"dims": dims, "model_state_dict": tensors}, path)
        return whisper_checkpoint.load(path, tmp_path / "vocabulary", int8=int8)

    return write_and_load


def test_every_tensor_lands_where_it_belongs(load):
    tensors = openai_layout()
    model = load(tensors)
    layer = model.decoder.layers[0]
    assert torch.equal(layer.encoder_attn.k_proj.weight, tensors["decoder.blocks.0.cross_attn.key.weight"].float())
    assert torch.equal(layer.encoder_attn_layer_norm.bias, tensors["decoder.blocks.0.cross_attn_ln.bias"].float())
    assert torch.equal(layer.final_layer_norm.bias, tensors["decoder.blocks.0.mlp_ln.bias"].float())
    assert torch.equal(model.encoder.layer_norm.weight, tensors["encoder.ln_post.weight"].float())
    assert torch.equal(model.head.weight, tensors["decoder.token_embedding.weight"].float())


def test_names_cover_the_library_exactly():
    config = whisper_checkpoint._config(DIMS, vocabulary.bytewise())
    with torch.device("meta"):
        wanted = WhisperForConditionalGeneration(config).state_dict().keys() - {"proj_out.weight"}
    assert {whisper_checkpoint.rename(name) for name in openai_layout()} == wanted


def test_one_error_lists_all_misfits(load):
    tensors = openai_layout()
    del tensors["encoder.conv1.bias"]
    tensors["decoder.ln.weight"] = torch.zeros(31)
    tensors["decoder.surplus"] = torch.zeros(1)
    with pytest.raises(WeightsError) as error:
        load(tensors)
    message = str(error.value)
    assert "model.encoder.conv1.bias is missing" in message
    assert "model.decoder.layer_norm.weight has shape (31,) instead of (32,)" in message
    assert "model.decoder.surplus is unexpected" in message


def test_int8_stays_close(load):
    exact, rough = load(openai_layout()), load(openai_layout(), int8=True)
    window = torch.rand(120, 80).numpy() * -5
    a, b = (model.step(model.encode(window), [257, 259, 104]).ravel() for model in (exact, rough))
    assert torch.corrcoef(torch.tensor([a.tolist(), b.tolist()]))[0, 1] > 0.98
    assert not (a == b).all()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + b"\0" * 100])
def test_a_damaged_file_is_a_weights_error(tmp_path, monkeypatch, content):
    monkeypatch.setattr(vocabulary, "english", lambda path: vocabulary.bytewise())
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="fetch the weights again"):
        whisper_checkpoint.load(path, tmp_path / "vocabulary")


def test_another_vocabulary_is_refused(load):
    with pytest.raises(WeightsError, match="English-only"):
        load(openai_layout(), dims=DIMS | {"n_vocab": 261})
