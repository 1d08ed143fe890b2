"""The weights inside an ONNX file, by the names of our state dicts.

Notable: an exporter renames most weights (`onnx::MatMul_2536`), transposes linear ones and melts batch norms into the convolutions
before them; but each node keeps the path of the module that it came from (`/blocks.0/attn/query/MatMul`). So a weight is found by its
node first, by its own name second, and by its shape last, if that is the only one of its kind. Nothing is guessed: what is missing,
left over or found twice is told in one message. The file is read as data, its graph is not run here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from duplex.checkpoint import misfits
from duplex.errors import WeightsError

if TYPE_CHECKING:
    import onnx

Array = NDArray[np.float32]

NORM_EPS = 1e-5
ROLES = {
    "Conv": {1: "weight", 2: "bias"},
    "MatMul": {0: "weight", 1: "weight"},
    "Gemm": {1: "weight", 2: "bias"},
    "LayerNormalization": {1: "weight", 2: "bias"},
    "BatchNormalization": {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"},
    "Mul": {0: "weight", 1: "weight"},
    "Add": {0: "bias", 1: "bias"},
}
"""What an input of a node is to the module that the node came from. Mul and Add stand for norms and biases that were taken apart."""
LOOSE = ("Mul", "Add")
"""Nodes that also occur outside of modules, so that what they read need not be a weight."""


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A constant as one node uses it, in the layout of our modules."""

    name: str
    """Its own name in the file."""
    path: str
    """The module that the node came from, e.g. "blocks.0.attn.query"; "" when the exporter kept no paths."""
    role: str
    """weight, bias, running_mean or running_var."""
    kind: str
    """The node's operation."""
    node: int
    """Place of the node in the graph."""
    value: Array


@dataclass(slots=True)
class Found:
    """What a search has brought so far."""

    tensors: dict[str, Array] = field(default_factory=dict)
    """By our names."""
    melted: dict[str, Array] = field(default_factory=dict)
    """Biases of convolutions that have none here, by the convolution's name: a norm was melted into it."""
    left: list[Weight] = field(default_factory=list)
    """What belongs nowhere yet."""
    wrong: list[str] = field(default_factory=list)
    """Contradictions, in words."""


def read_onnx_weights(
    path: Path,
    wanted: Mapping[str, tuple[int, ...]],
    what: str,
    renamed: Mapping[str, str] | None = None,
    folds: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """A state dict with exactly the names and shapes of `wanted`, from the constants of the graph in `path`.

    what: the model's name for the message. renamed: parts of names that the graph spells otherwise -> our spelling. folds: convolution ->
    the batch norm that an exporter may have melted into it; that norm then comes back as one that changes nothing but adds the
    melted bias. Counts of seen batches, which no graph has, are zero.

    Raises WeightsError when the file is missing, damaged or no ONNX, and with all names when it holds another model.
    """
    found = Found()
    weights = list(graph_weights(read_graph(path)))
    for weight in weights:
        _place_by_name(found, weight, wanted, renamed or {})
    _place_by_shape(found, wanted)
    _unmelt(found, wanted, folds or {})
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in found.tensors.items()}
    counts = {name: torch.zeros((), dtype=torch.int64) for name in wanted if name.endswith("num_batches_tracked")}
    tensors |= counts
    left = sorted({weight.name for weight in found.left if weight.kind not in LOOSE and not _neutral(weight)})
    wrong = found.wrong + [f"bias of {name}, which has none" for name in sorted(found.melted)]
    problems = [
        text
        for text in (
            misfits(wanted, {name: tuple(value.shape) for name, value in tensors.items()}),
            "not expected: " + ", ".join(left[:12]) + (f" and {len(left) - 12} more" if len(left) > 12 else "") if left else "",
            "; ".join(wrong[:12]),
        )
        if text
    ]
    if problems:
        raise WeightsError(f"{path} does not hold {what}; {'; '.join(problems)}.")
    return tensors


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph, with its weights. Raises WeightsError when it is missing or damaged."""
    import onnx

    if not path.is_file():
        raise WeightsError(f"{path} is missing; fetch the weights again, or give the folder that holds it.")
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's own DecodeError, of a class that differs between versions
        raise WeightsError(f"{path} is damaged, cut short or no ONNX file ({error}); delete it and fetch it again.") from error
    if not model.graph.node:
        raise WeightsError(f"{path} is an empty ONNX file; delete it and fetch it again.")
    return model


def graph_weights(model: onnx.ModelProto) -> Iterator[Weight]:
    """Every constant of more than one number that a node uses in a known role, also through Identity, Cast and Transpose."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}

    def constant(name: str) -> tuple[str, Array] | None:
        if name in stored:
            return name, numpy_helper.to_array(stored[name])
        node = producers.get(name)
        if node is None or node.op_type not in ("Constant", "Identity", "Cast", "Transpose"):
            return None
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Constant":
            return (name, numpy_helper.to_array(attributes["value"].t)) if "value" in attributes else None
        inner = constant(node.input[0])
        if inner is None or node.op_type != "Transpose":
            return inner
        return inner[0], inner[1].transpose(list(attributes["perm"].ints) if "perm" in attributes else None)

    for place, node in enumerate(model.graph.node):
        for index, role in ROLES.get(node.op_type, {}).items():
            source = constant(node.input[index]) if index < len(node.input) else None
            if source is None or source[1].size <= 1 or not np.issubdtype(source[1].dtype, np.floating):
                continue
            name, value = source
            if (node.op_type == "MatMul" and index == 1) or (
                node.op_type == "Gemm" and role == "weight" and not _flag(node, "transB")
            ):
                value = value.T  # x @ W: ours are [out, in]
            yield Weight(name, module_path(node.name), role, node.op_type, place, value.astype(np.float32))


