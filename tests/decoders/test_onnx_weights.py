"""Weights come back out of exported graphs to the same numbers, and graphs of other models are refused by name."""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from decoders.campplus import CamPlus, CamPlusConfig, speaker_features
from decoders.campplus_checkpoint import OnnxSpeakerEncoder, load_speaker_encoder
from decoders.onnx_weights import graph_weights, module_path, read_graph, read_onnx_weights
from decoders.s3_tokenizer import TINY, S3Tokenizer, S3TokenizerConfig
from decoders.s3_tokenizer_checkpoint import RENAMED, OnnxS3Tokenizer, load_s3_tokenizer
from duplex.checkpoint import fill
from duplex.errors import WeightsError
from tests.decoders.test_campplus import random_state

SOUND = (np.random.default_rng(0).standard_normal(100_000) * 0.1).astype(np.float32)
SMALL_SPEAKER = CamPlusConfig(head_channels=4, first_channels=16, growth=4, bottleneck=2, layers=(2, 2, 1), embedding=24)
SMALL_TOKENIZER = S3TokenizerConfig(bands=128, width=48, heads=3, layers=2)


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def export(model, arguments, path, inputs, axes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, arguments, path, input_names=inputs, output_names=["out"], dynamic_axes=axes, dynamo=False, opset_version=17
        )


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    model = CamPlus(SMALL_SPEAKER)
    fill(model, random_state(model), "random", "CAM++")
    path = tmp_path_factory.mktemp("onnx") / "campplus.onnx"
    export(model, (torch.randn(1, 220, 80),), path, ["input"], {"input": {1: "t"}})
    return model, path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = S3Tokenizer(SMALL_TOKENIZER)
        torch.nn.init.normal_(model.quantizer._codebook.project_down.weight, std=0.3)
        for block in model.encoder.blocks:  # norms that say which they are
            torch.nn.init.normal_(block.attn_ln.weight, 1.0, 0.1)
            torch.nn.init.normal_(block.mlp_ln.bias, 0.0, 0.1)
    model.requires_grad_(False).train(False)
    path = tmp_path_factory.mktemp("onnx") / "tokenizer.onnx"
    arguments = (torch.randn(1, 128, 220), torch.tensor([220], dtype=torch.int32))
    export(model, arguments, path, ["feats", "feats_length"], {"feats": {2: "t"}})
    return model, path


