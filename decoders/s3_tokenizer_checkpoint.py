"""Loading the speech tokenizer: from the published ONNX graph, or from a state dict with its names.

Notable: the published weights exist only as a graph, whose constants are mapped to our network. What was mapped is then held against
the graph itself, run once on two seconds of noise; if the mapping fails or the two disagree, the graph is used as it is, which is slower
to move to a GPU but always right.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decoders.onnx_session import WHOLE, one_input, open_session, run
from decoders.onnx_weights import read_onnx_weights
from decoders.s3_tokenizer import S3Tokenizer, S3TokenizerConfig
from decoders.s3_tokenizer_mel import log_mel, tokenize_windows
from duplex.audio import Samples
from duplex.checkpoint import fill, read_tensors
from duplex.errors import WeightsError

WHAT = "the CosyVoice2 speech tokenizer (speech_tokenizer_v2)"
RENAMED = {"quantizer.project_in": "quantizer._codebook.project_down", "project_in.": "project_down."}
LEAST_AGREEMENT = 0.95  # of codes, between our network and the graph: a digit on the edge may round either way

log = logging.getLogger(__name__)


class OnnxS3Tokenizer:
    """The published graph, run by onnxruntime on the CPU: `tokenize` as S3Tokenizer has it. Holds no state."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Raises WeightsError when `path` is no graph with one mel input [1, m, t] and one input of lengths."""
        self.path = path
        self._session = open_session(path, threads)
        mel = one_input(self._session, path, "the mel spectrogram", lambda given: len(given.shape) == 3 and "float" in given.type)
        lengths = one_input(self._session, path, "its length", lambda given: len(given.shape) == 1 and given.type in WHOLE)
        self._mel, self._lengths, self._whole = mel.name, lengths.name, WHOLE[lengths.type]
        self.bands = mel.shape[1] if isinstance(mel.shape[1], int) else S3TokenizerConfig().bands

    def tokenize(self, samples: Samples) -> Tensor:
        """[n] samples at 16 kHz in [-1, 1] -> [p] codes, int64. Raises ValueError when it is not mono or too short."""
        return tokenize_windows(log_mel(torch.as_tensor(samples), self.bands), self.codes)

    def codes(self, mel: Tensor) -> Tensor:
        """[m, t] -> [p] codes, int64; t at most 3000."""
        feed = {self._mel: mel.numpy()[None], self._lengths: np.array([mel.shape[1]], self._whole)}
        return torch.from_numpy(run(self._session, self.path, feed).reshape(-1).astype(np.int64))


def load_s3_tokenizer(
    path: Path, device: torch.device | str = "cpu", config: S3TokenizerConfig | None = None, check: bool = True
) -> S3Tokenizer | OnnxS3Tokenizer:
    """The tokenizer in `path`: speech_tokenizer_v2.onnx, or a .pt or .safetensors with the names of S3Tokenizer's state dict.

    Always float32: half precision moves codes. check: hold a graph's mapped weights against the graph (about two seconds at full size).
    Raises WeightsError when the file is missing, damaged, or another model.
    """
    with torch.device("meta"):
        model = S3Tokenizer(config)
    if path.suffix != ".onnx":
        fill(model, read_tensors(path), path, WHAT, torch.float32)
        return model.to(device)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    try:
        fill(model, read_onnx_weights(path, shapes, WHAT, RENAMED), path, WHAT)
    except WeightsError as error:
        graph = _as_it_is(path, model.config)
        if graph is None:
            raise
        log.warning("The graph is run as it is, because its weights could not be mapped: %s", error)
        return graph
    if check:
        graph = OnnxS3Tokenizer(path)
        mel = _noise(model.config.bands)
        with torch.inference_mode():
            ours, theirs = model(mel[None])[0], graph.codes(mel)
        agreement = float((ours == theirs).float().mean()) if ours.shape == theirs.shape else 0.0
        if agreement < LEAST_AGREEMENT:
            log.warning("The graph %s is run as it is: mapped, only %.0f %% of codes agree with it.", path, 100 * agreement)
            return graph
    return model.to(device)


def _as_it_is(path: Path, config: S3TokenizerConfig) -> OnnxS3Tokenizer | None:
    """The graph in `path`, if it can be run and makes codes of this vocabulary."""
    try:
        graph = OnnxS3Tokenizer(path)
        fits = graph.bands == config.bands and 0 <= int(graph.codes(_noise(graph.bands)).max()) < config.vocabulary
    except WeightsError:
        return None
    return graph if fits else None


def _noise(bands: int) -> Tensor:
    """[m, 200] two seconds of something like a log-mel, always the same."""
    return torch.randn(bands, 200, generator=torch.Generator().manual_seed(0)).cumsum(1).mul(0.05).clamp(-1.0, 1.5)
