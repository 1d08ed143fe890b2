"""What each process of `test_training_ranks` runs: `torchrun ranks_program.py FOLDER` writes FOLDER/RANK.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import decoders.speech_tokenizer_training as tokenizer_training
from decoders.flow_trainer import begin
from decoders.speech_tokenizer_training import TokenizerTrainingConfig, train_tokenizer
from decoders.training_ranks import Ranks, join_ranks
from decoders.vits_net import VitsNet, VitsNetConfig
from tests.decoders import test_flow_trainer as flow
from tests.decoders import test_speech_tokenizer as tokenizer


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = join_ranks(torch.device("cpu"))
    found = {"parts": parts(ranks), "flow": taught_flow(ranks), "tokenizer": taught_tokenizer(ranks, folder)}
    (folder / f"{ranks.index}.json").write_text(json.dumps(found))
    ranks.end()


def parts(ranks: Ranks) -> list[float]:
    used, unused = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    used.grad = torch.full((3,), float(ranks.index))
    ranks.average_gradients([used, unused])
    return [*used.grad.tolist(), ranks.agreed(10.0 + ranks.index), float(ranks.mean(torch.tensor(2.0 * ranks.index)))]


def taught_flow(ranks: Ranks) -> dict[str, object]:
    told: list[object] = []
    trainer = begin(flow.SMALL, dataclasses.replace(flow.QUICK, seconds=1.0), "cpu")
    clock = flow.clock(0.03 if ranks.first else 0.05)  # the first one's counts
    trainer.run(flow.speech(), None, None, None, told.append, clock, ranks)
    return {"weights": fingerprint(trainer.average.state_dict()), "steps": trainer.step, "told": len(told)}


def taught_tokenizer(ranks: Ranks, folder: Path) -> dict[str, object]:
    tokenizer_training.time = tokenizer._Clock()  # type: ignore[assignment,attr-defined]
    torch.manual_seed(1)
    teacher = VitsNet(VitsNetConfig(symbols=8, channels=16, inner=8, layers=1, heads=1, generator=8))
    config = TokenizerTrainingConfig(seconds=0.2, rows=8, codes=8, sound_rows=1, sound_codes=2, tell_every_s=0.1)
    told: list[object] = []
    net, curve = train_tokenizer(
        tokenizer._speech(), teacher, tokenizer.SMALL, config, folder / "tokenizer.pt", told.append, ranks=ranks
    )
    return {"weights": fingerprint(net.state_dict()), "steps": len(curve), "told": len(told)}


def fingerprint(state: dict[str, Tensor]) -> str:
    flat = torch.cat([value.flatten() for value in state.values() if value.is_floating_point()])
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
