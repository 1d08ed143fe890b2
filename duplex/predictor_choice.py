"""Which duplex predictor a profile has: the section `predictor` of its YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from duplex.predictor import DuplexPredictor, RuleConfig, RulePredictor
from duplex.predictor_trained import WEIGHTS, TrainedConfig, TrainedPredictor


@dataclass(frozen=True, slots=True)
class PredictorConfig(RuleConfig):
    """The rules' numbers, and whether a trained network decides in their place."""

    kind: Literal["rules", "trained"] = "rules"
    """Who decides when to take, keep or give up the floor."""
    weights: str = ""
    """trained: the file of weights; empty for the shipped ones."""
    trained: TrainedConfig = field(default_factory=TrainedConfig)
    """trained: how its odds become decisions."""


def choose_predictor(config: PredictorConfig) -> DuplexPredictor:
    """The predictor that a profile asks for. Raises WeightsError when the trained one has no weights."""
    if config.kind == "rules":
        return RulePredictor(config)
    file = Path(config.weights).expanduser() if config.weights else WEIGHTS
    return TrainedPredictor.load(file, config.trained, config)
