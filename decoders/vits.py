"""VITS as three ONNX graphs, so that sound starts long before a clause is rendered.

The published voice is one graph, phoneme ids -> samples, that draws its own noise. `split_vits` cuts it once, at tensors that exist
in the original, into

    text     ids [1, P]           -> prior mean and log-deviation [1, C, P], duration of each id in latent frames [1, 1, P]
    flow     noisy prior [1, C, T] -> latents [1, C, T]                   (T = sum of durations)
    decoder  latents [1, C, T]     -> samples [1, 1, 1, T * hop]          (HiFi-GAN)

and turns its two RandomNormalLike nodes into inputs: equal seeds give bit-equal audio. Text and flow together run at 40 times real
time or better; the decoder, the costly part, is run on pieces of the latents with `CONTEXT` frames on both sides, more than
its receptive field, so pieces joined are the whole.

Kim et al. 2021, "Conditional Variational Autoencoder with Adversarial Learning for End-to-End Text-to-Speech"; checkpoint: Piper's
en_US-joe-medium.

Shapes: P phoneme ids, T latent frames, C latent channels (192), hop 256 samples.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from duplex.audio import Samples
from duplex.errors import WeightsError

if TYPE_CHECKING:
    import onnx

VITS_RATE_HZ = 22_050
HOP = 256  # samples per latent frame
CONTEXT = 12  # latent frames that the decoder is shown on both sides of a piece; measured, ten make the difference vanish

GRAPHS = ("text", "flow", "decoder")

# Tensors of the published graph at which it is cut, and the names they carry in the three graphs.
_CUT = {
    "/dp/RandomNormalLike_output_0": "duration_noise",
    "/enc_p/Split_output_0": "mean",
    "/enc_p/Split_output_1": "log_deviation",
    "/Ceil_output_0": "durations",
    "/Add_output_0": "prior",
    "/Cast_2_output_0": "mask",
    "/Mul_7_output_0": "latents",
}


@dataclass(frozen=True, slots=True)
class VitsConfig:
    """How the voice samples."""

    noise_scale: float = 0.667
    """Deviation of the prior's noise; less is flatter and clearer."""
    noise_w: float = 0.8
    """Deviation of the durations' noise; less is a steadier rhythm."""
    length_scale: float = 1.0
    """Factor on every duration; more is slower."""
    threads: int = 1
    """Threads of each graph; more than the free cores makes small layers many times slower."""

    def __post_init__(self) -> None:
        for name in ("noise_scale", "noise_w"):
            if not 0.0 <= getattr(self, name) <= 2.0:
                raise ValueError(f"voice.{name} must be in 0 to 2, not {getattr(self, name)}")
        if not 0.25 <= self.length_scale <= 4.0:
            raise ValueError(f"voice.length_scale must be in 0.25 to 4, not {self.length_scale}")
        if self.threads < 1:
            raise ValueError(f"voice.threads must be at least 1, not {self.threads}")


@dataclass(frozen=True, slots=True)
class Plan:
    """A clause before it has sound."""

    latents: NDArray[np.float32]
    """[C, T]"""
    durations: NDArray[np.int64]
    """[P] latent frames of each phoneme id; they sum to T."""


class Vits:
    """The three graphs, loaded. Holds no state: one instance serves any number of conversations."""

    def __init__(self, graphs: dict[str, Any], config: VitsConfig | None = None) -> None:
        """`graphs`: text, flow, decoder, each a path or a serialized model."""
        self.config = config or VitsConfig()
        self._text, self._flow, self._decoder = (_session(graphs[name], self.config.threads) for name in GRAPHS)

    @classmethod
    def load(cls, folder: Path, config: VitsConfig | None = None) -> Vits:
        """Load what `split_vits` wrote.

        Raises:
            WeightsError: a graph is missing or damaged.
        """
        return cls({name: folder / f"{name}.onnx" for name in GRAPHS}, config)

    def plan(self, ids: Sequence[int], rng: np.random.Generator) -> Plan:
        """Phoneme ids [P] to latents and durations. Draws 2 P + C T normals from `rng`."""
        count = len(ids)
        scales = np.array([self.config.noise_scale, self.config.length_scale, self.config.noise_w], np.float32)
        feed = {
            "input": np.asarray(ids, np.int64)[None],
            "input_lengths": np.array([count], np.int64),
            "scales": scales,
            "duration_noise": rng.standard_normal((1, 2, count), np.float32),
        }
        mean, log_deviation, frames = self._text.run(["mean", "log_deviation", "durations"], feed)
        durations = frames[0, 0].astype(np.int64)  # [P]
        mean = np.repeat(mean[0], durations, axis=1)  # [C, T]
        deviation = np.repeat(np.exp(log_deviation[0]), durations, axis=1)  # [C, T]
        noise = rng.standard_normal(mean.shape, np.float32)
        prior = mean + noise * deviation * np.float32(self.config.noise_scale)
        mask = np.ones((1, 1, prior.shape[1]), np.float32)
        (latents,) = self._flow.run(["latents"], {"prior": prior[None], "mask": mask})
        return Plan(latents[0], durations)

    def render(self, latents: NDArray[np.float32], start: int, end: int) -> Samples:
        """Sound of the frames [start, end) of latents [C, T]: [(end - start) * HOP] samples at VITS_RATE_HZ."""
        left = max(start - CONTEXT, 0)
        right = min(end + CONTEXT, latents.shape[1])
        (samples,) = self._decoder.run(["output"], {"latents": np.ascontiguousarray(latents[None, :, left:right])})
        flat: Samples = samples.reshape(-1)
        return flat[(start - left) * HOP : (end - left) * HOP]


