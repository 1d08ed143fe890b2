"""Training together: two processes on the CPU, started as on two GPUs, keep the same weights though each learns from crops of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from decoders import pointer_lm_weights
from decoders.training_ranks import ALONE, join_ranks
from duplex.errors import ConfigError
from tests.decoders import voice_replies

ROOT = Path(__file__).parents[2]


def launch(count: int, *words: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    alone = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}  # whatever the machine's name leads to
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **alone}
    return subprocess.run([*launcher, *words], env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_processes_keep_the_same_weights_and_one_speaks(tmp_path: Path) -> None:
    found = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        done = launch(count, "-m", "tests.decoders.ranks_program", str(folder))
        assert done.returncode == 0, done.stderr
        found[count] = [json.loads((folder / f"{index}.json").read_text()) for index in range(count)]
    (alone,), (one, other) = found[1], found[2]
    assert one["parts"] == other["parts"] == [0.5, 0.5, 0.5, 10.0, 1.0]  # gradients, the first one's value, a mean
    for part in ("flow", "tokenizer"):
        assert one[part]["weights"] == other[part]["weights"] != alone[part]["weights"]  # the other's crops counted
        assert one[part]["steps"] == other[part]["steps"] == alone[part]["steps"] > 0
        assert one[part]["told"] == alone[part]["told"] > 0 == other[part]["told"]


def test_the_voice_lm_learns_on_two(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out" / "voice_lm.safetensors"
    voice_replies.write(work, replies=20)
    small = ["--device", "cpu", "--rows", "1", "--layers", "2", "--width", "64", "--length", "256"]
    command = ["-m", "apps", "train", "voice-lm", "--minutes", "9", "--passes", "2", *small, "--work", str(work), "--out", str(out)]
    done = launch(2, *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"wrote {out}") == 1
    assert pointer_lm_weights.load(out).config.width == 64
    refused = launch(2, *command, "--follow")
    assert refused.returncode != 0
    assert "leave out --follow" in refused.stderr


def test_alone_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_ranks(torch.device("cpu")) is ALONE
    value = torch.tensor([1.0])
    assert ALONE.mean(value) is value and ALONE.agreed(3.0) == 3.0
    assert ALONE.first and ALONE.alone and ALONE.device(torch.device("cpu")) == torch.device("cpu")


def test_without_accelerate_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match="pip install"):
        join_ranks(torch.device("cpu"))
