"""The official SenseVoiceSmall folder into the network, its statistics and its vocabulary; and a tiny build with random weights.

Notable: strict. The folder's config.yaml must describe the network and the features that are built here, every tensor of model.pt has
its place, and the vocabulary must be as large as the head. A folder of another model is named as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from duplex.checkpoint import fill, read_tensors
from duplex.errors import WeightsError
from encoders.sensevoice import SenseVoice, SenseVoiceConfig
from encoders.sensevoice_frontend import FBANK, FEATURES, STACKED_FRAMES, STRIDE_FRAMES, Cmvn, read_cmvn
from encoders.sensevoice_pieces import Pieces, read_pieces, tiny_pieces

WEIGHTS_FILE = "model.pt"
CMVN_FILE = "am.mvn"
PIECES_FILE = "chn_jpn_yue_eng_ko_spectok.bpe.model"
CONFIG_FILE = "config.yaml"

_FRONTEND = {
    "fs": 16_000,
    "window": FBANK.window,
    "n_mels": FBANK.bands,
    "frame_length": FBANK.frame_ms,
    "frame_shift": FBANK.hop_ms,
    "lfr_m": STACKED_FRAMES,
    "lfr_n": STRIDE_FRAMES,
}
_ENCODER = {"input_layer": "pe", "normalize_before": True, "sanm_shfit": 0, "selfattention_layer_type": "sanm"}  # official spelling


@dataclass(frozen=True, slots=True)
class SenseVoiceParts:
    """All that recognising needs; shared by any number of conversations."""

    network: SenseVoice
    """The encoder and its CTC head."""
    cmvn: Cmvn
    """Statistics of the features."""
    pieces: Pieces
    """The vocabulary."""


def load(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> SenseVoiceParts:
    """From a folder with config.yaml, model.pt, am.mvn and the SentencePiece model. Raises WeightsError in one sentence."""
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE, CMVN_FILE, PIECES_FILE) if not (folder / name).is_file()]
    if missing:
        raise WeightsError(f"{folder} lacks {', '.join(missing)}; give the folder of SenseVoiceSmall, or fetch it again.")
    pieces = read_pieces(folder / PIECES_FILE)
    config = _config(folder / CONFIG_FILE, pieces.size)
    cmvn = read_cmvn(folder / CMVN_FILE)
    with torch.device("meta"):
        network = SenseVoice(config)
    fill(network, read_tensors(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE, "SenseVoiceSmall", dtype)
    return SenseVoiceParts(network.to(device), cmvn, pieces)


def _config(path: Path, vocab_size: int) -> SenseVoiceConfig:
    """The sizes in config.yaml. Raises WeightsError when it describes another model, other features, or is damaged."""
    try:
        data: Any = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WeightsError(f"{path} cannot be read ({type(error).__name__}); fetch the weights again.") from error
    model = data.get("model") if isinstance(data, Mapping) else None
    if model != "SenseVoiceSmall":
        raise WeightsError(f"{path} describes {model or 'no model'}, not SenseVoiceSmall; give the folder of SenseVoiceSmall.")
    frontend, encoder = _part(data, "frontend_conf", path), _part(data, "encoder_conf", path)
    for part, wanted in ((frontend, _FRONTEND), (encoder, _ENCODER)):
        for key, value in wanted.items():
            if part.get(key, value) != value:
                raise WeightsError(
                    f"{path} has {key}: {part[key]}, but only {key}: {value} is supported; take SenseVoiceSmall's folder."
                )
    sizes = {field.name: encoder[field.name] for field in fields(SenseVoiceConfig) if field.name in encoder}
    try:
        return SenseVoiceConfig(**{**sizes, "input_size": FEATURES, "vocab_size": vocab_size})
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path} has sizes that do not fit together ({error}); fetch the weights again.") from error


def _part(data: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    part = data.get(name)
    if not isinstance(part, Mapping):
        raise WeightsError(f"{path} has no {name}; fetch the weights again.")
    return part


def tiny(seed: int = 0) -> SenseVoiceParts:
    """Random weights (about 500 kB) over a vocabulary of letters: the whole path without a download. Hears nonsense, deterministically."""
    pieces = tiny_pieces()
    sizes = SenseVoiceConfig(output_size=32, attention_heads=2, linear_units=64, num_blocks=2, tp_blocks=1, vocab_size=pieces.size)
    return _random(sizes, pieces, seed)


def full_size(seed: int = 0, device: torch.device | str = "cpu") -> SenseVoiceParts:
    """SenseVoiceSmall's shapes with weights that have learnt nothing, for measuring; most of its pieces are the letter a."""
    sizes, letters = SenseVoiceConfig(), tiny_pieces().pieces
    with torch.device(device):  # made where it is used; on a GPU that is a hundred times faster
        return _random(sizes, Pieces(letters + ("a",) * (sizes.vocab_size - len(letters))), seed)


def _random(sizes: SenseVoiceConfig, pieces: Pieces, seed: int) -> SenseVoiceParts:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SenseVoice(sizes)
        torch.nn.init.normal_(network.ctc.ctc_lo.weight, std=1.0)  # so that what is heard is told apart
    network.requires_grad_(False).train(False)
    cmvn = Cmvn(np.full(FEATURES, -8.0, np.float32), np.full(FEATURES, 0.25, np.float32))  # about that of speech
    return SenseVoiceParts(network, cmvn, pieces)
