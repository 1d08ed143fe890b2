"""Loading the speaker encoder: from the published ONNX graph, or from a FunASR or 3D-Speaker state dict.

Notable: as with the speech tokenizer, a graph's mapped weights are held against the graph itself, and if the mapping fails or the two
disagree the graph is used as it is.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from decoders.campplus import CamPlus, CamPlusConfig, speaker_features
from decoders.onnx_session import one_input, open_session, run
from decoders.onnx_weights import read_onnx_weights
from duplex.audio import Samples
from duplex.checkpoint import fill, read_tensors
from duplex.errors import WeightsError

WHAT = "the CAM++ speaker encoder (campplus)"
MOST_DIFFERENCE = 1e-3  # between our network and the graph, relative to the embedding's length

log = logging.getLogger(__name__)


class OnnxSpeakerEncoder:
    """The published graph, run by onnxruntime on the CPU: `embed` as CamPlus has it. Holds no state."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Raises WeightsError when `path` is no graph with one input of features [1, t, M]."""
        self.path = path
        self._session = open_session(path, threads)
        features = one_input(self._session, path, "the features", lambda given: len(given.shape) == 3 and "float" in given.type)
        if len(self._session.get_inputs()) != 1:
            raise WeightsError(f"{path} has more inputs than features; it is not {WHAT}.")
        self._features = features.name
        self.bands = features.shape[2] if isinstance(features.shape[2], int) else CamPlusConfig().bands

    def embed(self, samples: Samples) -> Tensor:
        """[n] samples at 16 kHz in [-1, 1] -> [E] float32, not normalised. Raises ValueError when it is too short."""
        return self.embedding(speaker_features(samples, self.bands))

    def embedding(self, features: Tensor) -> Tensor:
        """[1, t, M] -> [E]"""
        return torch.from_numpy(run(self._session, self.path, {self._features: features.numpy()}).reshape(-1))


def load_speaker_encoder(
    path: Path, device: torch.device | str = "cpu", config: CamPlusConfig | None = None, check: bool = True
) -> CamPlus | OnnxSpeakerEncoder:
    """The speaker encoder in `path`: campplus.onnx, or a .pt, .bin or .safetensors with the names of CamPlus's state dict.

    check: hold a graph's mapped weights against the graph. Raises WeightsError when the file is missing, damaged, or another model.
    """
    with torch.device("meta"):
        model = CamPlus(config)
    if path.suffix != ".onnx":
        fill(model, read_tensors(path), path, WHAT, torch.float32)
        return model.to(device)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    features = torch.randn(1, 300, model.config.bands, generator=torch.Generator().manual_seed(0))  # three seconds of noise
    try:
        fill(model, read_onnx_weights(path, shapes, WHAT, folds=model.folds()), path, WHAT)
    except WeightsError as error:
        graph = _as_it_is(path, model.config, features)
        if graph is None:
            raise
        log.warning("The graph is run as it is, because its weights could not be mapped: %s", error)
        return graph
    if check:
        graph = OnnxSpeakerEncoder(path)
        theirs = graph.embedding(features)
        with torch.inference_mode():
            difference = float((model(features)[0] - theirs).norm() / theirs.norm())
        if not difference < MOST_DIFFERENCE:
            log.warning("The graph %s is run as it is: mapped, it differs by %.1e.", path, difference)
            return graph
    return model.to(device)


def _as_it_is(path: Path, config: CamPlusConfig, features: Tensor) -> OnnxSpeakerEncoder | None:
    """The graph in `path`, if it can be run and makes an embedding of this width."""
    try:
        graph = OnnxSpeakerEncoder(path)
        fits = graph.bands == config.bands and len(graph.embedding(features)) == config.embedding
    except WeightsError:
        return None
    return graph if fits else None
