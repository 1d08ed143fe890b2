"""An official SenseVoiceSmall folder at a small size, written for tests: random weights, a vocabulary trained on a few sentences."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import torch

from encoders.sensevoice import SenseVoice, SenseVoiceConfig
from encoders.sensevoice_checkpoint import CMVN_FILE, CONFIG_FILE, PIECES_FILE, WEIGHTS_FILE
from encoders.sensevoice_frontend import Cmvn
from tests.reference_weights import reference_state

LABELS = [
    *("<|zh|>", "<|en|>", "<|yue|>", "<|ja|>", "<|ko|>", "<|nospeech|>", "<|Speech|>", "</|Speech|>", "<|BGM|>", "<|Laughter|>"),
    *("<|HAPPY|>", "<|SAD|>", "<|ANGRY|>", "<|NEUTRAL|>", "<|EMO_UNKNOWN|>", "<|Event_UNK|>", "<|withitn|>", "<|woitn|>"),
]
CONFIG = """
encoder: SenseVoiceEncoderSmall
encoder_conf:
    output_size: 32
    attention_heads: 2
    linear_units: 48
    num_blocks: 2
    tp_blocks: 1
    dropout_rate: 0.1
    input_layer: pe
    normalize_before: true
    kernel_size: 11
    sanm_shfit: 0
    selfattention_layer_type: sanm
model: SenseVoiceSmall
model_conf: {length_normalized_loss: true, sos: 1, eos: 2, ignore_id: -1}
frontend: WavFrontend
frontend_conf: {fs: 16000, window: hamming, n_mels: 80, frame_length: 25, frame_shift: 10, lfr_m: 7, lfr_n: 6}
"""
SENTENCES = [
    "how are you today",
    "I am well thank you",
    "what time is it",
    "it is three o'clock",
    "今天天气很好",
    "你好吗",
    "good morning",
]


def am_mvn(cmvn: Cmvn) -> str:
    """Kaldi's text form of the statistics."""
    shift, scale = (" ".join(repr(float(x)) for x in vector) for vector in (cmvn.shift, cmvn.scale))
    n = len(cmvn.shift)
    return (
        f"<Nnet> \n<Splice> {n} {n} \n[ 0 ]\n<AddShift> {n} {n} \n<LearnRateCoef> 0 [ {shift} ]\n"
        f"<Rescale> {n} {n} \n<LearnRateCoef> 0 [ {scale} ]\n</Nnet> \n"
    )


@cache
def sentencepiece_model() -> bytes:
    """A trained SentencePiece model with label tokens."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=120,
        user_defined_symbols=LABELS,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def write_folder(folder: Path, vocab_size: int, seed: int = 5, nested: bool = False) -> None:
    """All four files, the weights by the reference rule."""
    folder.mkdir(exist_ok=True)
    (folder / CONFIG_FILE).write_text(CONFIG)
    (folder / PIECES_FILE).write_bytes(sentencepiece_model())
    (folder / CMVN_FILE).write_text(am_mvn(Cmvn(np.full(560, -8, np.float32), np.full(560, 0.25, np.float32))))
    config = SenseVoiceConfig(output_size=32, attention_heads=2, linear_units=48, num_blocks=2, tp_blocks=1, vocab_size=vocab_size)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in SenseVoice(config).state_dict().items()}
    state = reference_state(shapes, seed)
    torch.save({"state_dict": state} if nested else state, folder / WEIGHTS_FILE)