def _neutral(weight: Weight) -> bool:
    """Ones and zeros that an exporter writes for a norm without scale and shift of its own."""
    plain = {"weight": 1.0, "bias": 0.0}
    return weight.kind.endswith("Normalization") and weight.role in plain and bool(np.all(weight.value == plain[weight.role]))


def _flag(node: onnx.NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


def module_path(node_name: str) -> str:
    """ "/head/layer1/layer1.0/conv1/Conv" -> "head.layer1.0.conv1": a part that the next one repeats is dropped."""
    parts = [part for part in node_name.split("/") if part][:-1]
    kept = [part for part, after in zip_longest(parts, parts[1:], fillvalue="") if not after.startswith(f"{part}.")]
    return ".".join(kept)


def _place_by_name(found: Found, weight: Weight, wanted: Mapping[str, tuple[int, ...]], renamed: Mapping[str, str]) -> None:
    """Give a weight its place by its node's module, else by its own name."""
    for candidate in (f"{weight.path}.{weight.role}" if weight.path else "", weight.name):
        for theirs, ours in renamed.items():
            candidate = candidate.replace(theirs, ours)
        key = _match(candidate, wanted)
        if key and tuple(weight.value.shape) == tuple(wanted[key]):
            _claim(found, key, weight)
            return
        if key and weight.kind not in LOOSE:
            shapes = " instead of ".join("x".join(map(str, shape)) for shape in (weight.value.shape, wanted[key]))
            found.wrong.append(f"{key} is {shapes}")
            return
        if weight.role == "bias" and weight.kind == "Conv" and _match(f"{candidate.removesuffix('.bias')}.weight", wanted):
            found.melted[_match(f"{candidate.removesuffix('.bias')}.weight", wanted).removesuffix(".weight")] = weight.value
            return
    found.left.append(weight)


def _match(candidate: str, wanted: Mapping[str, tuple[int, ...]]) -> str:
    """Our name for what the graph calls `candidate`: the same, or the only one where one of the two ends with the other; else ""."""
    if not candidate:
        return ""
    if candidate in wanted:
        return candidate
    longer = [key for key in wanted if key.endswith(f".{candidate}")]
    if longer:
        return longer[0] if len(longer) == 1 else ""
    parts = candidate.split(".")
    return next((key for start in range(1, len(parts) - 1) if (key := ".".join(parts[start:])) in wanted), "")


def _claim(found: Found, key: str, weight: Weight) -> None:
    known = found.tensors.get(key)
    if known is not None and not np.array_equal(known, weight.value):
        found.wrong.append(f"{key} is there twice, with different values")
    found.tensors[key] = weight.value


def _place_by_shape(found: Found, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """A weight without a name goes where only it fits; a bias without one goes where the weight of its node went."""
    placed: dict[int, str] = {}  # node -> module
    for weight in list(found.left):
        same = [other for other in found.left if other.role == weight.role and other.value.shape == weight.value.shape]
        fits = [key for key in _open(found, wanted, weight.role) if tuple(wanted[key]) == weight.value.shape]
        if len(fits) == 1 and len(same) == 1:
            _claim(found, fits[0], weight)
            found.left.remove(weight)
            placed[weight.node] = fits[0].removesuffix(f".{weight.role}")
    for weight in list(found.left):
        key = f"{placed.get(weight.node, '')}.{weight.role}"
        if key in _open(found, wanted, weight.role) and tuple(wanted[key]) == weight.value.shape:
            _claim(found, key, weight)
            found.left.remove(weight)


def _open(found: Found, wanted: Mapping[str, tuple[int, ...]], role: str) -> list[str]:
    return [key for key in wanted if key not in found.tensors and key.endswith(f".{role}")]


def _unmelt(found: Found, wanted: Mapping[str, tuple[int, ...]], folds: Mapping[str, str]) -> None:
    """Where a convolution came with a bias that is not ours, its norm becomes: take off minus the bias, divide by one."""
    for conv, norm in folds.items():
        keys = [f"{norm}.{role}" for role in ("running_mean", "running_var", "weight", "bias")]
        if conv not in found.melted or any(key in found.tensors for key in keys):
            continue
        bias = found.melted.pop(conv)
        values = (-bias, np.full_like(bias, 1.0 - NORM_EPS), np.ones_like(bias), np.zeros_like(bias))
        found.tensors |= {key: value for key, value in zip(keys, values, strict=True) if key in wanted}