def split_vits(onnx_path: Path, out_dir: Path) -> Path:
    """Cut a published Piper "medium" voice into text.onnx, flow.onnx and decoder.onnx in `out_dir`.

    The folder appears whole or not at all.

    Raises:
        WeightsError: the file is not such a voice.
        OSError: the folder could not be written.
    """
    import onnx

    try:
        model = onnx.load(str(onnx_path))
    except Exception as error:  # protobuf's own DecodeError, of a class that differs between versions
        raise WeightsError(f"{onnx_path} is not an ONNX file ({error}); delete it and fetch it again") from error
    produced = {name for node in model.graph.node for name in node.output}
    missing = [name for name in _CUT if name not in produced]
    if missing:
        raise WeightsError(f"{onnx_path} is not a Piper VITS voice of the expected layout: it lacks {', '.join(missing)}")
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = _CUT.get(name, name)

    i64, f32 = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    value = onnx.helper.make_tensor_value_info
    ids = [value("input", i64, [1, "P"]), value("input_lengths", i64, [1]), value("scales", f32, [3])]
    noise, durations = value("duration_noise", f32, [1, 2, "P"]), value("durations", f32, [1, 1, "P"])
    mean, log_deviation = value("mean", f32, [1, 192, "P"]), value("log_deviation", f32, [1, 192, "P"])
    prior, mask, latents = value("prior", f32, [1, 192, "T"]), value("mask", f32, [1, 1, "T"]), value("latents", f32, [1, 192, "T"])
    samples = value("output", f32, None)
    cuts = {
        "text": ([*ids, noise], [mean, log_deviation, durations]),
        "flow": ([prior, mask], [latents]),
        "decoder": ([latents], [samples]),
    }
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f"{out_dir.name}.", dir=out_dir.parent))
    try:
        for name, (inputs, outputs) in cuts.items():
            onnx.save(_cut(model, name, inputs, outputs), str(fresh / f"{name}.onnx"))
        shutil.rmtree(out_dir, ignore_errors=True)
        os.replace(fresh, out_dir)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return out_dir


def _cut(
    model: onnx.ModelProto, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    """The part of `model` that computes `outputs` from `inputs`."""
    import onnx

    producer = {output: node for node in model.graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    given = {info.name for info in inputs}
    wanted, seen, kept = [info.name for info in outputs], set(given), set()
    while wanted:
        tensor = wanted.pop()
        if tensor in seen or not tensor:
            continue
        seen.add(tensor)
        if tensor in weights:
            continue
        if tensor not in producer:
            raise WeightsError(f"the {name} part of the voice needs {tensor}, which is outside of it: not the expected layout")
        kept.add(producer[tensor].output[0])
        wanted.extend(producer[tensor].input)
    nodes = [node for node in model.graph.node if node.output[0] in kept]  # the published order is topological
    tensors = [tensor for key, tensor in weights.items() if key in seen]
    graph = onnx.helper.make_graph(nodes, name, inputs, outputs, initializer=tensors)
    return onnx.helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=min(model.ir_version, 10))


def _session(graph: Path | bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(graph) if isinstance(graph, Path) else graph
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes are not exported
        raise WeightsError(f"the voice's graph {graph if isinstance(graph, Path) else ''} cannot be loaded ({error})") from error