def anonymous(path: Path, to: Path, *, nodes: bool) -> Path:
    """The graph with every constant's name taken away, and with `nodes` the nodes' names as well."""
    model = onnx.load(str(path))
    names = {tensor.name: f"onnx::Thing_{index}" for index, tensor in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
        if nodes:
            node.name = ""
    onnx.save(model, str(to))
    return to


def test_speaker_encoder_comes_back(speaker):
    """The exporter melts norms into convolutions, so the numbers are equal but the weights are not."""
    model, path = speaker
    names = [tensor.name for tensor in onnx.load(str(path)).graph.initializer]
    assert "head.bn1.weight" not in names and "xvector.out_nonlinear.batchnorm.weight" not in names  # melted
    loaded = load_speaker_encoder(path, config=SMALL_SPEAKER)
    assert isinstance(loaded, CamPlus)
    ours, theirs = loaded.embed(SOUND), model.embed(SOUND)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_speaker_graph_runs_as_it_is(speaker):
    model, path = speaker
    graph = OnnxSpeakerEncoder(path)
    theirs = model.embed(SOUND)
    assert graph.bands == 80
    assert (graph.embed(SOUND) - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_speaker_constants_need_no_names(speaker, tmp_path):
    model, path = speaker
    loaded = load_speaker_encoder(anonymous(path, tmp_path / "a.onnx", nodes=False), config=SMALL_SPEAKER)
    assert isinstance(loaded, CamPlus)
    features = speaker_features(SOUND)
    assert (loaded(features) - model(features)).abs().max() < 1e-5 * model(features).abs().max()


def test_tokenizer_comes_back_weight_by_weight(tokenizer):
    model, path = tokenizer
    loaded = load_s3_tokenizer(path, config=SMALL_TOKENIZER)
    assert isinstance(loaded, S3Tokenizer)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    codes = loaded.tokenize(SOUND)
    assert codes.tolist() == model.tokenize(SOUND).tolist() and len(set(codes.tolist())) > 10


def test_tokenizer_graph_runs_as_it_is(tokenizer):
    model, path = tokenizer
    graph = OnnxS3Tokenizer(path)
    assert graph.bands == 128
    assert graph.tokenize(SOUND).tolist() == model.tokenize(SOUND).tolist()


def test_tokenizer_constants_need_no_names(tokenizer, tmp_path):
    model, path = tokenizer
    loaded = load_s3_tokenizer(anonymous(path, tmp_path / "a.onnx", nodes=False), config=SMALL_TOKENIZER)
    assert isinstance(loaded, S3Tokenizer)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


def test_as_the_published_graph_is_said_to_be(tokenizer, tmp_path):
    """Nodes lie below /blocks.N, norms are taken apart, and the projection has another name."""
    model, path = tokenizer
    graph = onnx.load(str(path))
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    nodes = []
    for node in graph.graph.node:
        node.name = node.name.replace("/encoder", "").replace("/quantizer/_codebook/project_down", "/quantizer/project_in")
        node.name = node.name.replace("/mlp/", "/mlp/mlp.").replace("mlp.mlp.", "mlp/mlp.") if "/mlp/0" in node.name else node.name
        if node.op_type == "LayerNormalization":
            scope = node.name.rsplit("/", 1)[0]
            inner = f"{scope}/Div_output_0"
            weight, bias, output = node.input[1], node.input[2], node.output[0]
            plain = (numpy_helper.from_array(np.full(48, value, np.float32), f"{scope}{value}") for value in (1.0, 0.0))
            ones, zeros = (helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in plain)
            del node.input[1:]
            node.input.extend([ones.output[0], zeros.output[0]])
            node.output[0], node.name = inner, ""
            scaled = f"{scope}/Mul_output_0"
            nodes += [ones, zeros, node, helper.make_node("Mul", [inner, weight], [scaled], f"{scope}/Mul")]
            nodes.append(helper.make_node("Add", [scaled, bias], [output], f"{scope}/Add_1"))
        else:
            nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    renamed = {"encoder.conv1.weight": "onnx::Conv_2216", "quantizer._codebook.project_down.bias": "quantizer.project_in.bias"}
    for theirs, name in renamed.items():
        stored[theirs].name = name
        for node in graph.graph.node:
            node.input[:] = [name if given == theirs else given for given in node.input]
    onnx.save(graph, str(tmp_path / "published.onnx"))
    found = read_onnx_weights(tmp_path / "published.onnx", shapes(model), "the tokenizer", RENAMED)
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_without_any_names_the_graph_is_run_instead(tokenizer, tmp_path, caplog):
    model, path = tokenizer
    bare = anonymous(path, tmp_path / "bare.onnx", nodes=True)
    with pytest.raises(WeightsError, match=r"missing: .*encoder\.blocks\.0\.attn"):
        read_onnx_weights(bare, shapes(model), "the tokenizer", RENAMED)
    with caplog.at_level(logging.WARNING):
        loaded = load_s3_tokenizer(bare, config=SMALL_TOKENIZER)
    assert isinstance(loaded, OnnxS3Tokenizer) and "run as it is" in caplog.text
    assert loaded.tokenize(SOUND).tolist() == model.tokenize(SOUND).tolist()


@pytest.mark.parametrize(
    ("fixture", "load", "config", "kind", "names"),
    [
        ("speaker", load_speaker_encoder, SMALL_SPEAKER, OnnxSpeakerEncoder, ("layer1.1/conv1", "layer1.1/conv2")),
        ("tokenizer", load_s3_tokenizer, SMALL_TOKENIZER, OnnxS3Tokenizer, ("blocks.0/attn/query", "blocks.1/attn/query")),
    ],
)
def test_weights_that_map_to_another_result_are_not_used(request, tmp_path, caplog, fixture, load, config, kind, names):
    """Two square weights exchanged in the nodes' names: every shape fits, and only running the graph can tell."""
    graph = onnx.load(str(request.getfixturevalue(fixture)[1]))
    first, second = names
    for node in graph.graph.node:
        node.name = node.name.replace(first, "@").replace(second, first).replace("@", second)
    onnx.save(graph, str(tmp_path / "crossed.onnx"))
    anonymous(tmp_path / "crossed.onnx", tmp_path / "crossed.onnx", nodes=False)
    with caplog.at_level(logging.WARNING):
        assert isinstance(load(tmp_path / "crossed.onnx", config=config), kind)
    assert "is run as it is: mapped" in caplog.text


def test_another_model_is_refused_with_names(speaker, tokenizer, tmp_path):
    with pytest.raises(WeightsError, match=r"does not hold the CAM\+\+ speaker encoder.*missing: head\.bn1"):
        load_speaker_encoder(tokenizer[1], config=SMALL_SPEAKER)
    with pytest.raises(WeightsError, match=r"does not hold the CosyVoice2 speech tokenizer.*missing: encoder\.blocks"):
        load_s3_tokenizer(speaker[1], config=SMALL_TOKENIZER)
    deeper = S3TokenizerConfig(bands=128, width=48, heads=3, layers=3)
    with pytest.raises(WeightsError, match=r"missing: encoder\.blocks\.2\."):
        read_onnx_weights(tokenizer[1], shapes(S3Tokenizer(deeper)), "a deeper tokenizer", RENAMED)
    shallower = S3TokenizerConfig(bands=128, width=48, heads=3, layers=1)
    with pytest.raises(WeightsError, match=r"not expected: "):
        read_onnx_weights(tokenizer[1], shapes(S3Tokenizer(shallower)), "a shallower tokenizer", RENAMED)
    with pytest.raises(WeightsError, match=r"24x.* instead of 48x|48 instead of|instead of 32"):
        read_onnx_weights(tokenizer[1], shapes(S3Tokenizer(TINY)), "a narrower tokenizer", RENAMED)


def test_damaged_files_are_told(tokenizer, tmp_path):
    for load in (load_s3_tokenizer, load_speaker_encoder):
        with pytest.raises(WeightsError, match="missing"):
            load(tmp_path / "nothing.onnx")
        (tmp_path / "short.onnx").write_bytes(tokenizer[1].read_bytes()[:5000])
        with pytest.raises(WeightsError, match="damaged"):
            load(tmp_path / "short.onnx")
        (tmp_path / "none.onnx").write_bytes(b"")
        with pytest.raises(WeightsError, match=r"empty|damaged"):
            load(tmp_path / "none.onnx")


def test_state_dicts_load_as_well(tmp_path):
    tiny = S3Tokenizer.tiny()
    torch.save(tiny.state_dict(), tmp_path / "tokenizer.pt")
    assert torch.equal(load_s3_tokenizer(tmp_path / "tokenizer.pt", config=TINY).tokenize(SOUND), tiny.tokenize(SOUND))
    model = CamPlus(SMALL_SPEAKER)
    torch.save(model.state_dict(), tmp_path / "campplus.bin")
    model.train(False)
    assert torch.equal(load_speaker_encoder(tmp_path / "campplus.bin", config=SMALL_SPEAKER).embed(SOUND), model.embed(SOUND))


def test_gemm_transpose_and_identity_are_seen_through(tmp_path):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.ones(2, np.float32), "b")]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], "/one/Gemm", transB=1),
        helper.make_node("Transpose", ["w"], ["turned"], "/two/Transpose", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["z"], "/two/MatMul"),
        helper.make_node("Identity", ["b"], ["same"], "/Identity"),
        helper.make_node("Add", ["z", "same"], ["out"], "/two/Add"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1, 3])], [value("out", TensorProto.FLOAT, [1, 2])], tensors
    )
    onnx.save(helper.make_model(graph), str(tmp_path / "g.onnx"))
    seen = {(found.path, found.role): found.value for found in graph_weights(read_graph(tmp_path / "g.onnx"))}
    assert np.array_equal(seen["one", "weight"], weight) and np.array_equal(seen["two", "weight"], weight)
    assert np.array_equal(seen["two", "bias"], np.ones(2)) and ("one", "bias") in seen


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("/head/layer1/layer1.0/shortcut/shortcut.0/Conv", "head.layer1.0.shortcut.0"),
        ("/blocks.0/mlp/mlp.2/MatMul", "blocks.0.mlp.2"),
        ("/xvector/block1/tdnnd12/linear1/Conv", "xvector.block1.tdnnd12.linear1"),
        ("Conv_17", ""),
        ("", ""),
    ],
)
def test_paths_of_modules(node, module):
    assert module_path(node) == module
